"""MSR-VTT (Xu et al., CVPR 2016) in the protocol of the field: 9,000 videos to train, the 1k-A pairs to test.

ROOT/MSRVTT_JSFUSION_test.csv   test: video_id, sentence (1,000 pairs)
ROOT/MSRVTT_train.9k.csv        train: video_id (9,000 videos)
ROOT/MSRVTT_data.json           train: the 20 captions of each video
ROOT/videos/videoNNNN.mp4       in any folder under ROOT
"""

from __future__ import annotations

import csv
import json
from collections import defaultdict
from pathlib import Path

from xmafast.datasets.base import Split, Video, find_files, need_folder
from xmafast.errors import DataError
from xmafast.files import VIDEOS

SAMPLING = "fps"
FILES = {"train": ("MSRVTT_train.9k.csv", "MSRVTT_data.json"), "test": ("MSRVTT_JSFUSION_test.csv",)}
WHERE = "CLIP4Clip's release file msrvtt_data.zip holds it"


def splits(root: Path) -> dict[str, list[str]]:
    need_folder(root, "MSR-VTT")
    return {
        split: [
            f"MSR-VTT's {split} split needs {name}, which is not in {root}; put it at {root / name} ({WHERE})."
            for name in names
            if not (root / name).is_file()
        ]
        for split, names in FILES.items()
    }


def load(root: Path, split: str) -> Split:
    captions: dict[str, list[str]] = defaultdict(list)
    if split == "test":
        for row in _read_csv(root / "MSRVTT_JSFUSION_test.csv", ("video_id", "sentence")):
            captions[row["video_id"]].append(row["sentence"])
        ids = list(captions)
    else:
        ids = [row["video_id"] for row in _read_csv(root / "MSRVTT_train.9k.csv", ("video_id",))]
        path = root / "MSRVTT_data.json"
        try:
            for sentence in json.loads(path.read_text(encoding="utf-8"))["sentences"]:
                captions[sentence["video_id"]].append(sentence["caption"])
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(f"{path} is not MSR-VTT's annotation file (a 'sentences' list of video_id and caption): {error}.") from error
    files = {path.stem: path for path in find_files(root, VIDEOS)}
    return Split("msrvtt", split, root, [Video(i, files.get(i), tuple(captions.get(i, ()))) for i in ids])


def _read_csv(path: Path, columns: tuple[str, ...]) -> list[dict[str, str]]:
    try:
        with path.open(encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path} is not a csv file in UTF-8 ({error}).") from error
    for number, row in enumerate(rows, 2):
        absent = [column for column in columns if not row.get(column)]
        if absent:
            raise DataError(f"{path}, line {number}: column {absent[0]!r} is empty or missing; expected: {', '.join(columns)}.")
    if not rows:
        raise DataError(f"{path} holds no rows; expected a header and: {', '.join(columns)}.")
    return rows
