"""One video file -> a few resized frames, by whichever decoder is installed. Imports no torch: decode workers start fast."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, UnidentifiedImageError

from xmafast.errors import DecodeError, UsageError, unknown
from xmafast.files import IMAGES

SAMPLINGS = ("fps", "uniform")
_PACKAGE = {"decord": "decord", "pyav": "av"}
DECODERS = ("auto", *_PACKAGE)


class Decoded(NamedTuple):
    frames: np.ndarray  # (n, size, size, 3) uint8, n <= the frames asked for
    timestamps: np.ndarray  # (n,) float32, seconds from the start


def sample_indices(total: int, fps: float, frames: int, sampling: str) -> np.ndarray:
    """Which of a video's ``total`` frames are taken, at most ``frames`` of them, in order.

    fps: one frame a second (the frame shown at each full second), and where there are more, ``linspace`` over these with
    the first and the last, as CLIP4Clip does it. Seconds are counted by the real rate: CLIP4Clip cuts 29.97 to 29 and drifts.
    uniform: ``linspace`` over all frames.
    """
    if sampling == "fps":
        rate = fps if fps > 0 else 1.0
        seconds = max(1, int(np.ceil(total / rate)))
        candidates = np.minimum((np.arange(seconds) * rate).astype(np.int64), total - 1)
    elif sampling == "uniform":
        candidates = np.arange(total)
    else:
        raise unknown("sampling", sampling, SAMPLINGS)
    if len(candidates) > frames:
        candidates = candidates[np.linspace(0, len(candidates) - 1, frames).astype(np.int64)]
    return candidates


def resolve_decoder(name: str) -> tuple[str, str]:
    """``auto`` or a decoder's name -> (name, version). Raises UsageError where it is not installed."""
    if name not in DECODERS:
        raise unknown("decoder", name, DECODERS)
    for candidate in _PACKAGE if name == "auto" else (name,):
        package = _PACKAGE[candidate]
        if importlib.util.find_spec(package):
            return candidate, version(package)
    raise UsageError(f"Decoder {name!r} is not installed; try: pip install {'av' if name == 'auto' else _PACKAGE[name]}")


def span_indices(total: int, fps: float, frames: int, sampling: str, interval: tuple[float, float] | None) -> np.ndarray:
    """``sample_indices`` of the frames shown in ``interval``, [start, end) seconds, or of all. Raises DecodeError for none."""
    if interval is None or fps <= 0:
        return sample_indices(total, fps, frames, sampling)
    first, last = (min(max(0, int(np.ceil(second * fps - 1e-6))), total) for second in interval)
    if first >= last:
        raise DecodeError(f"it has no frame from {interval[0]:g} to {interval[1]:g} s; it is {total / fps:.1f} s long")
    return first + sample_indices(last - first, fps, frames, sampling)


def decode(path: Path, *, frames: int, sampling: str, size: int, decoder: str, interval: tuple[float, float] | None = None) -> Decoded:
    """Sample, resize (bicubic, shortest side) and centre-crop the frames of a video or an image, as open_clip's transform does.

    interval: of a video, the seconds [start, end) that are sampled; timestamps count from the start of the file.

    Raises DecodeError with one sentence where the file cannot be read.
    """
    if not path.is_file():
        raise DecodeError("there is no such file")
    if path.stat().st_size == 0:
        raise DecodeError("the file is empty (0 bytes)")
    raw: Any  # frames (H, W, 3), as an array or a list
    if path.suffix.lower() in IMAGES:
        raw, timestamps = _read_image(path), np.zeros(1)
    else:
        try:
            raw, timestamps = _READERS[decoder](path, lambda total, fps: span_indices(total, fps, frames, sampling, interval))
        except DecodeError:
            raise
        except Exception as error:
            raise DecodeError(_reason(path, decoder, error)) from error
    if not len(raw):
        raise DecodeError("it holds no frame")
    return Decoded(np.stack([resize(frame, size) for frame in raw]), np.asarray(timestamps, dtype=np.float32))


