"""The loss's kernels compile for GPUs that are not there, at real sizes, without a spill and within their shared memory."""

import itertools

import pytest
import torch
from compiling import CHIPS, TYPES, check, compile_for, some_quick

from xmafast.kernels.contrast import triton as contrast

pytestmark = pytest.mark.filterwarnings("ignore:TRITON_DEFAULT_FP_FUSION")

# the width is a run-time argument: what differs is whether it is a multiple of the block
LOSSES = list(itertools.product(CHIPS, (768, 200), (torch.bfloat16, torch.float16, torch.float32), (True, False)))


def compile_both(arch, width, dtype, grouped, **ones):
    """ones: the sizes that are 1, which Triton's launcher turns into constants."""
    p, tile = TYPES[dtype], contrast.blocks(dtype)
    groups = ("query_groups", "candidate_groups")
    constants = {"WHOLE": width % tile["BLOCK_D"] == 0, "HAS_GROUPS": grouped, "PRECISION": contrast.precision(dtype)} | ones
    constants |= {} if grouped else dict.fromkeys(groups)
    sizes = ("N", "M", "D", "offset", "tiles", "stride_q", "stride_c", "stride_d")
    floats = ("scale", "row_max", "row_sum", "column_max", "column_sum", "positives")
    floats += ("rows", "columns", "d_rows", "d_columns", "d_positives", "d_scale")
    types = dict.fromkeys(sizes, "i32") | dict.fromkeys(floats, "*fp32") | dict.fromkeys(("q", "c", "d_cosines"), p)
    types |= dict.fromkeys(groups, "*i64") if grouped else {}
    for kernel in (contrast.info_nce_forward_kernel, contrast.info_nce_backward_kernel):
        names = [name for name in kernel.arg_names if name in types and name not in ones]
        known = {name: value for name, value in constants.items() if name in kernel.arg_names}
        # float32 products in three of TF32 use the tensor cores as well
        check(arch, compile_for(arch, kernel, {name: types[name] for name in names}, known, tile), matrix=True)


@pytest.mark.parametrize(("arch", "width", "dtype", "grouped"), some_quick(LOSSES, [(90, 768, torch.bfloat16, True)]))
def test_info_nce(arch, width, dtype, grouped):
    compile_both(arch, width, dtype, grouped)


@pytest.mark.slow
@pytest.mark.parametrize("ones", [("N", "M", "tiles"), ("tiles", "offset"), ("N", "offset"), ("D", "stride_q", "stride_c")])
def test_sizes_of_one(ones):
    compile_both(90, 1 if "D" in ones else 768, torch.bfloat16, True, **dict.fromkeys(ones, 1))
