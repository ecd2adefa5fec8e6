"""Several methods at once: a base and its plugs, each in its places of the same blocks."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial, reduce
from typing import Any

import torch
from torch import Tensor, nn

from xmafast.blocks import Map, Places
from xmafast.errors import UsageError
from xmafast.methods.base import Batch, Context, Method


class Combined(Method):
    """Parameters: ``parts.NAME``. In one place the base acts first and the plugs in their order; what is added is summed.

    Raises UsageError for parts that cannot work together, with the reason.
    """

    family = "combined"

    def __init__(self, parts: Sequence[Method]) -> None:
        super().__init__()
        check(parts)
        self.parts = nn.ModuleDict({part.name: part for part in parts})
        self.name = "+".join(part.name for part in parts)  # type: ignore[misc]  # of this combination
        self.default_header = parts[0].default_header  # type: ignore[misc]
        self.default_lr = parts[0].default_lr  # type: ignore[misc]
        self.datasets = [name for part in parts for name in part.datasets]
        self.inserted = sum(part.inserted for part in parts)
        self.on_features = all(part.on_features for part in parts)  # type: ignore[misc]
        self.needs_grid = any(part.needs_grid for part in parts)  # type: ignore[misc]
        self.reads_stream = any(part.reads_stream for part in parts)  # type: ignore[misc]
        self.all_blocks = next((part.all_blocks for part in parts if part.all_blocks), "")  # type: ignore[misc]
        self.scalable = all(part.scalable for part in parts)  # type: ignore[misc]
        self.tuned = next((part.tuned for part in parts if part.tuned is not None), None)

    def options(self) -> dict[str, Any]:
        base: Any = next(iter(self.parts.values()))
        options: dict[str, Any] = base.options()
        return options

    def vision_places(self, block: int, context: Context) -> Places:
        return compose(part.vision_places(block, context) for part in self._parts)

    def text_places(self, block: int, context: Context) -> Places:
        return compose(part.text_places(block, context) for part in self._parts)

    def on_frames(self, frames: Tensor, mask: Tensor | None) -> Tensor:
        return reduce(lambda x, part: part.on_frames(x, mask), self._parts, frames)

    def on_text(self, text: Tensor) -> Tensor:
        return reduce(lambda x, part: part.on_text(x), self._parts, text)

    def extra_loss(self, batch: Batch) -> Tensor | None:
        terms = [term for part in self._parts if (term := part.extra_loss(batch)) is not None]
        return torch.stack(terms).sum() if terms else None

    def route_to(self, dataset: str | None) -> None:
        for part in self._parts:
            part.route_to(dataset)

    def fold(self, own: Mapping[str, Tensor], patch: float = 1.0) -> dict[str, Tensor]:
        found: dict[str, Tensor] = {}
        for part in self._parts:
            found |= part.fold({**own, **found}, patch)
        return found

    def unfold(self) -> None:
        for part in self._parts:
            part.unfold()

    @property
    def _parts(self) -> Iterable[Method]:
        return self.parts.values()  # type: ignore[return-value]


def check(parts: Sequence[Method]) -> None:
    """Raise UsageError where parts cannot work together."""
    names = [part.name for part in parts]
    for name in names:
        if names.count(name) > 1:
            raise UsageError(f"{name!r} is named twice; a method is combined with others, not with itself.")
    moving = [part.name for part in parts if part.moves_tokens]
    fixed = [part.name for part in parts if part.fixed_tokens]
    if moving and fixed:
        raise UsageError(f"{moving[0]!r} merges and drops tokens, and {fixed[0]!r} needs every token in its place; combine others.")
    for part in parts:
        if part.apart and len(parts) > 1:
            other = next(name for name in names if name != part.name)
            raise UsageError(f"{part.name!r} {part.apart}, and cannot stand beside {other!r}; combine others.")
    for what, having in (
        ("both merge or drop tokens", moving),
        ("both rewrite what the attention gives", [part.name for part in parts if part.rewrites_attention]),
        ("both train weights of the backbone", [part.name for part in parts if part.tuned is not None]),
        ("both put words into the texts", [part.name for part in parts if part.inserted]),
    ):
        if len(having) > 1:
            raise UsageError(f"{having[0]!r} and {having[1]!r} {what}; combine others.")


def compose(every: Iterable[Places]) -> Places:
    """What each puts into a block, as one."""
    places = list(every)

    def of(name: str) -> list[Any]:
        return [getattr(p, name) for p in places if getattr(p, name) is not None]

    def chain(name: str, backwards: bool = False) -> Any:
        maps = of(name)[:: -1 if backwards else 1]
        return maps[0] if len(maps) == 1 else partial(_through, maps) if maps else None

    def total(name: str) -> Any:
        maps = of(name)
        return maps[0] if len(maps) == 1 else (lambda *given: sum(m(*given) for m in maps)) if maps else None

    qkv, attended = of("qkv"), of("attended")
    return Places(
        before=chain("before"),
        qkv=(lambda h, y: reduce(lambda y, m: m(h, y), qkv, y)) if qkv else None,
        key_bias=_one(of("key_bias")),
        attended=(lambda q, k, v, y: reduce(lambda y, m: m(q, k, v, y), attended, y)) if attended else None,
        parallel_attention=total("parallel_attention"),
        after_attention=chain("after_attention"),
        between=chain("between"),
        parallel_mlp=total("parallel_mlp"),
        after_mlp=chain("after_mlp"),
        after=chain("after", backwards=True),
        tokenwise=all(p.by_token for p in places),
    )


def _through(maps: Sequence[Map], y: Tensor) -> Tensor:
    return reduce(lambda y, m: m(y), maps, y)


def _one(maps: list[Callable[[], Tensor | None]]) -> Callable[[], Tensor | None] | None:
    """Only a method that moves tokens has sizes to weigh keys by, and there is at most one."""
    return maps[0] if maps else None
