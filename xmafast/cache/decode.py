"""One video file -> a few resized frames, by whichever decoder is installed. Imports no torch: decode workers start fast."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from xmafast.errors import DecodeError, UsageError, unknown
from xmafast.files import IMAGES

SAMPLINGS = ("fps", "uniform")
PACKAGES = {"decord": "decord", "torchcodec": "torchcodec", "pyav": "av"}  # in the order in which auto takes them
DECODERS = ("auto", *PACKAGES)
# what a damaged or hostile file may declare and still be resized: a worker holds a few frames of this size at a time
MAX_PIXELS = 89_478_485  # Pillow warns of an image from here on; 12K video has fewer
MAX_ASPECT = 100
_IMAGE_FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF")  # by content; Pillow's other readers may start programs, as for EPS


class Decoded(NamedTuple):
    images: list[np.ndarray]  # n of (size, size, 3) uint8, n <= the frames asked for; a cache writes them without making one array
    timestamps: np.ndarray  # (n,) float32, seconds from the start

    @property
    def frames(self) -> np.ndarray:
        """(n, size, size, 3) uint8."""
        return np.stack(self.images)


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
    """``auto`` or a decoder's name -> (name, version). Raises UsageError where it is not installed or cannot be loaded."""
    if name not in DECODERS:
        raise unknown("decoder", name, DECODERS)
    for candidate in PACKAGES if name == "auto" else (name,):
        package = PACKAGES[candidate]
        if not importlib.util.find_spec(package):
            continue
        if candidate != "torchcodec" or not (fault := torchcodec_fault()):
            return candidate, version(package)
        if name != "auto":
            raise UsageError(fault)
    raise UsageError(f"Decoder {name!r} is not installed; try: pip install {'av' if name == 'auto' else PACKAGES[name]}")


def torchcodec_fault() -> str:
    """Why torchcodec, which is installed, cannot be used, in one sentence; empty where it can. Brings torch."""
    try:
        import torchcodec

        # older versions fail at import without FFmpeg; newer ones for images alone still load, and say so here
        if torchcodec.ffmpeg_major_version is not None:
            return ""
    except Exception:
        pass
    return (
        "torchcodec is installed and cannot be loaded: it needs FFmpeg's shared libraries and the torch release it was built for; "
        "install FFmpeg 4 or newer (as: apt install ffmpeg), or take --decoder pyav."
    )


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
    taken, timestamps = [], []
    image = path.suffix.lower() in IMAGES
    reader = _read_image if image else _READERS[decoder]
    try:
        if not image and _is_text(path):  # before a decoder sees it: FFmpeg follows a playlist to files elsewhere
            raise DecodeError("it is text, not a video")
        # absolute, since FFmpeg takes a relative name with a colon for a protocol
        for frame, seconds in reader(path.absolute(), lambda total, fps: span_indices(total, fps, frames, sampling, interval)):
            check_size(*frame.shape[1::-1])
            taken.append(resize(frame, size))
            timestamps.append(seconds)
    except DecodeError:
        raise
    except Exception as error:
        raise DecodeError(_reason(path, "" if image else decoder, error)) from error
    if not taken:
        raise DecodeError("it holds no frame")
    return Decoded(taken, np.asarray(timestamps, dtype=np.float32))


def check_size(width: int, height: int) -> None:
    """Raise DecodeError for pictures that no video has and that resizing would fill the memory with."""
    if width * height > MAX_PIXELS or max(width, height) > MAX_ASPECT * min(width, height):
        raise DecodeError(f"its pictures are {width} x {height} pixels, which is too large or too narrow to be read")


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


Pick = Callable[[int, float], np.ndarray]  # (number of frames, frames a second) -> indices, in order
Frames = Iterator[tuple[np.ndarray, float]]  # (H, W, 3) uint8 and its second, one at a time: a batch of 4K frames is gigabytes


