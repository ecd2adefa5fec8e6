from pathlib import Path

import numpy as np
import open_clip
import pytest
from PIL import Image

from xmafast.cache.decode import decode, resize, resolve_decoder, sample_indices
from xmafast.datasets import demo
from xmafast.errors import DecodeError, UsageError

CLIP = demo.ROOT / "clips" / "1f300.mp4"
OPTIONS = {"frames": 12, "sampling": "uniform", "size": 96, "decoder": "decord"}


def write_video(path: Path, frames: int, audio_only: bool = False) -> Path:
    av = pytest.importorskip("av")
    with av.open(str(path), "w") as container:
        if audio_only:
            stream = container.add_stream("aac", rate=44100)
            for i in range(20):
                sound = av.AudioFrame.from_ndarray(np.zeros((1, 1024), dtype=np.float32), format="fltp", layout="mono")
                sound.sample_rate, sound.pts = 44100, i * 1024
                container.mux(stream.encode(sound))
        else:
            stream = container.add_stream("libx264", rate=25)
            stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
            for i in range(frames):
                container.mux(stream.encode(av.VideoFrame.from_ndarray(np.full((48, 64, 3), 10 * i % 255, dtype=np.uint8), format="rgb24")))
        container.mux(stream.encode(None))
    return path


def test_one_frame_a_second_is_taken_at_each_full_second_and_thinned_by_linspace():
    assert sample_indices(75, 25.0, 12, "fps").tolist() == [0, 25, 50]
    assert sample_indices(76, 25.0, 12, "fps").tolist() == [0, 25, 50, 75]
    seconds = sample_indices(30 * 25, 25.0, 12, "fps") // 25
    assert seconds.tolist() == np.linspace(0, 29, 12).astype(int).tolist()
    assert sample_indices(300, 29.97, 12, "fps").tolist() == [int(s * 29.97) for s in range(11)]


def test_uniform_takes_the_first_and_the_last():
    index = sample_indices(100, 25.0, 12, "uniform")
    assert (index[0], index[-1], len(index)) == (0, 99, 12)
    assert sample_indices(1, 25.0, 12, "uniform").tolist() == [0]


def test_an_unreadable_rate_and_an_unknown_sampling():
    assert sample_indices(3, 0.0, 12, "fps").tolist() == [0, 1, 2]
    with pytest.raises(UsageError, match="Unknown sampling"):
        sample_indices(3, 1.0, 12, "random")


@pytest.mark.parametrize("shape", [(240, 320), (320, 240), (97, 96), (96, 96), (500, 111), (60, 80)])
def test_resize_equals_open_clips_transform(shape):
    image = np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8)
    transform = open_clip.image_transform(96, is_train=False, mean=(0, 0, 0), std=(1, 1, 1))
    expected = transform(Image.fromarray(image)).permute(1, 2, 0).numpy()
    assert np.abs(resize(image, 96) / 255 - expected).mean() < 1 / 255


def test_decord_and_pyav_return_the_same_frames():
    pytest.importorskip("av")
    a, b = (decode(CLIP, **{**OPTIONS, "decoder": name}) for name in ("decord", "pyav"))
    assert a.frames.shape == b.frames.shape == (12, 96, 96, 3)
    assert np.abs(a.frames.astype(int) - b.frames).mean() < 1
    np.testing.assert_allclose(a.timestamps, b.timestamps, atol=1e-3)


@pytest.mark.parametrize("decoder", ["decord", "pyav"])
def test_broken_files_each_get_one_sentence(tmp_path, decoder):
    options = {**OPTIONS, "decoder": decoder}
    (tmp_path / "empty.mp4").touch()
    (tmp_path / "text.mp4").write_text("not a video\n" * 100)
    (tmp_path / "cut.mp4").write_bytes(CLIP.read_bytes()[:8000])
    (tmp_path / "noise.mp4").write_bytes(np.random.default_rng(0).bytes(5000))
    write_video(tmp_path / "audio.mp4", 0, audio_only=True)
    for name, reason in (
        ("empty", "0 bytes"),
        ("text", "text, not a video"),
        ("cut", "moov"),
        ("noise", "cannot decode it"),
        ("audio", "no video stream"),
        ("absent", "no such file"),
    ):
        with pytest.raises(DecodeError, match=reason) as caught:
            decode(tmp_path / f"{name}.mp4", **options)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("decoder", ["decord", "pyav"])
def test_a_video_of_one_frame(tmp_path, decoder):
    decoded = decode(write_video(tmp_path / "one.mp4", 1), **{**OPTIONS, "decoder": decoder})
    assert decoded.frames.shape == (1, 96, 96, 3)


def test_an_image_is_one_frame_and_a_damaged_one_says_so(tmp_path):
    Image.new("RGB", (50, 40), "red").save(tmp_path / "a.png")
    assert decode(tmp_path / "a.png", **OPTIONS).frames.shape == (1, 96, 96, 3)
    (tmp_path / "b.png").write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(20))
    with pytest.raises(DecodeError, match="not an image"):
        decode(tmp_path / "b.png", **OPTIONS)


def test_a_decoder_that_is_not_there_is_refused(monkeypatch):
    with pytest.raises(UsageError, match="Did you mean 'decord'"):
        resolve_decoder("decrod")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UsageError, match="pip install av"):
        resolve_decoder("auto")


@pytest.mark.parametrize("decoder", ["decord", "pyav"])
def test_only_the_interval_is_sampled(clips, decoder):
    path = sorted(clips.glob("*.mp4"))[0]
    options = {"frames": 4, "sampling": "uniform", "size": 32, "decoder": decoder}
    whole, part = decode(path, **options), decode(path, interval=(1.0, 2.0), **options)
    assert whole.timestamps[0] < 1.0 < part.timestamps[0] + 0.05
    assert part.timestamps[-1] < 2.0 < whole.timestamps[-1]
    assert len(part.frames) == 4
    with pytest.raises(DecodeError, match=r"it has no frame from 90 to 95 s; it is \d"):
        decode(path, interval=(90, 95), **options)
    assert np.array_equal(decode(path, interval=(0, 31), **options).frames, whole.frames)
