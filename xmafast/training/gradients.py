"""The gradients of one step, where the batch is shared out over processes or is too large to be held with its graph.

The loss needs the embeddings of the whole batch and nothing else, so it is taken apart there. Its gradient with respect to the
embeddings is formed first, from embeddings that are leaves; then it is given to the encoders. With micro-batches (GradCache, Gao et al.,
arXiv 2101.06983) the embeddings are made without a graph, and made once more, a micro-batch at a time, with one: under the same random
states, so that dropout and dropped patches are those of the first pass. All negatives of the batch are there, and memory is that of a
micro-batch.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from xmafast.distributed import Processes
from xmafast.errors import UsageError
from xmafast.frozen_embeddings import FrozenEmbeddings
from xmafast.losses import sharded_contrastive_loss
from xmafast.methods.base import Batch, Method
from xmafast.methods.combined import Combined
from xmafast.precision import autocast
from xmafast.retriever import Retriever

States = tuple[Tensor, Tensor | None]  # of the CPU's generator, of the GPU's


def check_micro_batch(retriever: Retriever) -> None:
    """Raise UsageError for a method whose own loss terms cannot be taken apart into micro-batches."""
    method = retriever.method
    for part in method.parts.values() if isinstance(method, Combined) else [method]:
        if isinstance(part, Method) and type(part).extra_loss is not Method.extra_loss:
            raise UsageError(
                f"--micro-batch cannot be used with {part.name!r}, whose own loss terms run the encoders on the whole batch at once; "
                "leave it out, and take --checkpointing or more processes for memory."
            )


def share_backward(
    retriever: Retriever,
    texts: Sequence[str],  # n, this process'
    frames: Tensor,  # (n, F, H, W, 3), or frozen embeddings (n, F, D)
    mask: Tensor,  # (n, F)
    groups: Tensor,  # (N,) the video that each pair of all processes shows
    frozen: FrozenEmbeddings | None,
    processes: Processes,
    micro_batch: int = 0,  # pairs that are held with their graph at once; 0 is all
    stream: tuple[Tensor, Tensor] | None = None,  # as ``Retriever.encode_frames`` takes it, of this process' pairs
) -> Tensor:  # scalar, without a graph
    """This process' share of the loss of a batch, whose gradients are added to what is trained. The shares sum to the loss, and so do
    their gradients.

    A method's own loss terms are those of each process' pairs, weighted by their part of the batch.
    """
    n, device = len(texts), retriever.device
    counts, groups = processes.counts(len(groups)), groups.to(device)
    size = micro_batch or max(1, n)
    pieces = [slice(start, min(start + size, n)) for start in range(0, n, size)]
    twice, states, made = len(pieces) > 1, [], []
    with torch.set_grad_enabled(not twice):
        for piece in pieces:
            states.append(_random_states(device))
            made.append(_embed(retriever, texts[piece], frames[piece], mask[piece], frozen, _cut(stream, piece)))
    leaves = [torch.cat(parts).detach().requires_grad_() for parts in zip(*made, strict=True)]
    if not leaves:  # of no pair: it still takes part in what is added up
        width = retriever.embed_dim
        leaves = [torch.zeros(shape, device=device, requires_grad=True) for shape in ((0, width), (0, frames.shape[1], width))]
    scale = retriever.logit_scale
    learnt = scale if isinstance(scale, Tensor) and scale.requires_grad else None
    if learnt is not None:
        scale = learnt.detach().requires_grad_()
        leaves.append(scale)
    share = sharded_contrastive_loss(retriever, leaves[0], leaves[1], mask, groups, processes, counts, scale)
    gradients = torch.autograd.grad(share, leaves)
    total = share.detach()
    if learnt is not None:
        torch.autograd.backward([learnt], [gradients[2]])
    if twice:
        for piece, state in zip(pieces, states, strict=True):
            _set_random_states(state, device)
            again = _embed(retriever, texts[piece], frames[piece], mask[piece], frozen, _cut(stream, piece))
            _backward(again, [gradient[piece] for gradient in gradients[:2]])
    elif made:
        text, video = made[0]
        own = groups[processes.part(len(groups))]
        batch = Batch(retriever, list(texts), frames, mask, text, video, own, stream)
        more = retriever.acting.extra_loss(batch) if retriever.acting and frozen is None else None
        if more is None:
            _backward(made[0], gradients[:2])
        else:
            more = more * (n / len(groups))
            _backward([text, video, more], [*gradients[:2], torch.ones_like(more)])
            total = total + more.detach()
    return total


def _cut(stream: tuple[Tensor, Tensor] | None, piece: slice) -> tuple[Tensor, Tensor] | None:
    return None if stream is None else (stream[0][piece], stream[1][piece])


def _embed(
    retriever: Retriever,
    texts: Sequence[str],
    frames: Tensor,
    mask: Tensor,
    frozen: FrozenEmbeddings | None,
    stream: tuple[Tensor, Tensor] | None,
) -> list[Tensor]:
    """Text (n, D) and frames (n, F, D), in float32."""
    if frozen is not None:
        return [retriever.on_text(frozen.text(texts)).float(), retriever.on_frames(frames, mask).float()]
    with autocast(retriever.device):
        video = retriever.encode_frames(frames, mask, stream)
        return [retriever.encode_text(texts).float(), video.float()]


def _backward(made: Sequence[Tensor], gradients: Sequence[Tensor]) -> None:
    pairs = [(tensor, gradient) for tensor, gradient in zip(made, gradients, strict=True) if tensor.requires_grad]
    if pairs:  # a method may adapt one encoder alone
        torch.autograd.backward([tensor for tensor, _ in pairs], [gradient for _, gradient in pairs])


def _random_states(device: torch.device) -> States:
    return torch.get_rng_state(), torch.cuda.get_rng_state(device) if device.type == "cuda" else None


def _set_random_states(states: States, device: torch.device) -> None:
    torch.set_rng_state(states[0])
    if states[1] is not None:
        torch.cuda.set_rng_state(states[1], device)


def summed(parameters: Sequence[torch.nn.Parameter], numbers: Tensor, processes: Processes) -> Tensor:
    """Sum the gradients of all processes, in place, and these numbers (K,) with them: one all-reduce.

    A parameter that has no gradient in any process has none afterwards, so that the optimiser leaves it alone. What is trained is small,
    and comes from no module's forward: the buckets and hooks of DistributedDataParallel would have nothing to hide behind the backward
    pass, and would wait for ever for a process without pairs.
    """
    if processes.alone:
        return numbers
    device = numbers.device
    here = torch.tensor([p.grad is not None for p in parameters], dtype=torch.float32, device=device)
    parts = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
    flat = processes.sum(torch.cat([numbers.float(), here, *(part.flatten().float() for part in parts)]))
    found: Tensor
    found, has, *sums = flat.split([len(numbers), len(parameters), *(p.numel() for p in parameters)])
    for parameter, there, gradient in zip(parameters, has.tolist(), sums, strict=True):
        parameter.grad = gradient.view_as(parameter).to(parameter.dtype) if there else None
    return found