def _read_decord(path: Path, pick: Pick) -> Frames:
    import decord

    head = _head(path)
    if any(head[at :: 188 + at][:3] == b"GGG" for at in (0, 4)):  # packets of 188 bytes, or of 192
        raise DecodeError("decord misplaces the frames of an MPEG transport stream; repeat the command with --decoder pyav")
    decord.logging.set_level(decord.logging.QUIET)
    video = decord.VideoReader(str(path), num_threads=1)
    if len(video) == 0:
        raise DecodeError("it holds no frame")
    rate, seconds = float(video.get_avg_fps()), video.get_frame_timestamp(np.arange(len(video)))[:, 0]
    known = np.isfinite(seconds).all() and np.abs(seconds).max() < 1e9
    if known and seconds[0] > -1e-3 and (np.diff(seconds) > 0).all():
        for i in pick(len(video), rate).tolist():
            yield video[i].asnumpy(), float(seconds[i])
        return
    # It counts frames that an edit list hides (they come before second 0), and jumps to wrong ones there and where timestamps are
    # missing, as in avi and mpg with B-frames. In order it does return every shown frame.
    shown = seconds[seconds > -1e-3] if known else np.arange(len(video)) / (rate or 1.0)
    wanted = set(pick(len(shown), rate).tolist()) if len(shown) else set()
    for i in range(max(wanted, default=-1) + 1):
        frame = video.next()
        if i in wanted:
            yield frame.asnumpy(), float(shown[i])


def _read_torchcodec(path: Path, pick: Pick) -> Frames:
    from torchcodec.decoders import VideoDecoder

    video = VideoDecoder(str(path), seek_mode="exact", dimension_order="NHWC", num_ffmpeg_threads=1)
    about = video.metadata
    if about.width and about.height:  # before a frame is decoded
        check_size(about.width, about.height)
    if not about.num_frames:
        raise DecodeError("it holds no frame")
    start = about.begin_stream_seconds_from_content or 0.0
    for i in pick(about.num_frames, float(about.average_fps or 0)).tolist():
        frame = video.get_frame_at(i)
        yield frame.data.numpy(), frame.pts_seconds - start


def _read_pyav(path: Path, pick: Pick) -> Frames:
    import av

    with av.open(str(path)) as container:
        if not container.streams.video:
            raise DecodeError("it has no video stream")
        stream = container.streams.video[0]
        check_size(stream.width, stream.height)  # before a frame is decoded
        total = sum(1 for packet in container.demux(stream) if packet.size and not packet.is_discard)  # hidden by an edit list
        rate, start = float(stream.average_rate or 0), float((stream.start_time or 0) * stream.time_base)
    wanted = set(pick(total, rate).tolist()) if total else set()
    found = 0
    with av.open(str(path)) as container:
        for i, frame in enumerate(container.decode(video=0)):
            if i in wanted:
                yield frame.to_ndarray(format="rgb24"), frame.time - start if frame.time is not None else i / (rate or 1.0)
                found += 1
                if found == len(wanted):
                    break
    if found < len(wanted):
        raise DecodeError(f"only {found} of the {len(wanted)} sampled frames can be decoded; the file is damaged or cut off")


def _read_image(path: Path, pick: Pick) -> Frames:
    with Image.open(path, formats=_IMAGE_FORMATS) as image:
        check_size(*image.size)
        yield np.asarray(image.convert("RGB")), 0.0


_READERS: dict[str, Callable[[Path, Pick], Frames]] = {"decord": _read_decord, "torchcodec": _read_torchcodec, "pyav": _read_pyav}


def _reason(path: Path, decoder: str, error: Exception) -> str:
    """One sentence for a failure, from the file itself where that says more than the decoder; no decoder: of an image."""
    detail = (str(error).strip().splitlines() or [type(error).__name__])[0]
    detail = re.sub(r"^(.*\.cc:\d+: |\w+, \S+\.cpp:\d+, )", "", detail)  # decord's and torchcodec's source lines
    detail = "".join(c if c.isprintable() else "?" for c in detail[:120])  # it may quote the file
    if not decoder:
        return f"it is not an image that can be read ({detail})"
    if "video stream" in str(error):
        return "it has no video stream"
    try:
        cut = _head(path)[4:8] == b"ftyp" and not _has_index(path)
    except OSError as problem:
        return f"it cannot be read ({problem.strerror})"
    if cut:
        return "it is cut off: the index at the end of the mp4 (moov) is missing"
    return f"{decoder} cannot decode it; the file is damaged or cut off ({detail})"


def _head(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(4096)


def _is_text(path: Path) -> bool:
    return not any(byte < 9 or 13 < byte < 32 for byte in _head(path))


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
