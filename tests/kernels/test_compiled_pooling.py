"""The headers' kernels compile for GPUs that are not there, at real sizes, without a spill and within their shared memory."""

import itertools

import pytest
import torch
from compiling import CHIPS, TYPES, check, compile_for, some_quick

from xmafast.kernels.pooling import triton as pooling
from xmafast.kernels.ranking.triton import precision

pytestmark = pytest.mark.filterwarnings("ignore:TRITON_DEFAULT_FP_FUSION")

SIZES = [
    *itertools.product(CHIPS, (512, 768, 1024), (12, 64), (torch.bfloat16,)),
    *itertools.product(CHIPS, (512,), (1, 24), (torch.bfloat16,)),
    *itertools.product(CHIPS, (512,), (12, 64), (torch.float32,)),
]
NUMBERS = {"N": "i32", "M": "i32", "F": "i32", "stride_t": "i32", "stride_m": "i32", "stride_f": "i32", "temperature": "fp32"}


@pytest.mark.parametrize(("arch", "width", "frames", "dtype"), some_quick(SIZES, [(90, 512, 12, torch.bfloat16)]))
def test_text_conditioned(arch, width, frames, dtype):
    tile = pooling.blocks(frames, dtype, arch)
    types = dict.fromkeys(("text", "frames"), TYPES[dtype]) | {"mask": "*u8", "gram": "*fp32", "length": "*fp32"} | NUMBERS
    constants = {"D": width, "PRECISION": precision(dtype)}
    check(arch, compile_for(arch, pooling.score_kernel, types | {"out": "*fp32"}, constants, tile), matrix=True)
    backward = {"grad": "*fp32", "da": TYPES[dtype]} | dict.fromkeys(("weights", "weighted", "shrink"), "*fp32")
    check(arch, compile_for(arch, pooling.score_backward_kernel, types | backward, constants, tile), matrix=True)
    counting = dict.fromkeys(("low_n", "high_n", "low_m", "high_m"), "*fp32") | {"near": "*i64", "CAPACITY": "i32"}
    counting |= dict.fromkeys(("columns", "query_groups", "candidate_groups", "above_n", "above_m", "found"), "*i32")
    constants |= {"GROUPS": True, "BOTH": True}
    check(arch, compile_for(arch, pooling.score_rank_kernel, types | counting, constants, tile), matrix=True)


@pytest.mark.parametrize(("arch", "width", "frames", "dtype"), some_quick(SIZES, [(90, 512, 12, torch.bfloat16)]))
def test_pool(arch, width, frames, dtype):
    types = {"frames": TYPES[dtype], "mask": "*u8", "out": "*fp32", "F": "i32", "stride_m": "i32", "stride_f": "i32"}
    constants = {"D": width, "EPS": pooling.EPS}
    check(arch, compile_for(arch, pooling.pool_kernel, types, constants, pooling.pool_blocks(width)), matrix=False)
    types |= {"grad": "*fp32", "out": TYPES[dtype]}
    check(arch, compile_for(arch, pooling.pool_backward_kernel, types, constants, pooling.pool_blocks(width)), matrix=False)
