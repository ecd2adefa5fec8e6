"""The adapter's kernels compile for GPUs that are not there, at real sizes, without a spill and within their shared memory."""

import itertools

import pytest
import torch
from compiling import CHIPS, TYPES, check, compile_for, some_quick

from xmafast.kernels.bottleneck import triton as bottleneck

pytestmark = pytest.mark.filterwarnings("ignore:TRITON_DEFAULT_FP_FUSION")

ADAPTERS = [
    *itertools.product(CHIPS, (512, 768, 1024), (8, 64, 512), (torch.bfloat16,)),
    *itertools.product(CHIPS, (768,), (16, 32, 128, 256), (torch.bfloat16,)),
    *itertools.product(CHIPS, (768,), (8, 64, 512), (torch.float32,)),
]


@pytest.mark.parametrize(("arch", "width", "bottleneck_width", "dtype"), some_quick(ADAPTERS, [(90, 768, 64, torch.bfloat16)]))
def test_adapter(arch, width, bottleneck_width, dtype):
    p, matrix = TYPES[dtype], dtype != torch.float32
    tile = bottleneck.blocks(bottleneck_width, dtype)
    constants = {"D": width, "OWN": width - 16, "R": bottleneck_width, "ACTIVATION": 2, "PRECISION": "ieee"}
    tensors = ("x", "residual", "down", "down_bias", "own", "own_bias", "shared", "shared_bias", "y", "h")
    types = dict.fromkeys(tensors, p) | {"M": "i32", "stride_x": "i32", "stride_residual": "i32", "scale": "fp32"}
    check(arch, compile_for(arch, bottleneck.adapter_forward_kernel, types, constants, tile), matrix=matrix)
    tensors = ("dy", "h", "down", "own", "shared", "dx", "dh")
    types = dict.fromkeys(tensors, p) | {"M": "i32", "stride_dy": "i32", "scale": "fp32"}
    check(arch, compile_for(arch, bottleneck.adapter_backward_kernel, types, constants | {"SKIP": True}, tile), matrix=matrix)


def test_a_kernel_that_spills_is_noticed():
    tile = {"BLOCK_M": 64, "BLOCK_D": 64, "BLOCK_R": 512, "num_warps": 4, "num_stages": 2}
    tensors = ("dy", "h", "down", "own", "shared", "dx", "dh")
    types = dict.fromkeys(tensors, "*bf16") | {"M": "i32", "stride_dy": "i32", "scale": "fp32"}
    constants = {"D": 768, "OWN": 752, "R": 512, "ACTIVATION": 2, "PRECISION": "ieee", "SKIP": True}
    with pytest.raises(AssertionError, match="registers spill"):
        check(80, compile_for(80, bottleneck.adapter_backward_kernel, types, constants, tile), matrix=True)
