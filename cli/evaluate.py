"""``xmafast eval``: the metrics of a run, beside the frozen model's."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from xmafast.cli.options import IMPL, JSON, PATCH, TOPK, WORKSPACE, Impl
from xmafast.cli.output import bar, metrics_table, note, out, print_json
from xmafast.cli.workspace import cache_folder, frozen_backbone, run_cache, run_folder


def evaluate(
    run: Annotated[Path | None, typer.Argument(help="A run's folder (default: the newest run).")] = None,
    cache: Annotated[Path | None, typer.Argument(help="A cache's folder or file (default: the run's own).")] = None,
    topk: TOPK = [1, 5, 10],  # noqa: B006 - typer copies it
    zero_shot: Annotated[bool, typer.Option("--zero-shot", help="The frozen backbone alone; the argument is then the cache.")] = False,
    backbone: Annotated[str | None, typer.Option(help="With --zero-shot: an open_clip ViT or demo (default: the cache's).")] = None,
    pretrained: Annotated[str | None, typer.Option(help="With --zero-shot: a tag, a weights file, or none.")] = None,
    similarity: Annotated[Path | None, typer.Option(help="Metrics of a square .npy matrix, texts by videos; no model.")] = None,
    bootstrap: Annotated[int, typer.Option(min=0, help="Resample the queries N times for 95 % intervals.")] = 0,
    patch: PATCH = 1.0,
    impl: IMPL = Impl.auto,
    json: JSON = False,
    workspace: WORKSPACE = Path(),
) -> None:
    """Evaluate a run on its cache's test split: text to video and video to text, beside zero-shot.

    Examples: xmafast eval --topk 1 5 10 | xmafast eval --zero-shot caches/msrvtt | xmafast eval --similarity sim.npy
    """
    topk = sorted(set(topk))
    if similarity is not None:
        result = matrix_metrics(similarity, topk, bootstrap)
        rows = [(similarity.name, result)]
        title = f"{similarity}, {result['queries']} texts x {result['candidates']} videos"
    elif zero_shot:
        result, title = zero_shot_metrics(cache or run, workspace, topk, bootstrap, backbone, pretrained, impl.value)
        rows = [("zero-shot", result)]
    else:
        from xmafast.errors import UsageError

        if backbone or pretrained:
            raise UsageError("--backbone and --pretrained go with --zero-shot; a run brings its own backbone.")
        result, title = run_metrics(run_folder(run, workspace), cache, workspace, topk, bootstrap, impl.value, patch)
        rows = [("zero-shot", result["zero_shot"]), ("adapted", result)]
    if json:
        print_json(result)
        return
    out.print(metrics_table(title, rows, topk))
    if "trainable" in result:
        out.print(f"Trained {result['trainable']:,} parameters, {result['trainable_percent']:.2f} % of the backbone's.")


def matrix_metrics(path: Path, topk: list[int], samples: int) -> dict[str, Any]:
    """Metrics of a similarity matrix in a ``.npy`` file; no pickled object is read."""
    import numpy as np

    from xmafast.errors import DataError
    from xmafast.evaluation import rank_matrix
    from xmafast.metrics import bootstrap

    try:
        matrix = np.load(path, allow_pickle=False)
    except FileNotFoundError as error:
        raise DataError(f"There is no file {path}.") from error
    except (ValueError, OSError, EOFError) as error:
        raise DataError(f"{path} is not a .npy array of numbers: {str(error).splitlines()[0]}") from error
    if not np.issubdtype(np.asarray(matrix).dtype, np.number) or np.iscomplexobj(matrix):
        raise DataError(f"{path} holds {np.asarray(matrix).dtype}, not real numbers.")
    ranks = rank_matrix(np.asarray(matrix))
    result: dict[str, Any] = {**ranks.metrics(topk), "queries": len(ranks.t2v), "candidates": len(ranks.v2t)}
    if samples:
        result["interval"] = {"t2v": bootstrap(ranks.t2v, topk, samples), "v2t": bootstrap(ranks.v2t, topk, samples)}
    return result


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


def zero_shot_metrics(
    named: Path | None, workspace: Path, topk: list[int], samples: int, backbone: str | None, pretrained: str | None, impl: str
) -> tuple[dict[str, Any], str]:
    from xmafast.evaluation import evaluate
    from xmafast.retriever import Retriever, best_device

    cache = evaluation_cache(cache_folder(named, workspace))
    retriever = Retriever(frozen_backbone(cache.path, backbone, pretrained), None, impl=impl).to(best_device())
    announce(cache, retriever)
    with bar("zero-shot", "videos") as update:
        result = evaluate(retriever, cache, topk=topk, bootstrap_samples=samples, store=cache.path.parent / "embeddings", progress=update)
    return result, f"Zero-shot {retriever.backbone.name} on {cache.label}, {sizes(result)}"


def run_metrics(
    run: Path, named_cache: Path | None, workspace: Path, topk: list[int], samples: int, impl: str, patch: float = 1.0
) -> tuple[dict[str, Any], str]:
    """A run's metrics, with the frozen model's under the same header as ``zero_shot``."""
    from xmafast.evaluation import evaluate
    from xmafast.retriever import Retriever, best_device, load

    retriever = load(run).to(best_device())
    retriever.impl, retriever.patch = impl, patch
    cache = evaluation_cache(cache_folder(named_cache, workspace) if named_cache else run_cache(run))
    announce(cache, retriever, run)
    frozen = Retriever(retriever.backbone, None, retriever.pooling, words=retriever.words, temperature=retriever.temperature, impl=impl)
    results = []
    for label, model, store in (("zero-shot", frozen, cache.path.parent / "embeddings"), ("adapted", retriever, run / "embeddings")):
        with bar(label, "videos") as update:
            results.append(evaluate(model, cache, topk=topk, bootstrap_samples=samples, store=store, progress=update))
    result = results[1]
    result["zero_shot"] = {key: results[0][key] for key in ("t2v", "v2t", "interval") if key in results[0]}
    result["run"] = str(run)
    result["trainable"] = retriever.trainable
    result["trainable_percent"] = 100 * retriever.trainable / retriever.backbone.shape.parameters
    return result, f"{retriever.method.name if retriever.method else retriever.header} on {cache.label}, {sizes(result)}"


def sizes(result: dict[str, Any]) -> str:
    lost = result["missing"] + result["failed"]
    return f"{result['queries']} queries, {result['candidates']} videos" + (f" ({lost} of the split missing or failed)" if lost else "")


def announce(cache: Any, retriever: Any, run: Path | None = None) -> None:
    """Say what was taken, and what will be resized."""
    note(f"Evaluating {run or 'the frozen ' + retriever.backbone.name} on {cache.path}")
    if cache.shape[2] != retriever.backbone.image_size:
        note(f"The cache's frames are {cache.shape[2]} px; they are resized to the backbone's {retriever.backbone.image_size} px.")
