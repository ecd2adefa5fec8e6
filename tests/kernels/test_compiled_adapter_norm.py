"""The adapter-and-LayerNorm kernels compile for GPUs that are not there, at real sizes, without a spill and within their shared memory."""

import itertools

import pytest
import torch
from compiling import CHIPS, TYPES, check, compile_for, some_quick

from xmafast.kernels.bottleneck import triton as bottleneck

pytestmark = pytest.mark.filterwarnings("ignore:TRITON_DEFAULT_FP_FUSION")

HALF, SINGLE = torch.bfloat16, torch.float32
CASES = [  # chip, width, bottleneck, dtype of x and the weights, dtype of the stream
    *itertools.product(CHIPS, (512, 768, 1024), (8, 64, 512), (HALF,), (HALF, SINGLE)),
    *itertools.product(CHIPS, (768,), (16, 32, 128, 256), (HALF,), (HALF, SINGLE)),
    *itertools.product(CHIPS, (768,), (8, 64, 512), (SINGLE,), (SINGLE,)),
]


@pytest.mark.parametrize(("arch", "width", "bottleneck_width", "dtype", "stream"), some_quick(CASES, [(90, 768, 64, HALF, HALF)]))
def test_adapter_norm(arch, width, bottleneck_width, dtype, stream):
    p, wide, matrix = TYPES[dtype], TYPES[stream], dtype != SINGLE
    tile = bottleneck.norm_blocks(bottleneck_width, dtype)
    constants = {"D": width, "OWN": width - 16, "R": bottleneck_width, "ACTIVATION": 2, "PRECISION": "ieee"}
    numbers = {"M": "i32", "scale": "fp32", "eps": "fp32"} | dict.fromkeys(("mean", "rstd"), TYPES[SINGLE])
    types = numbers | dict.fromkeys(("x", "residual", "down", "down_bias", "own", "own_bias", "shared", "shared_bias", "h"), p)
    types |= dict.fromkeys(("stream", "norm_weight", "norm_bias", "stream_out", "normed"), wide)
    types |= dict.fromkeys(("stride_x", "stride_residual", "stride_stream"), "i32")
    check(arch, compile_for(arch, bottleneck.adapter_norm_forward_kernel, types, constants, tile), matrix=matrix)
    types = numbers | dict.fromkeys(("h", "down", "own", "shared", "dx", "dh"), p)
    types |= dict.fromkeys(("d_stream_out", "d_normed", "stream_out", "norm_weight", "d_stream"), wide)
    types |= dict.fromkeys(("stride_d_stream_out", "stride_d_normed"), "i32")
    constants |= {"SKIP": True, "STREAM": True}
    check(arch, compile_for(arch, bottleneck.adapter_norm_backward_kernel, types, constants, tile), matrix=matrix)
