"""The kernel from frames to patches compiles for GPUs that are not there, without a spill."""

import itertools

import pytest
import torch
from compiling import CHIPS, TYPES, check, compile_for, some_quick

from xmafast.kernels.frames import triton as frames

pytestmark = pytest.mark.filterwarnings("ignore:TRITON_DEFAULT_FP_FUSION")

CASES = [*itertools.product(CHIPS, (14, 16, 32), (torch.bfloat16, torch.float16, torch.float32))]


@pytest.mark.parametrize(("arch", "patch", "dtype"), some_quick(CASES, [(90, 32, torch.bfloat16)]))
def test_patches(arch, patch, dtype):
    types = {"frames": "*u8", "mean": "*fp32", "std": "*fp32", "out": TYPES[dtype]}
    types |= dict.fromkeys(("N", "GH", "GW", "stride_b", "stride_y", "stride_x"), "i32")
    constants = {"PATCH": patch, "stride_c": 1}  # Triton makes a constant of a stride that is 1
    check(arch, compile_for(arch, frames.patches_kernel, types, constants, frames.blocks(patch)), matrix=False)
