"""``xmafast eval``: the metrics of a run, beside the frozen model's."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from xmafast.cli.options import IMPL, JSON, PATCH, TOPK, WORKSPACE, Impl, method_options
from xmafast.cli.output import bar, metrics_table, note, out, print_json
from xmafast.cli.workspace import cache_folder, frozen_backbone, run_cache, run_folder

if TYPE_CHECKING:
    from xmafast.rerank import Settings

RERANK = "Also rank by dsl, is, qbnorm or nnn, shown beside the plain numbers; repeat it for several. Not comparable with plain numbers."
OPTIONS = ("temperature", "beta", "weight", "neighbours", "bank")


def evaluate(
    run: Annotated[Path | None, typer.Argument(help="A run's folder (default: the newest run).")] = None,
    cache: Annotated[Path | None, typer.Argument(help="A cache's folder or file (default: the run's own).")] = None,
    topk: TOPK = [1, 5, 10],  # noqa: B006 - typer copies it
    zero_shot: Annotated[bool, typer.Option("--zero-shot", help="The frozen backbone alone; the argument is then the cache.")] = False,
    backbone: Annotated[str | None, typer.Option(help="With --zero-shot: an open_clip ViT or demo (default: the cache's).")] = None,
    pretrained: Annotated[str | None, typer.Option(help="With --zero-shot: a tag, a weights file, or none.")] = None,
    similarity: Annotated[Path | None, typer.Option(help="Metrics of a square .npy matrix, texts by videos; no model.")] = None,
    rerank: Annotated[list[str], typer.Option("--rerank", help=RERANK)] = [],  # noqa: B006
    settings: Annotated[
        list[str], typer.Option("--set", help=f"An option of re-ranking, as --set temperature=0.02: {', '.join(OPTIONS)}.")
    ] = [],  # noqa: B006
    stream: Annotated[
        Path | None, typer.Option(help="Features of another stream of the videos, for a run that reads one (default: its training's).")
    ] = None,
    bootstrap: Annotated[int, typer.Option(min=0, help="Resample the videos N times for 95 % intervals.")] = 0,
    patch: PATCH = 1.0,
    impl: IMPL = Impl.auto,
    json: JSON = False,
    workspace: WORKSPACE = Path(),
) -> None:
    """Evaluate a run on its cache's test split: text to video and video to text, beside zero-shot.

    The record, with the rank of every query, is kept in the run's folder (eval-test.json).

    Examples: xmafast eval --topk 1 5 10 | xmafast eval --bootstrap 10000 --rerank dsl | xmafast eval --zero-shot caches/msrvtt |
    xmafast eval --similarity sim.npy
    """
    from xmafast.errors import UsageError
    from xmafast.rerank import check

    topk = sorted(set(topk))
    names = [name for name in dict.fromkeys(rerank) if name != "none"]
    check(names)
    how, bank = rerank_settings(settings, names)
    if similarity is not None:
        result = matrix_metrics(similarity, topk, bootstrap, names, how)
        rows = [(similarity.name, result)]
        title = f"{similarity}, {result['queries']} texts x {result['candidates']} videos"
    elif zero_shot:
        result, title = zero_shot_metrics(cache or run, workspace, topk, bootstrap, backbone, pretrained, impl.value, names, how, bank)
        rows = [("zero-shot", result)]
    else:
        if backbone or pretrained:
            raise UsageError("--backbone and --pretrained go with --zero-shot; a run brings its own backbone.")
        named = run_folder(run, workspace)
        result, title = run_metrics(named, cache, workspace, topk, bootstrap, impl.value, patch, names, how, bank, stream)
        rows = [("zero-shot", result["zero_shot"]), ("adapted", result)]
    if json:
        print_json(result)
        return
    rows += [(f"{rows[-1][0]} + {name} *", value) for name, value in result.get("rerank", {}).items()]
    out.print(metrics_table(title, rows, topk))
    for name, value in result.get("rerank", {}).items():
        out.print(f"* {name} uses {value['uses']}. Its numbers are not comparable with plain ones.")
    if "trainable" in result:
        out.print(f"Trained {result['trainable']:,} parameters, {result['trainable_percent']:.2f} % of the backbone's.")


def rerank_settings(given: list[str], names: list[str]) -> tuple[dict[str, Any], int]:
    """``["beta=10", "bank=500"]`` -> (the settings, the bank's size). Raises UsageError."""
    from xmafast.errors import UsageError, unknown
    from xmafast.evaluation import BANK
    from xmafast.rerank import Settings

    how = method_options(given)
    if how and not names:
        raise UsageError("--set is for re-ranking; name a way with --rerank dsl.")
    for key, value in how.items():
        if key not in OPTIONS:
            raise unknown("re-ranking option", key, OPTIONS)
        whole = key in ("neighbours", "bank")
        if isinstance(value, bool) or not isinstance(value, int if whole else (int, float)) or value <= 0:
            raise UsageError(f"--set {key}={value} must be a {'whole ' if whole else ''}number above 0.")
    bank = int(how.pop("bank", BANK))
    Settings(**how).check()
    return how, bank


def matrix_metrics(path: Path, topk: list[int], samples: int, rerank: list[str], how: dict[str, Any]) -> dict[str, Any]:
    """Metrics of a similarity matrix in a ``.npy`` file; no pickled object is read."""
    import numpy as np

    from xmafast.errors import DataError, UsageError
    from xmafast.evaluation import summary
    from xmafast.ranks import rank_matrix
    from xmafast.rerank import NEED_BANK, Settings

    if needy := sorted(NEED_BANK & {*rerank}):
        raise UsageError(f"--rerank {needy[0]} needs a bank of training queries, which a matrix has none of; dsl and is do without.")
    try:
        matrix = np.asarray(np.load(path, allow_pickle=False))
    except FileNotFoundError as error:
        raise DataError(f"There is no file {path}; name a square matrix of scores, texts by videos, that numpy.save wrote.") from error
    except (ValueError, OSError, EOFError) as error:
        raise DataError(f"{path} is not a .npy array of numbers: {str(error).splitlines()[0]}") from error
    if not np.issubdtype(matrix.dtype, np.number) or np.iscomplexobj(matrix):
        raise DataError(f"{path} holds {matrix.dtype}, not real numbers.")
    ranks = rank_matrix(matrix)
    result: dict[str, Any] = {**summary(ranks, topk, samples), "queries": len(ranks.t2v), "candidates": len(ranks.v2t)}
    if rerank:
        if "temperature" not in how and float(np.nanmax(np.abs(matrix), initial=0)) > 1.001:
            how = {**how, "temperature": 1.0}
            note("The scores go beyond cosines, so they are taken as logits: temperature 1 (--set temperature=T sets another).")
        result["rerank"] = reranked_matrix(matrix, Settings(**how), rerank, topk, samples)
    return result


def reranked_matrix(matrix: Any, settings: Settings, names: list[str], topk: list[int], samples: int) -> dict[str, Any]:
    import torch

    from xmafast.evaluation import summary
    from xmafast.rerank import Matrix, described, rerank

    scores = torch.from_numpy(matrix.astype("float64"))
    own = torch.arange(len(scores))
    return {name: {**summary(rerank(name, Matrix(scores), own, settings), topk, samples), **described(name, settings)} for name in names}


def evaluation_cache(folder: Path) -> Any:
    """The split to evaluate on: test where there is one, else the only one there is."""
    from xmafast.cache import open_splits
    from xmafast.errors import CacheError

    splits = open_splits(folder)
    if "test" in splits:
        return splits["test"]
    if len(splits) == 1:
        return next(iter(splits.values()))
    raise CacheError(f"{folder} has no test split (it has: {', '.join(splits)}); name the file of the split to evaluate on.")


def bank_cache(cache: Any, names: list[str]) -> Any:
    """The training set beside an evaluation's cache, where re-ranking needs one. Raises CacheError where there is none."""
    from xmafast.cache import open_splits
    from xmafast.errors import CacheError
    from xmafast.rerank import NEED_BANK

    if not (needy := sorted(NEED_BANK & {*names})):
        return None
    splits = open_splits(cache.path.parent)
    if "train" not in splits:
        raise CacheError(f"--rerank {needy[0]} takes its bank from the train split, which {cache.path.parent} lacks; cache it first.")
    return splits["train"]


def zero_shot_metrics(
    named: Path | None,
    workspace: Path,
    topk: list[int],
    samples: int,
    backbone: str | None,
    pretrained: str | None,
    impl: str,
    rerank: list[str],
    how: dict[str, Any],
    bank_videos: int,
) -> tuple[dict[str, Any], str]:
    from xmafast.evaluation import assess, counts, protocol
    from xmafast.rerank import Settings
    from xmafast.retriever import Retriever, best_device

    cache = evaluation_cache(cache_folder(named, workspace))
    bank = bank_cache(cache, rerank)
    retriever = Retriever(frozen_backbone(cache.path, backbone, pretrained), None, impl=impl).to(best_device())
    announce(cache, retriever)
    store = cache.path.parent / "embeddings"
    with bar("zero-shot", "videos") as update:
        found = assess(
            retriever, cache, rerank_by=rerank, settings=Settings(**how), bank=bank, bank_videos=bank_videos, store=store, progress=update
        )
    result = {**found.result(topk, samples), **counts(found.ranks, cache), "protocol": protocol(retriever, cache)}
    return result, f"Zero-shot {retriever.backbone.name} on {cache.label}, {sizes(result)}"


def run_metrics(
    run: Path,
    named_cache: Path | None,
    workspace: Path,
    topk: list[int],
    samples: int,
    impl: str,
    patch: float,
    rerank: list[str],
    how: dict[str, Any],
    bank_videos: int,
    stream: Path | None = None,
) -> tuple[dict[str, Any], str]:
    """A run's metrics, with the frozen model's under the same header as ``zero_shot``."""
    from xmafast.records import evaluate_run, record_path
    from xmafast.rerank import Settings
    from xmafast.retriever import adapter_folder

    adapter_folder(run)  # first: a folder that is no run is said to be none
    cache = evaluation_cache(cache_folder(named_cache, workspace) if named_cache else run_cache(run))
    record, before, after = evaluate_run(
        run,
        cache,
        patch=patch,
        impl=impl,
        rerank_by=rerank,
        settings=Settings(**how),
        bank=bank_cache(cache, rerank),
        bank_videos=bank_videos,
        stream=stream,
        announce=lambda retriever: announce(cache, retriever, run),
        bars=lambda label: bar(label, "videos"),
    )
    kept = ("queries", "candidates", "missing", "failed", "protocol", "checkpoint_rule", "options", "trainable", "trainable_percent")
    result = {**after.result(topk, samples), **{key: record.data[key] for key in kept}, "run": str(run)}
    result["zero_shot"] = before.result(topk, samples)
    result["record"] = str(record_path(run, cache))
    method = record.data["options"]["method"] or record.data["protocol"]["header"]
    return result, f"{method} on {cache.label}, {sizes(result)}"


def sizes(result: dict[str, Any]) -> str:
    lost = result["missing"] + result["failed"]
    return f"{result['queries']} queries, {result['candidates']} videos" + (f" ({lost} of the split missing or failed)" if lost else "")


def announce(cache: Any, retriever: Any, run: Path | None = None) -> None:
    """Say what was taken, and what will be resized."""
    note(f"Evaluating {run or 'the frozen ' + retriever.backbone.name} on {cache.path}")
    if cache.shape[2] != retriever.backbone.image_size:
        note(f"The cache's frames are {cache.shape[2]} px; they are resized to the backbone's {retriever.backbone.image_size} px.")
