"""What a float32 product may be off by, as PyTorch's settings have it, and ranks that stay exact under each of them."""

import subprocess
import sys

import pytest
import torch

from xmafast.kernels.ranking import scores

FINE, TF32, BF16 = 2.0**-24, 2.0**-11, 2.0**-8
SETTINGS = {  # the two ways to say it may not be mixed in one process
    "older": {
        "pass": FINE,
        "torch.set_float32_matmul_precision('high')": TF32,
        "torch.set_float32_matmul_precision('medium')": BF16,
    },
    "newer": {
        "torch.backends.mkldnn.matmul.fp32_precision = 'ieee'": FINE,
        "torch.backends.mkldnn.matmul.fp32_precision = 'tf32'": TF32,
        "torch.backends.mkldnn.matmul.fp32_precision = 'bf16'": BF16,
        "torch.backends.mkldnn.matmul.fp32_precision = 'none'; torch.backends.fp32_precision = 'tf32'": TF32,
    },
}
# near-ties by the hundred, which a product in bfloat16 mixes up
CODE = """
import sys, torch
from xmafast.kernels import ranks
from xmafast.kernels.ranking.scores import float32_unit
g = torch.Generator().manual_seed(0)
q = torch.randn(300, 64, generator=g)
c = q + 0.01 * torch.randn(1, 64, generator=g) * torch.randn(300, 1, generator=g) + (q.roll(1, 0) - q) * (torch.arange(300)[:, None] % 2)
full = q.double() @ c.double().T
truth = (full > full.diagonal()[:, None]).sum(1)
for setting in sys.argv[1:]:
    exec(setting)
    print(float32_unit(torch.device("cpu")), int((ranks(q, c, torch.arange(300))[0] != truth).sum()))
"""


@pytest.mark.parametrize("way", SETTINGS)
def test_ranks_are_exact_under_every_precision_that_pytorch_can_be_told_to_multiply_in(way):
    if way == "newer" and not hasattr(torch.backends.mkldnn, "matmul"):
        pytest.skip("this PyTorch has the older setting alone")
    run = subprocess.run([sys.executable, "-c", CODE, *SETTINGS[way]], capture_output=True, text=True)
    assert run.stdout.splitlines() == [f"{unit} 0" for unit in SETTINGS[way].values()], run.stderr


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("one", [True, False], ids=["onednn", "plain"])
def test_a_product_is_the_same_from_either_library(monkeypatch, dtype, one):
    if one and not scores.ONEDNN:
        pytest.skip("PyTorch was built without oneDNN")
    monkeypatch.setattr(scores, "ONEDNN", one)
    a, b = torch.randn(40, 130).to(dtype), torch.randn(80, 64).to(dtype)
    for x, y in ((a[:, :64], b), (a[::2, 1:65], b[::3]), (a[:0, :64], b), (a[:, :64], b[:0]), (a[:, :0], b[:, :0])):
        found = scores.product(x, y)
        assert found.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
        torch.testing.assert_close(found.double(), x.double() @ y.double().T, rtol=1e-5, atol=1e-5)
