"""The second half of ``xmafast cache --level tokens`` or ``embeddings``: the frozen backbone over cached frames."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from xmafast.cli.output import bar, note

if TYPE_CHECKING:
    from xmafast.cache import Shard, Summary


def frames_there(folder: Path, part: Shard | None) -> dict[str, Path]:
    """The files of frames that features can be made of, by split."""
    from xmafast.cache.shards import split_of

    files = sorted(folder.glob("*.h5"))
    if part is not None:  # another shard's file is no help, a whole one is
        files = [file for file in files if file == part.path(file.with_name(f"{split_of(file)}.h5")) or file.stem == split_of(file)]
    return {split_of(file): file for file in files}


def cache_features(
    folder: Path, names: list[str] | None, part: Shard | None, level: str, block: int | None, backbone: str | None, pretrained: str | None
) -> tuple[Path, dict[str, Summary]]:
    """(the features' folder, summary of each split). ``names``: the splits, None for all that are cached."""
    from xmafast.cache import build_features, feature_folder, open_splits
    from xmafast.cache.shards import open_part
    from xmafast.errors import CacheError
    from xmafast.pretrained import backbone_for
    from xmafast.retriever import best_device

    found = open_splits(folder) if part is None else open_part(folder, part)
    lost = [name for name in names or [] if name not in found]
    if lost:
        raise CacheError(f"{folder} has no frames of {lost[0]} (it has: {', '.join(found)}); cache them with --split {lost[0]}.")
    wanted = {name: reader for name, reader in found.items() if names is None or name in names}
    model = backbone_for(next(iter(wanted.values())).attributes, backbone, pretrained).to(best_device())
    place = feature_folder(folder, model, level, block)
    note(f"{level.capitalize()} of the frozen {model.name} ({model.pretrained}) into {place}")
    summaries = {}
    for name, reader in wanted.items():
        if reader.shape[2] != model.image_size:
            note(f"The frames are {reader.shape[2]} px; they are resized to the backbone's {model.image_size} px.")
        with bar(f"{level} of {name}", "videos") as update:
            summaries[name] = build_features(reader, place / reader.path.name, model, level=level, block=block, progress=update)
    return place, summaries