def resize(frame: np.ndarray, size: int) -> np.ndarray:
    """(H, W, 3) -> (size, size, 3) uint8: the shortest side to ``size`` by PIL's bicubic, then the centre."""
    h, w = frame.shape[:2]
    if (h, w) == (size, size):
        return frame
    short = min(h, w)
    nh, nw = (size, int(size * w / h)) if h == short else (int(size * h / w), size)
    top, left = round((nh - size) / 2.0), round((nw - size) / 2.0)
    image = Image.fromarray(frame).resize((nw, nh), Image.Resampling.BICUBIC)
    return np.asarray(image.crop((left, top, left + size, top + size)))


Pick = Callable[[int, float], np.ndarray]


def _read_decord(path: Path, pick: Pick) -> tuple[np.ndarray, np.ndarray]:
    import decord

    decord.logging.set_level(decord.logging.QUIET)
    video = decord.VideoReader(str(path), num_threads=1)
    if len(video) == 0:
        raise DecodeError("it holds no frame")
    index = pick(len(video), float(video.get_avg_fps()))
    frames = video.get_batch(index).asnumpy()
    return frames, video.get_frame_timestamp(index)[:, 0]


def _read_pyav(path: Path, pick: Pick) -> tuple[list[np.ndarray], np.ndarray]:
    import av

    with av.open(str(path)) as container:
        if not container.streams.video:
            raise DecodeError("it has no video stream")
        stream = container.streams.video[0]
        total = sum(1 for packet in container.demux(stream) if packet.size)
        rate = float(stream.average_rate or 0)
    wanted = set(pick(total, rate).tolist()) if total else set()
    frames, timestamps = [], []
    with av.open(str(path)) as container:
        for i, frame in enumerate(container.decode(video=0)):
            if i in wanted:
                frames.append(frame.to_ndarray(format="rgb24"))
                timestamps.append(frame.time if frame.time is not None else i / (rate or 1.0))
                if len(frames) == len(wanted):
                    break
    if len(frames) < len(wanted):
        raise DecodeError(f"only {len(frames)} of the {len(wanted)} sampled frames can be decoded; the file is damaged or cut off")
    return frames, np.asarray(timestamps)


_READERS: dict[str, Callable[[Path, Pick], tuple[Any, np.ndarray]]] = {"decord": _read_decord, "pyav": _read_pyav}


def _read_image(path: Path) -> list[np.ndarray]:
    try:
        with Image.open(path) as image:
            return [np.asarray(image.convert("RGB"))]
    except (UnidentifiedImageError, OSError, ValueError, Image.DecompressionBombError) as error:
        raise DecodeError(f"it is not an image that can be read ({str(error).splitlines()[0]})") from error


def _reason(path: Path, decoder: str, error: Exception) -> str:
    """One sentence for a decoder's failure, from the file itself where that says more than the decoder."""
    if "video stream" in str(error):
        return "it has no video stream"
    with path.open("rb") as file:
        head = file.read(4096)
    if not any(byte < 9 or 13 < byte < 32 for byte in head):
        return "it is text, not a video"
    if head[4:8] == b"ftyp" and not _has_index(path):
        return "it is cut off: the index at the end of the mp4 (moov) is missing"
    detail = (str(error).strip().splitlines() or [type(error).__name__])[0]
    detail = re.sub(r"^.*\.cc:\d+: ", "", detail)  # decord's time stamp and source line
    return f"{decoder} cannot decode it; the file is damaged or cut off ({detail[:120]})"


def _has_index(path: Path) -> bool:
    """Whether the top-level boxes of an mp4 include ``moov``."""
    end = path.stat().st_size
    with path.open("rb") as file:
        position = 0
        while position + 8 <= end:
            file.seek(position)
            header = file.read(16)
            length, kind = int.from_bytes(header[:4], "big"), header[4:8]
            if kind == b"moov":
                return True
            if length == 1:
                length = int.from_bytes(header[8:16], "big")
            if length < 8:
                return False
            position += length
    return False
