import struct
import subprocess
import sys
import types
from pathlib import Path

import numpy as np
import open_clip
import pytest
from PIL import Image
from support import need_decoder
from written import written_video

from xmafast.cache.decode import DECODERS, MAX_PIXELS, decode, resize, resolve_decoder, sample_indices
from xmafast.datasets import demo
from xmafast.errors import DecodeError, UsageError

CLIP = demo.ROOT / "clips" / "1f300.mp4"
NAMES = [name for name in DECODERS if name != "auto"]
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


@pytest.fixture(params=NAMES)
def decoder(request):
    need_decoder(request.param)
    return request.param


def assert_same(path, expected, **options):
    """Every decoder that is there gives the frames that decord gives (or the greys that are expected), at the same seconds."""
    for name in NAMES:
        try:
            resolve_decoder(name)
        except UsageError:
            continue
        decoded = decode(path, **{**OPTIONS, **options, "decoder": name})
        assert decoded.frames.shape == expected.frames.shape, name
        difference = np.abs(decoded.frames.astype(int) - expected.frames)
        assert difference.mean() < 1, name
        n, size = decoded.frames.shape[:2]
        blocks = (decoded.frames.astype(float) - expected.frames).reshape(n, 8, size // 8, 8, size // 8, 3).mean((2, 4))
        assert np.abs(blocks).max() < 4, name  # of one frame, of one part of it: no other frame was taken
        np.testing.assert_allclose(decoded.timestamps, expected.timestamps, atol=1e-3, err_msg=name)


@pytest.mark.parametrize("sampling", ["fps", "uniform"])
def test_all_decoders_return_the_same_frames(sampling):
    need_decoder("decord")
    for path in sorted((demo.ROOT / "clips").glob("*.mp4"))[::100]:
        assert_same(path, decode(path, **{**OPTIONS, "sampling": sampling}), sampling=sampling)


@pytest.mark.parametrize("sampling", ["fps", "uniform"])
def test_all_decoders_return_the_same_frames_of_real_videos(sampling, test_data):
    need_decoder("decord")
    videos = sorted((test_data / "msrvtt-sample" / "videos").glob("*.mp4"))
    assert videos
    for path in videos:
        assert_same(path, decode(path, **{**OPTIONS, "sampling": sampling}), sampling=sampling)


def greys(path, decoder, frames=6):
    """The written frames that are found, by their grey, and their seconds."""
    decoded = decode(path, frames=frames, sampling="uniform", size=32, decoder=decoder)
    return np.round(decoded.frames[:, 16, 16, 0] / 4 - 1).astype(int).tolist(), decoded.timestamps


def hide_frames(path, count):
    """Move the start of an mp4's edit list behind its first ``count`` frames, as cutting without encoding again does."""
    content = bytearray(path.read_bytes())
    at = content.index(b"elst") + 16
    (scale,) = struct.unpack_from(">I", content, content.index(b"mdhd") + 16)
    (start,) = struct.unpack_from(">i", content, at)
    struct.pack_into(">i", content, at, start + count * scale // 25)
    path.write_bytes(content)


@pytest.mark.parametrize("hidden", [5, 30])
def test_frames_that_an_edit_list_hides_are_not_counted(tmp_path, decoder, hidden):
    path = written_video(tmp_path / "cut.mp4", 60)
    hide_frames(path, hidden)
    found, seconds = greys(path, decoder)
    shown = np.linspace(0, 59 - hidden, 6).astype(int)
    assert np.abs(np.array(found) - hidden - shown).max() <= 1  # of the encoder's rounding
    np.testing.assert_allclose(seconds, shown / 25, atol=1e-3)


@pytest.mark.parametrize("name", ["v.mp4", "v.mkv", "v.webm", "v.mov", "v.avi", "v.flv"])
def test_indices_and_seconds_count_from_the_first_frame_in_every_container(tmp_path, decoder, name):
    codec = {"v.webm": "libvpx", "v.avi": "mpeg4", "v.flv": "flv"}.get(name, "libx264")
    found, seconds = greys(written_video(tmp_path / name, 60, codec=codec, start=0 if name in ("v.avi", "v.flv") else 50), decoder)
    expected = np.linspace(0, 59, 6).astype(int)
    assert np.abs(np.array(found) - expected).max() <= 1
    np.testing.assert_allclose(seconds, expected / 25, atol=2e-3)


@pytest.mark.parametrize(("name", "codec"), [("v.avi", "mpeg4"), ("v.mpg", "mpeg2video")])
def test_frames_without_timestamps_are_taken_in_order_by_decord(tmp_path, name, codec):
    need_decoder("decord")
    found, seconds = greys(written_video(tmp_path / name, 60, codec=codec, bf="2"), "decord")
    expected = np.linspace(0, 59, 6).astype(int)
    assert np.abs(np.array(found) - expected).max() <= 1
    np.testing.assert_allclose(seconds, expected / 25, atol=1e-3)


def test_a_transport_stream_is_left_to_pyav(tmp_path):
    need_decoder("decord")
    path = written_video(tmp_path / "v.ts", 60)
    with pytest.raises(DecodeError, match="repeat the command with --decoder pyav"):
        greys(path, "decord")
    assert np.abs(np.array(greys(path, "pyav")[0]) - np.linspace(0, 59, 6).astype(int)).max() <= 1


def test_a_playlist_leads_to_no_other_file(tmp_path, decoder):
    path = tmp_path / "playlist.mp4"
    for text in (
        f"#EXTM3U\n#EXT-X-TARGETDURATION:3\n#EXTINF:3,\nfile:{CLIP}\n#EXT-X-ENDLIST\n",
        f"ffconcat version 1.0\nfile {CLIP}\n",
    ):
        path.write_text(text)
        with pytest.raises(DecodeError, match="it is text, not a video"):
            decode(path, **{**OPTIONS, "decoder": decoder})


def test_a_relative_name_with_a_colon_is_a_file_and_no_protocol(tmp_path, monkeypatch, decoder):
    monkeypatch.chdir(tmp_path)
    path = Path("subfile,,start,0,end,9,,:a.mp4")
    path.write_bytes(CLIP.read_bytes())
    assert len(decode(path, **{**OPTIONS, "decoder": decoder}).frames) == 12


@pytest.mark.parametrize("shape", [(15000, 8000), (60000, 10)])
@pytest.mark.parametrize("name", ["huge.mp4", "huge.gif"])
@pytest.mark.filterwarnings("ignore:Image size")  # Pillow notices as well
def test_sizes_that_no_video_has_are_refused(tmp_path, name, shape):
    need_decoder("pyav")
    assert shape[0] * shape[1] > MAX_PIXELS or max(shape) > 100 * min(shape)
    frame = b"\x2c" + struct.pack("<HHHH", 0, 0, 1, 1) + b"\x00\x02\x02\x44\x01\x00"
    head = b"GIF89a" + struct.pack("<HH", *shape) + b"\x80\x00\x00\x00\x00\x00\xff\xff\xff"
    (tmp_path / name).write_bytes(head + 3 * frame + b"\x3b")
    with pytest.raises(DecodeError, match=f"its pictures are {shape[0]} x {shape[1]} pixels"):
        decode(tmp_path / name, **{**OPTIONS, "decoder": "pyav"})


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
    with pytest.raises(UsageError, match="pip install torchcodec"):
        resolve_decoder("torchcodec")


class _Failing(types.ModuleType):
    ffmpeg_major_version = property(lambda self: (_ for _ in ()).throw(RuntimeError("Could not load libtorchcodec.\nLikely causes")))


@pytest.mark.parametrize("module", [types.SimpleNamespace(ffmpeg_major_version=None), _Failing("torchcodec"), None])
def test_torchcodec_without_ffmpeg_is_skipped_by_auto_and_refused_by_name(monkeypatch, module):
    monkeypatch.setitem(sys.modules, "torchcodec", module)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name != "decord" or None)
    monkeypatch.setattr("xmafast.cache.decode.version", lambda name: "1")
    assert resolve_decoder("auto") == ("pyav", "1")
    with pytest.raises(UsageError, match="torchcodec is installed and cannot be loaded: it needs FFmpeg's shared libraries") as error:
        resolve_decoder("torchcodec")
    assert "\n" not in str(error.value)
    monkeypatch.setitem(sys.modules, "torchcodec", types.SimpleNamespace(ffmpeg_major_version=8))
    assert resolve_decoder("auto") == resolve_decoder("torchcodec") == ("torchcodec", "1")


def test_choosing_decord_imports_no_torch():
    need_decoder("decord")
    code = "import sys; from xmafast.cache.decode import resolve_decoder; print(resolve_decoder('auto')[0], 'torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "decord False\n"


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
