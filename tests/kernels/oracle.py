"""What a kernel is held to on a GPU."""

import pytest
import torch

gpu = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]
DTYPES = [torch.bfloat16, torch.float16, torch.float32]


def close_as_eager(fused, eager, truth):
    """The oracle of ml-cross-entropy and quack: the error of the fused form is at most twice that of eager, in the same dtype."""
    error, allowed = (fused.double() - truth).abs().max(), 2 * (eager.double() - truth).abs().max() + 1e-6
    assert fused.isfinite().all()
    assert error <= allowed, f"error {error:.3g}, and eager's is {allowed / 2:.3g}"
