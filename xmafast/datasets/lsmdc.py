"""LSMDC 2016 (Rohrbach et al., IJCV 2017): clips of movies, each with what the audio description says; 1,000 clips to test.

ROOT/LSMDC16_annos_training.csv                  train (101,079 lines), tab-separated without a header: clip, start_aligned,
ROOT/LSMDC16_annos_val.csv                       val   (7,408 lines)    end_aligned, start_extracted, end_extracted, sentence
ROOT/LSMDC16_challenge_1000_publictect.csv       test  (1,000 lines)
ROOT/videos/MOVIE/MOVIE_START-END.avi            in any folder under ROOT, cut as published

A clip that stands on several lines becomes one video with several sentences.

Home and terms: https://sites.google.com/site/describingmovies/
"""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

from xmafast.datasets.base import BEST_CAPTION, Files, Protocol, Split, gather, inside, missing_files, read_tsv
from xmafast.errors import DataError

SAMPLING = "fps"
FILES: Files = {
    "train": (("LSMDC16_annos_training.csv",),),
    "val": (("LSMDC16_annos_val.csv",),),
    "test": (("LSMDC16_challenge_1000_publictect.csv",),),
}
FIELDS = ("clip", "start_aligned", "end_aligned", "start_extracted", "end_extracted", "sentence")
PROTOCOL = Protocol(
    title="LSMDC",
    paper="Rohrbach et al., Movie Description, IJCV 2017",
    home="https://sites.google.com/site/describingmovies/",
    licence="a signed agreement with its authors; research use",
    videos={"test": 1000},  # of train and val the lines are known, not how many clips they make
    captions={"train": 101_079, "val": 7408, "test": 1000},
    v2t=BEST_CAPTION,
)


def splits(root: Path) -> dict[str, list[str]]:
    return missing_files(root, "LSMDC", FILES, "its authors send it with the videos")


def load(root: Path, split: str) -> Split:
    path = root / FILES[split][0][0]
    captions: dict[str, list[str]] = defaultdict(list)
    for number, row in read_tsv(path, FIELDS):
        clip, sentence = row[0].strip(), row[-1].strip()
        if not clip or not sentence:
            raise DataError(f"{path}, line {number}: the {'sentence' if clip else 'clip'} is empty.")
        captions[inside(clip, root, f"{path}, line {number}")].append(sentence)
    if not captions:
        raise DataError(f"{path} holds no lines; expected {', '.join(FIELDS)}.")
    return Split("lsmdc", split, root, gather(root, captions, captions, path))
