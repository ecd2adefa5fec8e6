"""Token and embedding caches: what the frozen backbone gives, row by row, bound to its weights."""

import numpy as np
import pytest
import torch
from support import demo_split, shallow

from xmafast import Retriever, evaluate
from xmafast.cache import FeatureCache, FrameCache, Shard, Status, build_cache, build_features, feature_folder, merge, repair, verify
from xmafast.errors import CacheError, UsageError


@pytest.fixture(scope="module")
def frames(tmp_path_factory):
    path = tmp_path_factory.mktemp("features") / "test.h5"
    build_cache(demo_split("test", 6), path, frames=6, sampling="fps", size=96, workers=1)  # four frames a clip, and padding
    return FrameCache(path)


def test_embeddings_are_the_frozen_backbones(demo_backbone, frames, tmp_path):
    path = tmp_path / "test.h5"
    summary = build_features(frames, path, demo_backbone)
    assert (summary.done, summary.present) == (6, 0)
    cache = FeatureCache(path).of(demo_backbone)
    found, mask = cache.read(np.arange(6))
    pixels, real = frames.read(np.arange(6))
    expected = Retriever(demo_backbone, None).encode_frames(pixels)
    assert not mask.all()
    assert torch.equal(mask, real)
    torch.testing.assert_close(found[mask], expected[real], rtol=1e-4, atol=1e-4)
    assert not found[~mask].any()
    assert np.array_equal(cache.timestamps, frames.timestamps)


def test_the_blocks_after_cached_tokens_give_the_whole_towers_embeddings_to_float16(demo_backbone, frames, tmp_path):
    for block in (1, 4):
        path = tmp_path / f"{block}.h5"
        build_features(frames, path, demo_backbone, level="tokens", block=block)
        tokens, mask = FeatureCache(path).read(np.arange(6))
        assert tokens.dtype == torch.float16
        pixels, _ = frames.read(np.arange(6))
        expected = demo_backbone.encode_frames(pixels[mask])
        found = demo_backbone.encode_suffix(tokens[mask].float(), block)
        cosine = torch.cosine_similarity(found, expected)
        assert cosine.min() > 1 - 1e-5
        assert (found - expected).abs().max() < 0.005 * expected.abs().max()


def test_a_methods_places_count_from_the_first_block_of_the_tower(demo_backbone, frames):
    model = Retriever(demo_backbone, "cross-modal")
    pixels = frames.read(np.arange(1))[0][0, :2]
    from xmafast.methods.base import Context

    seen = []

    def places(block):
        seen.append(block)
        return model.method.vision_places(block, Context(1))

    demo_backbone.encode_suffix(demo_backbone.encode_prefix(pixels, 4), 4, places)
    assert sorted(set(seen)) == [4, 5]


def test_only_rows_whose_frames_changed_are_computed_again(demo_backbone, tmp_path, monkeypatch):
    path, out = tmp_path / "test.h5", tmp_path / "out" / "test.h5"
    build_cache(demo_split("test", 4), path, frames=2, sampling="uniform", size=32, workers=1)
    build_features(FrameCache(path), out, demo_backbone)
    before = FeatureCache(out).data.copy()
    cache = FrameCache(path, writable=True)
    cache.frames[2] ^= 7
    from xmafast.cache.file import checksum

    cache.checksum[2] = checksum(cache.stored(2), cache.timestamps[2, :2])
    calls = []
    real = demo_backbone.encode_frames
    monkeypatch.setattr(demo_backbone, "encode_frames", lambda x: calls.append(len(x)) or real(x))
    assert not FeatureCache(out).current(FrameCache(path))
    summary = build_features(FrameCache(path), out, demo_backbone)
    assert (summary.done, summary.present) == (1, 3)
    assert calls == [2]
    after = FeatureCache(out).data
    assert [bool((before[i] == after[i]).all()) for i in range(4)] == [True, True, False, True]
    assert FeatureCache(out).current(FrameCache(path))


