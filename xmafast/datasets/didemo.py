"""DiDeMo (Hendricks et al., ICCV 2017) as paragraphs: all sentences of a video, joined by a space, are its one query.

ROOT/train_list.txt, val_list.txt, test_list.txt      one id a line: 8,395, 1,065 and 1,004
ROOT/train_data.json, val_data.json, test_data.json   [{"video", "description", ...}, ...]
ROOT/videos/ID                                        in any folder under ROOT

The annotators saw the first 30 seconds, so the field samples [0, 31) s of each file, as CLIP4Clip does.
An id is Flickr's file name with its extension (mov, avi, 3gp, a bare dot, ...); a file converted to another one is found as well.

Home and terms: https://github.com/LisaAnne/LocalizingMoments
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import replace
from pathlib import Path

from xmafast.datasets.base import Files, Protocol, Split, gather, missing_files, read_json, read_list, reading, sentences

SAMPLING = "fps"
ANNOTATED = (0.0, 31.0)  # seconds
FILES: Files = {split: ((f"{split}_list.txt",), (f"{split}_data.json",)) for split in ("train", "val", "test")}
PROTOCOL = Protocol(
    title="DiDeMo",
    paper="Hendricks et al., Localizing Moments in Video with Natural Language, ICCV 2017",
    home="https://github.com/LisaAnne/LocalizingMoments",
    licence="the annotations by the terms of their repository; the videos by each owner's licence on Flickr",
    videos={"train": 8395, "val": 1065, "test": 1004},
    captions={"train": 8395, "val": 1065, "test": 1004},
    queries="all sentences of a video as one paragraph",
    frames=64,
    words=64,
)


def splits(root: Path) -> dict[str, list[str]]:
    return missing_files(root, "DiDeMo", FILES, "its home page has the data, github.com/albanie/collaborative-experts the lists")


def load(root: Path, split: str) -> Split:
    listing, path = root / f"{split}_list.txt", root / f"{split}_data.json"
    ids = read_list(listing, root)
    parts: dict[str, list[str]] = defaultdict(list)
    with reading(path, "DiDeMo's annotations (a list of objects with video and description)"):
        for row in read_json(path):
            parts[row["video"]].extend(sentences(row["description"]))
    captions = {video: (" ".join(texts),) for video, texts in parts.items() if texts}
    kept = [i for i in ids if i in captions]
    left = len(ids) - len(kept)
    remarks = (f"{left} of the {len(ids)} videos in {listing.name} have no sentence in {path.name} and are left out.",) if left else ()
    videos = [replace(video, interval=ANNOTATED) for video in gather(root, kept or ids, captions, listing)]
    return Split("didemo", split, root, videos, epochs=15, batch_size=64, remarks=remarks)
