"""The ranking kernels compile for GPUs that are not there, at real sizes, without a spill and within their shared memory."""

import itertools

import pytest
import torch
from compiling import CHIPS, TYPES, check, compile_for, some_quick

from xmafast.kernels.ranking import triton as ranking

pytestmark = pytest.mark.filterwarnings("ignore:TRITON_DEFAULT_FP_FUSION")

SIZES = [
    *itertools.product(CHIPS, (512, 768, 1024), (torch.bfloat16,)),
    *itertools.product(CHIPS, (384,), (torch.float16,)),
    *itertools.product(CHIPS, (512,), (torch.float32,)),
]


@pytest.mark.parametrize(("arch", "width", "dtype"), some_quick(SIZES, [(90, 512, torch.bfloat16)]))
def test_ranks(arch, width, dtype):
    tensors = dict.fromkeys(("queries", "candidates"), TYPES[dtype]) | {"near": "*i64", "found": "*i32"}
    tensors |= dict.fromkeys(("order", "columns", "sets", "query_groups", "candidate_groups", "above_n", "above_m"), "*i32")
    tensors |= dict.fromkeys(("low_n", "high_n", "low_m", "high_m"), "*fp32")
    numbers = dict.fromkeys(("P", "N", "M", "stride_q", "stride_c", "CAPACITY"), "i32")
    for groups, both, sets in ((True, True, True), (False, True, False), (False, False, False)):
        constants = {"D": width, "PRECISION": ranking.precision(dtype), "GROUPS": groups, "BOTH": both, "SETS": sets}
        tile = ranking.blocks(dtype, both=both, sets=sets)
        check(arch, compile_for(arch, ranking.rank_kernel, tensors | numbers, constants, tile), matrix=True)


@pytest.mark.parametrize(("arch", "width", "dtype"), some_quick(SIZES, [(90, 512, torch.bfloat16)]))
def test_unit_maxima(arch, width, dtype):
    types = dict.fromkeys(("queries", "candidates"), TYPES[dtype]) | {"maxima": "*fp32"}
    types |= dict.fromkeys(("N", "M", "U", "stride_q", "stride_c"), "i32")
    constants = {"D": width, "PRECISION": ranking.precision(dtype), "UNIT": ranking.UNIT}
    check(arch, compile_for(arch, ranking.unit_maxima_kernel, types, constants, ranking.blocks(dtype)), matrix=True)
