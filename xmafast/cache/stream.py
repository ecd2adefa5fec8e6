"""One more stream of the same videos, given as features: what was said in them, or what they sound like.

An HDF5 file of any program's making:

    /id        (N,) str           the videos, as the caches name them
    /features  (N, T, D) float    T pieces of each, in any order that means something (sentences, seconds of sound)
    /length    (N,) int           how many of them are real; left out: all
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path

import h5py
import numpy as np
import torch
from torch import Tensor

from xmafast.errors import CacheError, UsageError
from xmafast.files import write_atomically


class StreamFile:
    """A file of features, held in memory. width: D.

    Raises CacheError for a file that is missing, no HDF5, or of other arrays.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        try:
            with h5py.File(self.path, "r") as file:
                ids = file["id"].asstr()[:]
                self.features = np.asarray(file["features"][:])
                lengths = file["length"][:] if "length" in file else np.full(len(ids), self.features.shape[1])
        except FileNotFoundError as error:
            raise CacheError(f"There is no file {self.path} of features.") from error
        except (OSError, KeyError, TypeError, IndexError, AttributeError) as error:
            raise CacheError(f"{self.path} is no HDF5 file with /id (N,) and /features (N, T, D): {str(error).splitlines()[0]}") from error
        self.lengths = np.asarray(lengths, dtype=np.int64)
        n, kind = len(ids), self.features.dtype
        if self.features.ndim != 3 or kind.kind != "f" or len(self.features) != n or self.lengths.shape != (n,):
            raise CacheError(
                f"{self.path} must hold /id (N,), /features (N, T, D) of floats and /length (N,); they are ({n},), "
                f"{self.features.shape} of {kind} and {self.lengths.shape}."
            )
        if n and not 0 <= self.lengths.min() <= self.lengths.max() <= self.features.shape[1]:
            raise CacheError(f"{self.path}: /length must lie between 0 and {self.features.shape[1]}, the pieces that there is room for.")
        real = np.arange(self.features.shape[1]) < self.lengths[:, None]
        if not np.isfinite(self.features[real]).all():
            raise CacheError(f"{self.path} holds features that are not finite; write it again.")
        self._row = {name: i for i, name in enumerate(ids)}
        if len(self._row) < n:
            raise CacheError(f"{self.path} names a video twice; each has one row.")

    @property
    def width(self) -> int:
        """The numbers of each feature."""
        return int(self.features.shape[2])

    @cached_property
    def fingerprint(self) -> str:
        """sha256 of all that is in it."""
        digest = hashlib.sha256("\n".join(self._row).encode())
        for array in (self.features, self.lengths):
            digest.update(np.ascontiguousarray(array).tobytes())
        return digest.hexdigest()

    def __contains__(self, video: str) -> bool:
        return video in self._row

    def read(self, ids: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Videos -> features (B, T, D) float32 and mask bool (B, T), true where one is real; nowhere for a video that is not there."""
        b, t = len(ids), self.features.shape[1]
        found, mask = np.zeros((b, t, self.width), dtype=np.float32), np.zeros((b, t), dtype=bool)
        for i, name in enumerate(ids):
            if (row := self._row.get(name)) is not None:
                n = self.lengths[row]
                found[i, :n], mask[i, :n] = self.features[row, :n], True
        return torch.from_numpy(found), torch.from_numpy(mask)


def write_stream(path: str | Path, features: Mapping[str, np.ndarray]) -> Path:
    """Write such a file: of each video by its id, (T, D) features, of any T but one D. Raises UsageError for other shapes."""
    path, rows = Path(path), {name: np.asarray(value) for name, value in features.items()}
    widths = {value.shape[1] if value.ndim == 2 else None for value in rows.values()}
    if len(widths) != 1 or None in widths:
        raise UsageError("Features are (T, D) for each video, with the same D; write_stream takes them by the video's id.")
    most = max(len(value) for value in rows.values())
    padded = np.zeros((len(rows), most, next(iter(widths)) or 0), dtype=np.float32)
    for i, value in enumerate(rows.values()):
        padded[i, : len(value)] = value

    def fill(partial: Path) -> None:
        with h5py.File(partial, "w") as file:
            file["id"] = np.array(list(rows), dtype=h5py.string_dtype("utf-8"))
            file["features"] = padded
            file["length"] = np.array([len(value) for value in rows.values()], dtype=np.int32)

    write_atomically(path, fill)
    return path
