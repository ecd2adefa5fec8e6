"""COCO captions (Lin et al., ECCV 2014) in Karpathy's split: 113,287 images to train, 5,000 to validate, 5,000 to test.

ROOT/dataset_coco.json                 {"images": [{"filename", "filepath", "split", "sentences": [{"raw"}, ...]}, ...]}
ROOT/train2014/*.jpg, val2014/*.jpg    in any folder under ROOT

Karpathy's ``restval``, the rest of the validation images, is for training. About five captions an image, each a query.

Home and terms: https://cocodataset.org/#termsofuse
"""

from __future__ import annotations

from pathlib import Path

from xmafast.datasets.base import BEST_CAPTION, Files, Finder, Protocol, Split, Video, inside, missing_files, read_json, reading, sentences
from xmafast.errors import DataError
from xmafast.files import IMAGES

SAMPLING = "uniform"
FILES: Files = dict.fromkeys(("train", "val", "test"), (("dataset_coco.json",),))
PROTOCOL = Protocol(
    title="COCO captions",
    paper="Lin et al., Microsoft COCO, ECCV 2014; split: Karpathy and Fei-Fei, CVPR 2015",
    home="https://cocodataset.org/",
    licence="annotations CC BY 4.0; the images by each owner's licence on Flickr",
    videos={"train": 113_287, "val": 5000, "test": 5000},
    captions={"test": 25_010},
    frames=1,
    words=32,
    v2t=BEST_CAPTION,
)
WHERE = "cs.stanford.edu/people/karpathy/deepimagesent has it as caption_datasets.zip"


def splits(root: Path) -> dict[str, list[str]]:
    return missing_files(root, "COCO", FILES, WHERE)


def load(root: Path, split: str) -> Split:
    return Split("coco", split, root, karpathy(root, root / "dataset_coco.json", split))


def karpathy(root: Path, path: Path, split: str) -> list[Video]:
    """The images of a split in one of Karpathy's files."""
    wanted = {"train", "restval"} if split == "train" else {split}
    finder = Finder(root, IMAGES)
    videos: dict[str, Video] = {}
    with reading(path, "one of Karpathy's files (an 'images' list of filename, split and sentences with raw)"):
        for image in read_json(path)["images"]:
            if image["split"] not in wanted:
                continue
            name = inside(image["filename"], root, path)
            folder = image.get("filepath") or ""
            file = finder.find(f"{folder}/{name}" if folder else name, path)
            captions = tuple(text for sentence in image["sentences"] for text in sentences(sentence["raw"]))
            videos[name] = Video(name, file, captions)
    if not videos:
        raise DataError(f"{path} holds no image of the {split} split; fetch the file again ({WHERE}).")
    return list(videos.values())
