"""What train.py measures: whole optimiser steps of a method, on random weights and random frames."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

import measure
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from xmafast import Retriever, load_backbone, losses
from xmafast.backbone import Backbone
from xmafast.losses import total_loss
from xmafast.pretrained import meta_backbone
from xmafast.text_prefix import TextPrefix
from xmafast.training import Recipe, make_optimizer

# MSR-VTT's settings: the Cross-Modal Adapter's, MV-Adapter's with CLIP's biases, LoRA's as TempMe has it, CLIP4Clip's full fine-tuning
METHODS = {"full": {}, "cross-modal": {"bottleneck": 8, "shared": 16}, "mv-adapter": {"train_biases": True}, "lora": {"rank": 8}}
AUTO, EAGER = "xmafast", "eager fp32"
WORDS = ["a", "man", "is", "playing", "the", "guitar", "on", "a", "stage", "while", "people", "are", "dancing", "in", "front", "of", "him"]


@dataclass(frozen=True)
class Case:
    """A step: where, of what, and how large. form: ``xmafast`` (the kernels, the device's precision) or the reference (eager, fp32)."""

    backbone: str
    method: str
    frames: int
    batch: int
    device: str
    blocks: str = "all"
    cached: bool = False


def backbone_of(name: str, device: str) -> Backbone:
    return load_backbone(name, "none" if name != "demo" else "demo").to(device)


class Steps:
    """A model in training: ``run(form)`` is one step on a batch that lies on the device."""

    def __init__(self, case: Case, backbone: Backbone | None = None) -> None:
        torch.manual_seed(0)
        self.case, self.backbone = case, backbone or backbone_of(case.backbone, case.device)
        options = METHODS[case.method] | ({"frames": case.frames} if case.method == "mv-adapter" else {})
        self.model = Retriever(self.backbone, case.method, at_blocks=case.blocks, **options).to(case.device).train()
        self.recipe = Recipe(batch_size=case.batch, lr=self.model.method.default_lr)  # type: ignore[union-attr]
        self.optimizer = make_optimizer(self.model, self.recipe)
        self.texts = captions(case.batch)
        self.mask = torch.ones(case.batch, case.frames, dtype=torch.bool, device=case.device)
        self.groups = torch.arange(case.batch, device=case.device)
        self.frames = frames_of(case, self.backbone)
        if self.model.adapted.first_text:
            self.model.text_prefix = TextPrefix(self.model, self.texts)
        if case.cached:
            self.frames = tokens_of(self.model, self.frames)

    def run(self, form: str = AUTO) -> None:
        self.model.impl = "eager" if form == EAGER else "auto"
        self.optimizer.zero_grad(set_to_none=True)
        with full_precision(form == EAGER):
            loss = total_loss(self.model, self.texts, self.frames, self.mask, self.groups)
            loss.backward()
        torch.nn.utils.clip_grad_norm_(list(self.model.trained.values()), self.recipe.clip_norm)
        self.optimizer.step()


def captions(count: int) -> list[str]:
    return [" ".join([*WORDS[i % len(WORDS) :], *WORDS[: i % len(WORDS)], str(i)]) for i in range(count)]


def frames_of(case: Case, backbone: Backbone) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    size = backbone.image_size
    shape = (case.batch, case.frames, size, size, 3)
    return torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8).to(case.device)


@torch.no_grad()
def tokens_of(model: Retriever, frames: Tensor) -> Tensor:
    """As a token cache holds them."""
    parts = [model.backbone.encode_prefix(video, model.adapted.first_vision).half() for video in frames]
    return torch.stack(parts)


@contextmanager
def full_precision(on: bool) -> Iterator[None]:
    """float32 products, where the device would take bfloat16 or TF32."""
    if not on:
        yield
        return
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    try:
        with mock.patch.object(losses, "autocast", lambda device: torch.autocast(device.type, enabled=False)):
            yield
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before


def fits(steps: Steps, form: str) -> bool:
    """Whether a step of this form has room on the GPU."""
    try:
        steps.run(form)
    except torch.cuda.OutOfMemoryError:
        steps.optimizer.zero_grad(set_to_none=True)
        torch.cuda.empty_cache()
        return False
    return True


MEMORY = {
    "cuda": "max_memory_allocated over a step: backbone, what is trained with its optimiser state, the batch, and what the step needs",
    "cpu": "peak resident memory of a process of its own that takes two steps, less what it had before it loaded the backbone; Linux alone",
}


def peak_in_child(case: Case, threads: int) -> float | None:
    """MB, as ``MEMORY`` says; of the process that calls it."""
    torch.set_num_threads(threads)
    if not Path("/proc/self/status").is_file():
        return None
    before = measure.resident_peak()
    steps = Steps(case)
    for _ in range(2):  # the optimiser's state is made in the first
        steps.run()
    return (measure.resident_peak() - before) / 1e6


def peak_on_gpu(steps: Steps) -> float:
    """MB, as ``MEMORY`` says."""
    torch.cuda.reset_peak_memory_stats()
    steps.run()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() / 1e6


def flops(case: Case) -> float:
    """Of a step, forward and backward, as torch counts products and attention; counted without weights and without memory."""
    batch = 2
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with torch.device("meta"):
            options = METHODS[case.method] | ({"frames": case.frames} if case.method == "mv-adapter" else {})
            model = Retriever(meta_backbone(case.backbone), case.method, at_blocks=case.blocks, impl="eager", **options).train()
            size = model.backbone.image_size
            frames = torch.zeros(batch, case.frames, size, size, 3, dtype=torch.uint8)
            ids = torch.zeros(batch, model.words, dtype=torch.long)
            with FlopCounterMode(display=False) as counter:
                (model.encode_frames(frames).sum() + model.encode_text(ids).sum()).backward()
    finally:
        torch.backends.mha.set_fastpath_enabled(True)
    return counter.get_total_flops() / batch * case.batch
