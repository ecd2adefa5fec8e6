"""VATEX (Wang et al., ICCV 2019), English, in the split of HGR (Chen et al., CVPR 2020): 25,991 / 1,500 / 1,500 videos.

ROOT/vatex_training_v1.0.json      train: [{"videoID", "enCap": [ten sentences], ...}, ...]
ROOT/vatex_validation_v1.0.json    val and test: the 3,000 of the data set's own validation set, halved
  or, for all three, ROOT/ref_captions.json: {id: [sentence, ...]}
ROOT/val_list.txt, test_list.txt   one id a line (or HGR's val_names.npy, tst_names.npy)
ROOT/train_list.txt                one id a line (or trn_names.npy); not needed beside vatex_training_v1.0.json
ROOT/videos/ID.mp4                 ID is YouTube's with the clip's start and end, as abc_000004_000014

The data set's own test set has no public captions. HGR's repository (github.com/cshizhe/hgr_v2t) distributes the halves.

Home and terms: https://eric-xw.github.io/vatex-website/
"""

from __future__ import annotations

from pathlib import Path

from xmafast.datasets.base import (
    BEST_CAPTION,
    Files,
    Protocol,
    Split,
    brief,
    gather,
    inside,
    missing_files,
    one_of,
    read_json,
    read_list,
    reading,
    sentences,
)
from xmafast.errors import DataError

SAMPLING = "fps"
LISTS = {
    "train": ("train_list.txt", "trn_names.npy"),
    "val": ("val_list.txt", "val_names.npy"),
    "test": ("test_list.txt", "tst_names.npy"),
}
TRAINING = ("vatex_training_v1.0.json", "ref_captions.json")
VALIDATION = ("vatex_validation_v1.0.json", "ref_captions.json")
FILES: Files = {"train": (TRAINING,), "val": (LISTS["val"], VALIDATION), "test": (LISTS["test"], VALIDATION)}
PROTOCOL = Protocol(
    title="VATEX",
    paper="Wang et al., VATEX, ICCV 2019; split: Chen et al., CVPR 2020",
    home="https://eric-xw.github.io/vatex-website/",
    licence="the annotations by the terms on its home page; the videos belong to their owners on YouTube",
    videos={"train": 25_991, "val": 1500, "test": 1500},
    captions={"train": 259_910, "val": 15_000, "test": 15_000},
    v2t=BEST_CAPTION,
)


def splits(root: Path) -> dict[str, list[str]]:
    known = missing_files(root, "VATEX", FILES, "its home page has the annotations, github.com/cshizhe/hgr_v2t the lists")
    if not known["train"] and one_of(root, TRAINING).name == "ref_captions.json":  # which holds all three splits
        known["train"] = missing_files(root, "VATEX", {"train": (LISTS["train"],)}, "github.com/cshizhe/hgr_v2t has the lists")["train"]
    return known


def load(root: Path, split: str) -> Split:
    path, listing = one_of(root, TRAINING if split == "train" else VALIDATION), one_of(root, LISTS[split])
    with reading(path, "VATEX's annotations (a list of objects with videoID and enCap, or {id: [sentence, ...]})"):
        content = read_json(path)
        pairs = content.items() if isinstance(content, dict) else [(row["videoID"], row["enCap"]) for row in content]
        captions = {inside(video, root, path): sentences(texts) for video, texts in pairs}
    ids = _ids(listing, root) if listing.is_file() else list(captions)
    return Split("vatex", split, root, gather(root, ids, captions, listing if listing.is_file() else path))


def _ids(path: Path, root: Path) -> list[str]:
    if path.suffix != ".npy":
        return read_list(path, root)
    import numpy as np

    try:
        names = np.load(path, allow_pickle=False)
    except Exception as error:  # a broken header may raise anything
        raise DataError(
            f"{path} is not a plain .npy array of ids ({brief(error)}); write them to {LISTS['test'][0]}, one a line."
        ) from error
    if getattr(names, "ndim", 0) != 1 or names.dtype.kind not in "US":
        raise DataError(f"{path} is not an array of ids; write them into a text file, one a line.")
    with reading(path, "an array of ids in UTF-8"):
        points = np.ascontiguousarray(names).view(names.dtype.byteorder + "u4" if names.dtype.kind == "U" else "u1")
        if points.size and points.max() > 0x10FFFF:  # numpy would make a string of it that breaks Python
            raise ValueError("it holds what is no text")
        return [inside(n.decode("utf-8") if isinstance(n, bytes) else n, root, path) for n in names.tolist()]
