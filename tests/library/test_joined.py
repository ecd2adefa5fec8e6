"""Several data sets read as one cache."""

from dataclasses import replace

import numpy as np
import pytest
from support import demo_split

from xmafast.cache import FrameCache, build_cache
from xmafast.cache.joined import JoinedFrames
from xmafast.errors import CacheError


@pytest.fixture(scope="module")
def caches(tmp_path_factory):
    """Three clips of 4 frames, two of 3, and two of another size."""
    folder, found = tmp_path_factory.mktemp("joined"), []
    for name, count, frames, size in (("first", 3, 4, 32), ("second", 2, 3, 32), ("third", 2, 3, 48)):
        split = replace(demo_split("test", count), dataset=name)
        build_cache(split, folder / name / "train.h5", frames=frames, size=size, workers=1)
        found.append(FrameCache(folder / name / "train.h5"))
    return found


def test_rows_are_those_of_each_cache_in_turn(caches):
    joined = JoinedFrames(caches[:2])
    assert joined.names == ["first", "second"]
    assert joined.attributes["dataset"] == "first+second"
    assert joined.shape == (5, 4, 32, 32, 3)
    assert joined.ids == caches[0].ids + caches[1].ids
    assert joined.rows.tolist() == [0, 1, 2, 3, 4]
    assert joined.part_of(joined.rows).tolist() == [0, 0, 0, 1, 1]
    assert joined.source_of(4) == caches[1].source_of(1)
    assert np.array_equal(joined.frames_of(3), caches[1].frames_of(0))


@pytest.mark.parametrize("rows", [[0, 2], [4, 3], [4, 0, 3, 1]])
def test_what_is_read_is_what_each_holds_with_padding_behind_it(caches, rows):
    frames, mask = JoinedFrames(caches[:2]).read(np.array(rows))
    for i, row in enumerate(rows):
        part, own = (caches[0], row) if row < 3 else (caches[1], row - 3)
        expected, real = part.read(np.array([own]))
        n = part.shape[1]
        assert np.array_equal(frames[i, :n], expected[0])
        assert not frames[i, n:].any()
        assert mask[i, :n].tolist() == real[0].tolist()
        assert not mask[i, n:].any()


def test_other_sizes_and_a_data_set_twice_are_refused(caches):
    with pytest.raises(CacheError, match="48 and 32 px"):
        JoinedFrames([caches[0], caches[2]])
    with pytest.raises(CacheError, match="each data set once"):
        JoinedFrames([caches[0], caches[0]])
