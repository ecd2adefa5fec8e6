"""Features of another stream of the same videos, and the method that reads them."""

import h5py
import numpy as np
import pytest
import torch

from xmafast.cache.stream import StreamFile, write_stream
from xmafast.errors import CacheError, UsageError
from xmafast.methods.stream import CrossAttention
from xmafast.retriever import Retriever

WIDTH = 24


@pytest.fixture
def model(demo_backbone):
    torch.manual_seed(0)
    model = Retriever(demo_backbone, "stream", stream_width=WIDTH, bottleneck=16).eval()
    for name, parameter in model.method.named_parameters():
        if "up" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    return model


@pytest.fixture
def images(demo_backbone):
    size = demo_backbone.image_size
    return torch.randint(0, 256, (3, 2, size, size, 3), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)


def features(b=3, pieces=4):
    return torch.randn(b, pieces, WIDTH, generator=torch.Generator().manual_seed(1)), torch.ones(b, pieces, dtype=torch.bool)


def test_what_is_added_is_its_formula():
    torch.manual_seed(0)
    own = CrossAttention(10, 6, 8, 2).double()
    torch.nn.init.normal_(own.up.weight)
    y, m = torch.randn(4, 3, 10, dtype=torch.float64), torch.randn(2, 5, 6, dtype=torch.float64) * 3 + 1
    mask = torch.tensor([[True, True, False, True, False], [False] * 5])
    expected = torch.zeros_like(y)
    for i in range(2):  # two frames of the first video; the second has no stream
        n = torch.nn.functional.layer_norm(m[0][mask[0]], (6,))
        parts = []
        for head in range(2):
            rows = slice(4 * head, 4 * head + 4)
            q, k, v = y[i] @ own.query.weight[rows].T, n @ own.key.weight[rows].T, n @ own.value.weight[rows].T
            parts.append((q @ k.T / 4**0.5).softmax(-1) @ v)
        expected[i] = torch.cat(parts, -1) @ own.up.weight.T
    torch.testing.assert_close(own(y, m, mask), expected, rtol=1e-9, atol=1e-9)


@torch.no_grad()
def test_a_video_reads_its_own_stream_and_no_other(model, images):
    m, mask = features()
    together = model.encode_frames(images, None, (m, mask))
    for i in range(3):
        alone = model.encode_frames(images[i : i + 1], None, (m[i : i + 1], mask[i : i + 1]))
        torch.testing.assert_close(together[i : i + 1], alone, rtol=1e-5, atol=1e-5)
    other = model.encode_frames(images, None, (m.flip(0), mask))
    assert not torch.allclose(other[0], together[0], rtol=1e-3)
    torch.testing.assert_close(other[1], together[1], rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_without_a_stream_a_video_is_embedded_as_by_the_frozen_model(model, images):
    m, mask = features()
    mask[1] = False
    found = model.encode_frames(images, None, (m, mask))
    none = model.encode_frames(images)
    model.enabled = False
    frozen = model.encode_frames(images)
    assert torch.equal(none, frozen)
    torch.testing.assert_close(found[1], frozen[1], rtol=1e-5, atol=1e-5)
    assert not torch.allclose(found[0], frozen[0], rtol=1e-3)


@torch.no_grad()
def test_padding_of_a_shorter_stream_is_never_read(model, images):
    m, mask = features()
    mask[:, 2:] = False
    expected = model.encode_frames(images, None, (m[:, :2], mask[:, :2]))
    m[:, 2:] = 1e4
    torch.testing.assert_close(model.encode_frames(images, None, (m, mask)), expected, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_it_goes_beside_merging_of_tokens_and_frames(demo_backbone, images):
    torch.manual_seed(0)
    model = Retriever(demo_backbone, "lora", plugs=["tempme", ("stream", {"stream_width": WIDTH})]).eval()
    torch.nn.init.normal_(model.method.parts["stream"].vision[-1].up.weight)
    m, mask = features()
    together = model.encode_frames(images, None, (m, mask))
    alone = model.encode_frames(images[1:2], None, (m[1:2], mask[1:2]))
    torch.testing.assert_close(together[1:2], alone, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(together, model.encode_frames(images), rtol=1e-3)


def test_a_stream_of_other_videos_is_refused(model, images):
    m, mask = features(b=2)
    with pytest.raises(UsageError, match="of the 3 videos"):
        model.encode_frames(images, None, (m, mask))


def test_a_file_gives_each_video_its_features_and_none_to_the_others(tmp_path):
    given = {"a": np.arange(6.0).reshape(2, 3), "b": np.ones((1, 3))}
    stream = StreamFile(write_stream(tmp_path / "speech.h5", given))
    found, mask = stream.read(["b", "c", "a"])
    assert stream.width == 3
    assert mask.tolist() == [[True, False], [False, False], [True, True]]
    assert found[2].tolist() == given["a"].tolist()
    assert found[:2].sum() == 3
    assert StreamFile(write_stream(tmp_path / "again.h5", given)).fingerprint == stream.fingerprint
    assert StreamFile(write_stream(tmp_path / "other.h5", given | {"b": np.zeros((1, 3))})).fingerprint != stream.fingerprint


@pytest.mark.parametrize(
    ("arrays", "reason"),
    [
        ({"id": ["a"], "features": np.ones((2, 3, 4))}, "must hold"),
        ({"id": ["a"], "features": np.ones((1, 3, 4), dtype=int)}, "of floats"),
        ({"id": ["a"], "features": np.ones((1, 3, 4)), "length": [4]}, "length must lie"),
        ({"id": ["a", "a"], "features": np.ones((2, 3, 4))}, "twice"),
        ({"id": ["a"], "features": np.full((1, 3, 4), np.nan)}, "not finite"),
        ({"features": np.ones((1, 3, 4))}, "with /id"),
    ],
)
def test_a_file_of_other_arrays_is_refused(tmp_path, arrays, reason):
    path = tmp_path / "wrong.h5"
    with h5py.File(path, "w") as file:
        for name, value in arrays.items():
            file[name] = value
    with pytest.raises(CacheError, match=reason):
        StreamFile(path)


def test_a_missing_file_and_one_that_is_no_hdf5_are_named(tmp_path):
    with pytest.raises(CacheError, match="no file"):
        StreamFile(tmp_path / "none.h5")
    (tmp_path / "text.h5").write_text("not HDF5")
    with pytest.raises(CacheError, match="no HDF5"):
        StreamFile(tmp_path / "text.h5")
    with pytest.raises(UsageError, match="same D"):
        write_stream(tmp_path / "x.h5", {"a": np.ones((1, 2)), "b": np.ones((1, 3))})
