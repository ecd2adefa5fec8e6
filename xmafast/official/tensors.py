"""A published state dict, taken tensor by tensor: sizes from shapes, and a name for whatever does not fit."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from xmafast.errors import RunError

Axis = int | str | tuple[str, int, int]  # a length, a size's name, or (name, a, b) for a * size + b
Layout = Mapping[str, tuple[Axis, ...]]
Sizes = Mapping[str, int]

WRAPPINGS = ("state_dict", "model", "model_state_dict")
LEFTOVERS = {"input_resolution", "context_length", "vocab_size", "attn_mask"}  # OpenAI's archives hold them beside the weights


class Published:
    """Tensors by their names without ``module.`` and ``clip.``; what was taken is gone from ``tensors``.

    Raises RunError for a value that is no tensor, and for names that are the same without their beginnings.
    """

    def __init__(self, state_dict: Mapping[str, Any]) -> None:
        found = _unwrap(state_dict)
        self.tensors: dict[str, Tensor] = {}
        self._names: dict[str, str] = {}
        for name, value in found.items():
            short = str(name).removeprefix("module.").removeprefix("clip.")
            if short in LEFTOVERS:
                continue
            if not isinstance(value, Tensor):
                raise RunError(f"{name!r} of the state dict is {type(value).__name__}, not a tensor; give a model's state_dict() alone.")
            if short in self.tensors:
                raise RunError(f"The state dict has {self._names[short]!r} and {name!r}, two tensors of one name; leave one out.")
            self.tensors[short], self._names[short] = value, str(name)
        if not self.tensors:
            raise RunError("The state dict holds no tensors; give a model's state_dict().")
        beginnings = Counter(full.removesuffix(short) for short, full in self._names.items())
        self._beginning = beginnings.most_common(1)[0][0]

    def full(self, name: str) -> str:
        """A name as the file has it, or would have it."""
        return self._names.get(name, self._beginning + name)

    def sizes(self, layout: Layout) -> dict[str, int]:
        """The sizes that a layout names, each by the majority of the tensors that have it.

        Raises RunError where none has it, and where two values have equally many tensors.
        """
        votes: dict[str, dict[int, list[str]]] = {}
        for name, axes in layout.items():
            shape = self.tensors[name].shape if name in self.tensors else ()
            for axis, length in zip(axes, shape if len(shape) == len(axes) else (), strict=False):
                if not isinstance(axis, int):
                    size, a, b = _linear(axis)
                    if (length - b) % a == 0 and (length - b) // a >= 0:
                        votes.setdefault(size, {}).setdefault((length - b) // a, []).append(name)
        sizes: dict[str, int] = {}
        for name, axes in layout.items():
            for axis in axes:
                if isinstance(axis, int) or (size := _linear(axis)[0]) in sizes:
                    continue
                if size not in votes:
                    raise self.misfit(name, _said(axes, sizes))
                most = max(len(names) for names in votes[size].values())
                first, *others = [(value, names[0]) for value, names in votes[size].items() if len(names) == most]
                if others:
                    raise RunError(f"{self._says(*first)} and {self._says(*others[0])} disagree on the {size}; restore the file.")
                sizes[size] = first[0]
        return sizes

    def take(self, layout: Layout, sizes: Sizes | None = None) -> dict[str, Tensor]:
        """A layout's tensors in float32, in its order. Raises RunError naming one that is missing or of another shape."""
        taken = {}
        for name, axes in layout.items():
            if name not in self.tensors or tuple(self.tensors[name].shape) != _shape(axes, sizes or {}):
                raise self.misfit(name, _said(axes, sizes or {}))
            taken[name] = self.tensors.pop(name).detach().float().cpu()
        return taken

    def finish(self) -> None:
        """Raise RunError naming a tensor that nobody has taken."""
        for name in self.tensors:
            raise RunError(f"The state dict has an unknown tensor {self.full(name)!r}, which the published model does not; leave it out.")

    def _says(self, value: int, name: str) -> str:
        return f"The tensor {self.full(name)!r} {tuple(self.tensors[name].shape)}, with {value},"

    def misfit(self, name: str, expected: str) -> RunError:
        """The error for a tensor that is missing or not as expected."""
        if name not in self.tensors:
            return RunError(f"The state dict has no tensor {self.full(name)!r}, which should be {expected}; restore the file.")
        return RunError(f"The tensor {self.full(name)!r} is {tuple(self.tensors[name].shape)}, not {expected}; restore the file.")


def _unwrap(state_dict: Mapping[str, Any]) -> Mapping[str, Any]:
    while not any(isinstance(value, Tensor) for value in state_dict.values()):
        inner = next((state_dict[key] for key in WRAPPINGS if isinstance(state_dict.get(key), Mapping)), None)
        if inner is None:
            break
        state_dict = inner
    return state_dict


def _linear(axis: str | tuple[str, int, int]) -> tuple[str, int, int]:
    return (axis, 1, 0) if isinstance(axis, str) else axis


def _said(axes: tuple[Axis, ...], sizes: Sizes) -> str:
    return str(_shape(axes, sizes)).replace("'", "")


def _shape(axes: tuple[Axis, ...], sizes: Sizes) -> tuple[int | str, ...]:
    """The lengths, as far as the sizes are known."""
    lengths: list[int | str] = []
    for axis in axes:
        if isinstance(axis, int):
            lengths.append(axis)
            continue
        size, a, b = _linear(axis)
        lengths.append(a * sizes[size] + b if size in sizes else size)
    return tuple(lengths)
