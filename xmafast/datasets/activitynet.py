"""ActivityNet Captions (Krishna et al., ICCV 2017) as paragraphs: all sentences of a video, joined by a space, are its one query.

ROOT/train_ids.json, train.json    train: a list of ids (10,009), and {id: {"duration", "sentences", "timestamps"}}
ROOT/val_ids.json, val_1.json      test: val1 (4,917 videos), on which the field tests, for the true test set has no captions
ROOT/videos/v_ID.mp4 or ID.mp4     in any folder under ROOT; ids in the files begin with v_

Home and terms: https://cs.stanford.edu/people/ranjaykrishna/densevid/
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from xmafast.datasets.base import Files, Protocol, Split, gather, inside, missing_files, read_json, reading, sentences

SAMPLING = "fps"
FILES: Files = {"train": (("train_ids.json",), ("train.json",)), "test": (("val_ids.json",), ("val_1.json",))}
PROTOCOL = Protocol(
    title="ActivityNet Captions",
    paper="Krishna et al., Dense-Captioning Events in Videos, ICCV 2017",
    home="https://cs.stanford.edu/people/ranjaykrishna/densevid/",
    licence="research use; the videos belong to their owners on YouTube",
    videos={"train": 10_009, "test": 4917},
    captions={"train": 10_009, "test": 4917},
    queries="all sentences of a video as one paragraph",
    frames=64,
    words=64,
)


def splits(root: Path) -> dict[str, list[str]]:
    return missing_files(root, "ActivityNet", FILES, "captions.zip on its home page holds it")


def load(root: Path, split: str) -> Split:
    listing, path = (root / name for (name,) in FILES[split])
    with reading(listing, "a list of ids"):
        ids = [inside(i, root, listing) for i in _list(read_json(listing))]
    captions = {}
    with reading(path, "ActivityNet's annotations ({id: {'sentences': [...]}})"):
        for video, row in read_json(path).items():
            if paragraph := " ".join(sentences(row["sentences"])):
                captions[video] = (paragraph,)
    kept = [i for i in ids if i in captions]
    left = len(ids) - len(kept)
    remarks = (f"{left} of the {len(ids)} videos in {listing.name} have no annotation in {path.name} and are left out.",) if left else ()
    videos = gather(root, kept or ids, captions, listing, names=lambda i: (i, i.removeprefix("v_")))
    return Split("activitynet", split, root, videos, epochs=15, batch_size=64, remarks=remarks)


def _list(value: Any) -> list[Any]:
    if not isinstance(value, list):
        raise ValueError(f"it holds a {type(value).__name__}")
    return value
