import pickle

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

import xmafast
from xmafast.cache import FrameCache
from xmafast.cache.torch_dataset import FrameDataset
from xmafast.errors import CacheError


def test_an_item_is_a_pair_of_video_and_caption(small_caches):
    cache = FrameCache(small_caches / "train.h5")
    data = FrameDataset(small_caches / "train.h5")
    assert len(data) == sum(map(len, cache.captions)) > len(cache)
    item = data[0]
    assert item["frames"].shape == (4, 96, 96, 3)
    assert item["frames"].dtype == torch.uint8
    assert item["mask"].all()
    assert (item["caption"], item["id"], item["row"]) == (cache.captions[0][0], cache.ids[0], 0)
    assert len(FrameDataset(cache, each_caption=False)) == len(cache)
    assert [FrameDataset(cache, [5, 3])[i]["row"] for i in (0, len(cache.captions[5]))] == [5, 3]
    assert xmafast.FrameDataset is FrameDataset


@pytest.mark.parametrize("context", ["fork", pytest.param("spawn", marks=pytest.mark.slow)])
def test_workers_read_the_same_batches_however_they_start(small_caches, context):
    data = FrameDataset(small_caches / "test.h5", each_caption=False)
    alone = list(DataLoader(data, batch_size=5))
    shared = list(DataLoader(data, batch_size=5, num_workers=2, multiprocessing_context=context))
    assert alone[0]["frames"].shape == (5, 4, 96, 96, 3)
    assert alone[0]["mask"].shape == (5, 4)
    for a, b in zip(alone, shared, strict=True):
        assert torch.equal(a["frames"], b["frames"])
        assert a["caption"] == b["caption"]


def test_a_cache_crosses_to_another_process_as_its_path(small_caches):
    cache = FrameCache(small_caches / "train.h5")
    sent = pickle.dumps(cache)
    assert len(sent) < 1000
    assert np.array_equal(pickle.loads(sent).frames, cache.frames)


def test_a_batch_is_read_into_memory_that_is_given(small_caches):
    cache = FrameCache(small_caches / "train.h5")
    rows = np.array([3, 9])
    room = torch.empty((5, *cache.shape[1:]), dtype=torch.uint8)
    frames, _ = cache.read(rows, out=room)
    assert frames.data_ptr() == room.data_ptr()
    assert torch.equal(frames, cache.read(rows)[0])


def test_rows_that_are_not_decoded_are_refused(small_caches):
    with pytest.raises(CacheError, match="row 99 is not decoded"):
        FrameDataset(small_caches / "train.h5", [0, 99])
