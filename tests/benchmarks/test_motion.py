"""The task that needs time: what is drawn is what the caption says, and time alone tells a clip from its twin."""

import motion
import numpy as np
import pytest
from motion import MOVEMENTS, Program, plan, render, states, twin_of

from xmafast.cache import open_splits, verify

COUNTS = {"train": 120, "val": 16, "test": 40}


def shown(program, frames=6, noise=3):
    """(centre x, centre y, area, angle of the long axis in degrees clockwise) of what is not ground, frame by frame."""
    found = []
    for picture in render(program, noise, frames).astype(float):
        differs = np.abs(picture - picture[0, 0]).sum(-1) > 40
        y, x = np.nonzero(differs)
        spread = np.cov(np.stack([x, y]))
        found.append((x.mean(), y.mean(), differs.sum(), np.degrees(np.arctan2(2 * spread[0, 1], spread[0, 0] - spread[1, 1]) / 2)))
    return np.array(found).T


@pytest.mark.parametrize(
    ("movement", "axis", "sign"),
    [
        ("moving left", 0, -1),
        ("moving right", 0, 1),
        ("moving up", 1, -1),
        ("moving down", 1, 1),
        ("growing", 2, 1),
        ("shrinking", 2, -1),
        ("turning clockwise", 3, 1),
        ("turning counterclockwise", 3, -1),
    ],
)
def test_what_moves_as_the_caption_says(movement, axis, sign):
    program = Program("one", ("rocket",), (movement,))
    assert program.caption == f"a rocket {movement}"
    values = shown(program)[axis]
    values = np.unwrap(values, period=180) if axis == 3 else values
    assert (sign * np.diff(values) > 0).all()


def test_slowly_is_a_shorter_way_in_the_same_time():
    quick = shown(Program("one", ("dog",), ("moving right",)))[0]
    slow = Program("one", ("dog",), ("moving right",), slow=True)
    assert slow.caption == "a dog moving right slowly"
    assert 0 < np.ptp(shown(slow)[0]) < 0.6 * np.ptp(quick)


def test_of_two_movements_the_first_one_comes_first():
    program = Program("then", ("dog",), ("moving left", "growing"))
    assert program.caption == "a dog moving left, then growing"
    x, _, area, _ = shown(program, frames=5)
    assert x[0] - x[2] > 20
    assert area[2] == pytest.approx(area[1], rel=0.05)
    assert area[4] > 1.5 * area[2]
    assert x[4] == pytest.approx(x[2], abs=6)  # it grows where it is


def test_of_two_sprites_each_moves_in_its_half():
    program = Program("two", ("owl", "crab"), ("moving left", "growing"))
    assert program.caption == "an owl moving left and a crab growing"
    where = states(program, 4)
    assert (np.diff(where[:, 0, 0]) < 0).all()
    assert (np.diff(where[:, 1, 2]) > 0).all()
    assert (where[:, 0, 1] < 0).all()
    assert (where[:, 1, 1] > 0).all()
    pictures = render(program, 0).astype(float)
    differs = np.abs(pictures - pictures[:, :1, :1]).sum(-1) > 40
    assert differs[:, : motion.SIZE // 2].any((1, 2)).all()
    assert differs[:, motion.SIZE // 2 :].any((1, 2)).all()


@pytest.mark.parametrize(
    "program",
    [
        Program("one", ("fish",), ("turning clockwise",), slow=True),
        Program("then", ("fish",), ("moving up", "shrinking")),
        Program("two", ("fish", "owl"), ("moving left", "turning clockwise")),
    ],
)
def test_a_twin_is_the_same_clip_backwards_under_another_caption(program):
    clip, twin = render(program, 7), render(program.backwards, 7)
    assert np.array_equal(clip[::-1], twin)
    assert not np.array_equal(clip, twin)
    assert program.backwards.caption != program.caption
    assert program.backwards.backwards == program


@pytest.mark.parametrize("program", [Program("back", ("dog",), ("growing",)), Program("still", ("dog",))])
def test_what_needs_no_time_looks_the_same_backwards(program):
    clip = render(program, 7, frames=5)
    assert np.array_equal(clip[::-1], clip)
    assert program.backwards is program
    moved = (clip[0] != clip[2]).any()
    assert moved == (program.kind == "back")


def test_no_caption_is_in_two_splits_and_twins_are_in_one():
    splits = plan(COUNTS)
    assert {name: len(clips) for name, clips in splits.items()} == COUNTS
    captions = [clip.program.caption for clips in splits.values() for clip in clips]
    assert len(set(captions)) == len(captions)
    for clips in splits.values():
        place = {clip.id: i for i, clip in enumerate(clips)}
        for clip in clips:
            twin = twin_of(clip.id)
            assert (twin is not None) == (clip.program.kind in motion.NEED_TIME)
            if twin is not None:
                assert clips[place[twin]].program == clip.program.backwards
                assert abs(place[twin] - place[clip.id]) == 1
                assert clips[place[twin]].noise != clip.noise


def test_what_the_test_clips_combine_is_trained_on():
    splits = plan()
    seen = {name for clip in splits["train"] for name in (*clip.program.sprites, *clip.program.movements)}
    assert seen == {*motion.SPRITES, *MOVEMENTS}


def test_more_training_clips_leave_the_test_clips_as_they_are():
    few, many = plan(COUNTS), plan({**COUNTS, "train": 160})
    assert few["test"] == many["test"]
    assert plan(COUNTS, seed=1)["test"] != few["test"]


def test_more_clips_than_there_are_captions_are_refused():
    with pytest.raises(ValueError, match="ask for fewer clips"):
        plan({**COUNTS, "train": 20_000})


def test_the_caches_are_real_ones_and_the_same_every_time(tmp_path):
    counts = {"train": 6, "val": 2, "test": 4}
    for name in ("one", "other"):
        motion.build(tmp_path / name, counts)
    one, other = (open_splits(tmp_path / name) for name in ("one", "other"))
    assert {name: len(cache) for name, cache in one.items()} == counts
    for name, cache in one.items():
        assert verify(cache.path).intact == counts[name]
        assert np.array_equal(cache.frames, other[name].frames)
        assert cache.captions == other[name].captions
        clips = plan(counts)[name]
        assert [(clip.id, (clip.program.caption,)) for clip in clips] == list(zip(cache.ids, cache.captions, strict=True))
        assert np.array_equal(cache.frames[0], render(clips[0].program, clips[0].noise))


def test_sprites_are_cut_from_clips_that_the_demo_trains_on():
    from xmafast.datasets import demo

    train = {video.id: video.captions[0] for video in demo.load(demo.ROOT, "train").videos}
    assert {train[code] for code in motion.SPRITES.values()} == set(motion.SPRITES)
    alpha = motion.sprite("dog")[0, 3]
    assert alpha[0].max() == 0
    assert 0.15 < alpha.mean() < 0.8
