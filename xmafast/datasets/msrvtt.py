"""MSR-VTT (Xu et al., CVPR 2016) in the protocol of the field: 9,000 videos to train, the 1k-A pairs to test.

ROOT/MSRVTT_JSFUSION_test.csv   test: video_id, sentence (1,000 pairs)
ROOT/MSRVTT_train.9k.csv        train: video_id (9,000 videos)
ROOT/MSRVTT_data.json           train: the 20 captions of each video (or MSRVTT_Videodatainfo.json, the same list)
ROOT/videos/videoNNNN.mp4       in any folder under ROOT

Two variants read the same folder: ``msrvtt-7k`` trains on MSRVTT_train.7k.csv (7,010 videos), and ``msrvtt-full`` is the split of
the data set's authors by number: 0 to 6512 to train, to 7009 to validate, to 9999 to test, with all 20 captions as queries.

Home and terms: https://www.microsoft.com/en-us/research/publication/msr-vtt-a-large-video-description-dataset-for-bridging-video-and-language/
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace

from xmafast.datasets.base import BEST_CAPTION, Files, Protocol, Split, gather, inside, missing_files, one_of, read_csv, read_json, reading
from xmafast.datasets.base import sentences as texts_of

SAMPLING = "fps"
CAPTIONS = ("MSRVTT_data.json", "MSRVTT_Videodatainfo.json")
TEST = ("MSRVTT_JSFUSION_test.csv",)
FILES: Files = {"train": (("MSRVTT_train.9k.csv",), CAPTIONS), "test": (TEST,)}
FILES_7K: Files = {"train": (("MSRVTT_train.7k.csv",), CAPTIONS), "test": (TEST,)}
FILES_FULL: Files = {"train": (CAPTIONS,), "val": (CAPTIONS,), "test": (CAPTIONS,)}
NUMBERS = {"train": range(6513), "val": range(6513, 7010), "test": range(7010, 10_000)}
WHERE = "CLIP4Clip's release file msrvtt_data.zip holds it"
PROTOCOL = Protocol(
    title="MSR-VTT 9k/1k-A",
    paper="Xu et al., MSR-VTT, CVPR 2016; 1k-A: Yu et al., ECCV 2018",
    home="https://www.microsoft.com/en-us/research/publication/msr-vtt-a-large-video-description-dataset-for-bridging-video-and-language/",
    licence="research use, by the terms on its home page",
    videos={"train": 9000, "test": 1000},
    captions={"train": 180_000, "test": 1000},
)


def splits(root: Path, files: Files = FILES) -> dict[str, list[str]]:
    return missing_files(root, "MSR-VTT", files, WHERE)


def load(root: Path, split: str, name: str = "msrvtt", files: Files = FILES) -> Split:
    captions: dict[str, list[str]] = defaultdict(list)
    source = root / files[split][0][0]
    if files is not FILES_FULL and split == "test":
        for row in read_csv(source, ("video_id", "sentence")):
            captions[row["video_id"]].append(row["sentence"])
        return Split(name, split, root, gather(root, captions, captions, source))
    path = one_of(root, CAPTIONS)
    if files is not FILES_FULL:
        ids = [inside(row["video_id"], root, f"{source}, line {i}") for i, row in enumerate(read_csv(source, ("video_id",)), 2)]
    with reading(path, "MSR-VTT's annotation file (a 'sentences' list of video_id and caption)"):
        for sentence in read_json(path)["sentences"]:
            captions[sentence["video_id"]].extend(texts_of(sentence["caption"]))
    if files is FILES_FULL:
        ids = [video for video in (f"video{n}" for n in NUMBERS[split]) if video in captions]
    return Split(name, split, root, gather(root, ids, captions, source))


def _variant(name: str, files: Files, protocol: Protocol) -> SimpleNamespace:
    return SimpleNamespace(
        SAMPLING=SAMPLING, FILES=files, PROTOCOL=protocol, splits=partial(splits, files=files), load=partial(load, name=name, files=files)
    )


seven_k = _variant(
    "msrvtt-7k",
    FILES_7K,
    replace(PROTOCOL, title="MSR-VTT 7k/1k-A", videos={"train": 7010, "test": 1000}, captions={"train": 140_200, "test": 1000}),
)
full = _variant(
    "msrvtt-full",
    FILES_FULL,
    replace(
        PROTOCOL,
        title="MSR-VTT full",
        videos={split: len(numbers) for split, numbers in NUMBERS.items()},
        captions={split: 20 * len(numbers) for split, numbers in NUMBERS.items()},
        v2t=BEST_CAPTION,
    ),
)
