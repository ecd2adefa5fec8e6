"""The shards of a split joined into one file."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from xmafast.cache.build import finish
from xmafast.cache.features import FeatureCache, kind_of, lay_out_features
from xmafast.cache.file import CacheFile, Status, opened
from xmafast.cache.frames import FrameCache, create
from xmafast.cache.lock import locked
from xmafast.cache.renew import check_room
from xmafast.cache.shards import check_alike, shard_of, shards_of, without_shard
from xmafast.errors import CacheError


@dataclass(frozen=True)
class Merged:
    """The whole file, its rows, those of them that are done, and how many shards it was made of."""

    path: Path
    rows: int
    done: int
    shards: int


def merge(whole: str | Path, *, keep: bool = False, progress: Callable[[int, int], None] | None = None) -> Merged:
    """Join the shards of ``train.h5`` into it. Each row is compared with its checksum on the way; then the shards are deleted.

    keep: leave the shards where they are. A merge that was interrupted goes on where it stopped when it is repeated.
    Raises CacheError where shards are missing, do not belong together or hold a damaged row, and where the disk is full.
    """
    whole = Path(whole)
    if not shards_of(whole, all_of_them=False) and not whole.is_file():
        raise CacheError(f"There are no shards of {whole}; make them with: xmafast cache … --shard 1/2 and --shard 2/2")
    with locked(whole):
        if whole.is_file() and (left := _left(whole)) is not None:
            return _joined(whole, left, keep)
        files = shards_of(whole)
        kind = kind_of(files[0])
        parts: list[CacheFile] = [kind(file) for file in files]
        check_alike(parts)
        n = len(parts)
        total = sum(len(part) for part in parts)
        if [len(part) for part in parts] != [len(range(i, total, n)) for i in range(n)]:
            raise CacheError(f"The shards of {whole} do not have the rows of one list; make them again.")
        ids = [parts[row % n].ids[row // n] for row in range(total)]
        if whole.is_file():
            cache = kind(whole)
            if cache.ids != ids or cache.settings() != parts[0].settings():
                raise CacheError(f"{whole} is there already, with other rows or settings than its shards; move one of them away.")
        _join(whole, kind, ids, parts, progress)
        return _joined(whole, files, keep)


def _joined(whole: Path, shards: list[Path], keep: bool) -> Merged:
    """The end of a merge: what only it needed is deleted."""
    cache = kind_of(whole)(whole)
    if not keep:
        for file in [whole.with_name(whole.name + ".partial"), *shards]:  # a jpeg file may have been packed from the partial
            file.unlink(missing_ok=True)
    return Merged(whole, len(cache), len(cache.rows), len(shards))


def _left(whole: Path) -> list[Path] | None:
    """The shards whose rows a file has already, since a merge ended before all were deleted; None where it lacks one of them."""
    files = shards_of(whole, all_of_them=False)
    cache = kind_of(whole)(whole)
    for file in files:
        part, named = kind_of(file)(file), shard_of(file)
        assert named is not None
        rows = named[1].rows(len(cache))  # of the whole file
        same_list = part.ids == [cache.ids[row] for row in rows] and part.captions == [cache.captions[row] for row in rows]
        if not same_list or part.settings() != cache.settings():
            return None
        done = part.rows
        if not ((cache.status[rows[done]] == Status.DONE) & (cache.checksum[rows[done]] == part.checksum[done])).all():
            return None
    return files


def _join(whole: Path, kind: type[CacheFile], ids: list[str], parts: list[CacheFile], progress: Callable[[int, int], None] | None) -> None:
    n = len(parts)
    partial = whole.with_name(whole.name + ".partial")
    captions = [parts[row % n].captions[row // n] for row in range(len(ids))]
    target = _begun(partial, kind, ids, captions, parts[0])
    if target is None:
        stored = [int(part.stored(row).nbytes) for part in parts for row in part.rows]
        check_room(sum(stored), len(stored), whole.parent, "the shards are kept")
        attributes = without_shard(parts)
        scratch = whole.with_name(whole.name + ".new")
        if issubclass(kind, FeatureCache):
            lay_out_features(scratch, ids, captions, attributes, parts[0].data.shape[1:])
        else:
            create(scratch, ids, captions, attributes)
        scratch.replace(partial)
        target = kind(partial, writable=True)
    with opened(partial, f"There is no room left for {whole}; the shards are kept") as file:
        for row in range(len(ids)):
            part, its = parts[row % n], row // n
            status = int(part.status[its])
            if status == Status.DONE and not (target.status[row] == Status.DONE and target.checksum[row] == part.checksum[its]):
                if not part.intact(its):
                    raise CacheError(f"Row {part.ids[its]} of {part.path} is damaged; mend it with: xmafast verify {part.path} --repair")
                target.take(row, part, its, file)
            elif status != Status.DONE:
                target.bytes[row], target.error[row], target.status[row] = part.bytes[its], part.error[its], status
            if progress:
                progress(row + 1, len(ids))
    target.flush()
    if isinstance(target, FrameCache):
        finish(target, whole)
    else:
        partial.replace(whole)


def _begun(partial: Path, kind: type[CacheFile], ids: list[str], captions: list[tuple[str, ...]], part: CacheFile) -> CacheFile | None:
    """An interrupted merge of the same rows, made from the same list."""
    if not partial.is_file():
        return None
    try:
        cache = kind(partial, writable=True)
    except CacheError:
        return None
    same_list = all(cache.attributes.get(key) == part.attributes.get(key) for key in ("root", "source_sha256"))
    return cache if same_list and cache.ids == ids and cache.captions == captions and cache.settings() == part.settings() else None
