"""MSVD (Chen and Dolan, ACL 2011): 1,970 clips of YouTube videos with about 40 sentences each, every one of them a query.

ROOT/train_list.txt, val_list.txt, test_list.txt   one id a line: 1,200, 100 and 670
ROOT/captions_msvd.json                            {id: [sentence, ...]}
  or ROOT/raw-captions.pkl                         {id: [[word, ...], ...]}, read without running anything in it
  or ROOT/AllVideoDescriptions.txt                 an id and a sentence a line
ROOT/YouTubeClips/ID.avi                           in any folder under ROOT

Home and terms: https://www.cs.utexas.edu/~ml/clamp/videoDescription/
"""

from __future__ import annotations

import io
import pickle
import pickletools
import re
from collections import defaultdict
from pathlib import Path
from typing import Any

from xmafast.datasets.base import (
    BEST_CAPTION,
    Files,
    Protocol,
    Split,
    brief,
    gather,
    missing_files,
    one_of,
    read_json,
    read_lines,
    read_list,
    reading,
    sentences,
)
from xmafast.errors import DataError

SAMPLING = "fps"
CAPTIONS = ("captions_msvd.json", "raw-captions.pkl", "AllVideoDescriptions.txt")
FILES: Files = {split: ((f"{split}_list.txt",), CAPTIONS) for split in ("train", "val", "test")}
PROTOCOL = Protocol(
    title="MSVD",
    paper="Chen and Dolan, Collecting highly parallel data for paraphrase evaluation, ACL 2011",
    home="https://www.cs.utexas.edu/~ml/clamp/videoDescription/",
    licence="research use; the videos belong to their owners on YouTube",
    videos={"train": 1200, "val": 100, "test": 670},
    captions={"train": 48_774, "val": 4290, "test": 27_763},
    v2t=BEST_CAPTION,
)
# what a pickle of dicts, lists and strings is made of; nothing here names or calls a class
OPCODES = re.compile(
    "PROTO|FRAME|STOP|MARK|POP|POP_MARK|DUP|EMPTY_DICT|DICT|SETITEMS?|EMPTY_LIST|LIST|APPENDS?|UNICODE|(SHORT_)?BINUNICODE|BINUNICODE8|"
    "STRING|(SHORT_)?BINSTRING|(BIN|LONG_BIN)?GET|(BIN|LONG_BIN)?PUT|MEMOIZE"
)


def splits(root: Path) -> dict[str, list[str]]:
    return missing_files(root, "MSVD", FILES, "CLIP4Clip's release file msvd_data.zip holds it")


def load(root: Path, split: str) -> Split:
    listing, path = root / f"{split}_list.txt", one_of(root, CAPTIONS)
    ids = read_list(listing, root)
    captions: dict[str, Any] = defaultdict(list)
    if path.suffix == ".txt":
        for number, line in read_lines(path):
            if not line.startswith("#"):  # the file begins with a notice
                video, _, sentence = line.partition(" ")
                if not sentence.strip():
                    raise DataError(f"{path}, line {number}: expected an id, a space and a sentence.")
                captions[video].append(sentence.strip())
    else:
        with reading(path, "MSVD's captions ({id: [sentence, ...]})"):
            content = _unpickle(path) if path.suffix == ".pkl" else read_json(path)
            for video, texts in content.items():
                captions[video] = sentences([text if isinstance(text, str) else " ".join(text) for text in texts])
    return Split("msvd", split, root, gather(root, ids, captions, listing))


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        raise pickle.UnpicklingError(f"it names {module}.{name}")


def _unpickle(path: Path) -> Any:
    """The dicts, lists and strings of a pickle. Raises DataError for one that holds anything else, before it is loaded."""
    try:
        content = path.read_bytes()
        for opcode, argument, _ in pickletools.genops(content):
            if not OPCODES.fullmatch(opcode.name):
                what = brief(f"{opcode.name} {argument or ''}")
                raise DataError(f"{path} holds more than dicts, lists and strings ({what}); it was not loaded.")
            if opcode.name.endswith("PUT") and not 0 <= int(argument or 0) <= len(content):
                raise ValueError("an index into nowhere")  # it would have pickle reserve memory for all before it
        loaded = _Unpickler(io.BytesIO(content), encoding="utf-8").load()
        _check_repeats(loaded, 100 * len(content))
        return loaded
    except DataError:
        raise
    except Exception as error:  # a broken pickle may raise anything
        raise DataError(f"{path} is not a pickle that can be read ({brief(error)}); fetch the file again.") from error


def _check_repeats(value: Any, limit: int) -> None:
    """Raise ValueError where strings and lists, each counted as often as it is referred to, are longer than ``limit`` together.

    A pickle may name one long string a thousand times, a list of that a thousand times, and so on, in a few kilobytes.
    """
    open_, total = [value], 0
    while open_:
        value = open_.pop()
        total += len(value)
        if total > limit:
            raise ValueError("it repeats what it holds too often")
        if not isinstance(value, str):
            open_.extend(value.values() if isinstance(value, dict) else value)
