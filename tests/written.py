"""Small videos in any container, written with PyAV; run as a script, one of them."""

from __future__ import annotations

import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest


def written_video(path: Path, frames: int, *, codec: str = "libx264", start: int = 0, **options: str) -> Path:
    """A video of 64 x 48 pixels at 25 frames a second, whose frame i is grey of 4 (i + 1); ``start`` counts in frames."""
    av = pytest.importorskip("av")
    if codec == "libvpx" and "decord" in sys.modules:  # which has loaded a libvpx of its own, that PyAV's encoder does not go with
        subprocess.run([sys.executable, __file__, str(path), str(frames), str(start)], check=True)
        return path
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=25, options=options)
        stream.width, stream.height, stream.pix_fmt, stream.gop_size = 64, 48, "rgb8" if codec == "gif" else "yuv420p", 20
        for i in range(frames):
            picture = np.full((48, 64, 3), 4 * (i + 1) % 256, dtype=np.uint8)
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24").reformat(format=stream.pix_fmt)
            frame.pts, frame.time_base = start + i, Fraction(1, 25)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


if __name__ == "__main__":
    written_video(Path(sys.argv[1]), int(sys.argv[2]), codec="libvpx", start=int(sys.argv[3]))