def test_frames_that_failed_or_are_missing_have_no_features(demo_backbone, tmp_path, clips):
    from xmafast.datasets import load_split

    sorted(clips.glob("*.mp4"))[0].write_bytes(b"\0" * 999)
    build_cache(load_split("folder", clips, "train"), tmp_path / "test.h5", frames=2, sampling="uniform", size=32, workers=1)
    summary = build_features(FrameCache(tmp_path / "test.h5"), tmp_path / "out.h5", demo_backbone)
    assert (summary.done, summary.failed) == (5, 1)
    cache = FeatureCache(tmp_path / "out.h5")
    assert cache.count(Status.FAILED) == 1
    assert "damaged" in summary.problems[0][2]


def test_other_weights_are_refused(demo_backbone, frames, tmp_path):
    build_features(frames, tmp_path / "test.h5", demo_backbone)
    other = shallow("ViT-B-32")
    with pytest.raises(CacheError, match=r"other weights than the ViT-B-32 .* demo .*--backbone and --pretrained"):
        FeatureCache(tmp_path / "test.h5").of(other)
    with pytest.raises(CacheError, match="backbone_sha256"):
        build_features(frames, tmp_path / "test.h5", other)


def test_levels_blocks_and_files_that_do_not_fit_are_refused(demo_backbone, frames, tmp_path):
    for options, reason in (
        ({"level": "tokens"}, "needs --block from 1 to 5"),
        ({"level": "tokens", "block": 6}, "needs --block from 1 to 5"),
        ({"level": "tokens", "block": 0}, "needs --block from 1 to 5"),
        ({"level": "embeddings", "block": 2}, "goes with --level tokens"),
        ({"level": "frames"}, "tokens or embeddings"),
    ):
        with pytest.raises(UsageError, match=reason):
            build_features(frames, tmp_path / "x.h5", demo_backbone, **options)
    build_features(frames, tmp_path / "e.h5", demo_backbone)
    with pytest.raises(CacheError, match="holds embeddings, and frames are needed"):
        FrameCache(tmp_path / "e.h5")
    with pytest.raises(CacheError, match="holds frames, and tokens or embeddings are needed"):
        FeatureCache(frames.path)


def test_evaluation_reads_the_embedding_cache_of_the_same_weights(demo_backbone, frames, tmp_path, monkeypatch):
    model = Retriever(demo_backbone, None)
    expected = evaluate(model, frames)
    folder = feature_folder(frames.path.parent, demo_backbone, "embeddings")
    build_features(frames, folder / "test.h5", demo_backbone)
    monkeypatch.setattr(demo_backbone, "encode_frames", None)  # not asked any more
    assert evaluate(model, frames, store=tmp_path)["t2v"] == expected["t2v"]
    assert not list(tmp_path.iterdir())


def test_shards_of_features_join_and_damage_is_mended(demo_backbone, frames, tmp_path):
    from xmafast.cache.shards import Part

    home = tmp_path / "caches"
    home.mkdir()
    build_cache(demo_split("test", 6), home / "test.h5", frames=6, sampling="fps", size=96, workers=1)
    whole = FrameCache(home / "test.h5")
    place = feature_folder(home, demo_backbone, "embeddings")
    for i in (1, 2):
        part = Part(whole, Shard(i, 2))
        build_features(part, place / part.path.name, demo_backbone)
    assert merge(place / "test.h5").done == 6
    cache = FeatureCache(place / "test.h5", writable=True)
    assert cache.current(whole)
    expected = cache.data.copy()
    cache.data[3, 0, 0] += 1
    cache.flush()
    found = verify(place / "test.h5")
    assert found.damaged == [whole.ids[3]]
    assert repair(place / "test.h5", found).done == 1
    np.testing.assert_allclose(FeatureCache(place / "test.h5").data, expected, atol=1e-4)
