"""``xmafast export``, ``push`` and ``pull``: a run for others, and an adapter of others."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated, Any

import typer

from xmafast.cli.options import JSON, WORKSPACE
from xmafast.cli.output import note, out, print_json
from xmafast.cli.workspace import run_folder


class Dtype(str, Enum):
    float32 = "float32"
    float16 = "float16"


LICENSE = Annotated[str | None, typer.Option("--license", help="The licence that you give it, as apache-2.0 (default: unspecified).")]
DTYPE = Annotated[Dtype, typer.Option(help="Of the stored tensors; float16 halves the file.")]
MERGED = Annotated[bool, typer.Option("--merged", help="The backbone with low-rank updates added, as a plain open_clip model.")]
DATASET = Annotated[str | None, typer.Option(help="With --merged, of a run for several data sets: whose updates.")]
BOOTSTRAP = Annotated[int, typer.Option(min=0, help="Draws of the videos for the card's 95 % intervals; 0 leaves them out.")]
REVISION = Annotated[str | None, typer.Option(help="A branch, tag or commit (default: main).")]
REPO = Annotated[str, typer.Argument(help="A repository of the Hugging Face hub: user/name.")]


def export(
    folder: Annotated[Path, typer.Option("--out", help="The folder for it, which must not exist.")],
    run: Annotated[Path | None, typer.Argument(help="A run's folder (default: the newest run).")] = None,
    dtype: DTYPE = Dtype.float32,
    license: LICENSE = None,
    repo: Annotated[str | None, typer.Option(help="Where it will lie on the hub, user/name, for the card.")] = None,
    merged: MERGED = False,
    dataset: DATASET = None,
    bootstrap: BOOTSTRAP = 10_000,
    json: JSON = False,
    workspace: WORKSPACE = Path(),
) -> None:
    """Write a run's adapter for others: its weights, how to load it, and a model card filled from the run. Nothing goes over the network.

    Evaluate first: the card takes its numbers from the record in the run's folder. Examples: xmafast export --out export --license
    apache-2.0 | xmafast export runs/lora --out merged --merged
    """
    from xmafast.export import export as write
    from xmafast.sharing import check_repo

    run = run_folder(run, workspace)
    if repo is not None:
        check_repo(repo)
    options: dict[str, Any] = {"dtype": dtype.value, "licence": license, "repo": repo, "merged": merged, "dataset": dataset}
    written = write(run, folder, samples=bootstrap, **options)
    for remark in written.remarks:
        note(remark)
    if json:
        print_json({"folder": str(folder), "run": str(run), "files": written.files, "remarks": written.remarks})
        return
    size = sum((folder / name).stat().st_size for name in written.files)
    out.print(f"Wrote {folder} from {run}: {', '.join(written.files)} ({size / 1e6:.1f} MB)")
    note(f"Next: read {folder / 'README.md'}, then: xmafast push {folder} {repo or 'USER/NAME'}")


def push(
    source: Annotated[Path, typer.Argument(metavar="FOLDER|RUN", help="What `xmafast export` wrote, or a run, which is exported first.")],
    repo: REPO,
    private: Annotated[bool, typer.Option("--private", help="Where the repository is made: only you can see it.")] = False,
    revision: REVISION = None,
    message: Annotated[str | None, typer.Option(help="Of the commit.")] = None,
    dtype: Annotated[Dtype | None, typer.Option(help="Of a run: of the stored tensors (default: float32).")] = None,
    license: LICENSE = None,
    merged: MERGED = False,
    dataset: DATASET = None,
    json: JSON = False,
    workspace: WORKSPACE = Path(),
) -> None:
    """Upload an exported adapter, or a run, to the Hugging Face hub; the repository is made where there is none.

    Log in with `hf auth login`, or set HF_TOKEN. Only the files of an export are uploaded, whatever else lies in the folder.
    Examples: xmafast push export me/msrvtt-adapter | xmafast push runs/mine me/draft --private --license mit
    """
    from xmafast.sharing import push as upload

    given: dict[str, Any] = {
        "dtype": dtype.value if dtype else None,
        "licence": license,
        "merged": merged or None,
        "dataset": dataset,
    }
    options = {key: value for key, value in given.items() if value is not None}
    done = upload(run_folder(source, workspace), repo, revision=revision, private=private or None, message=message, **options)
    for remark in done.exported.remarks if done.exported else []:
        note(remark)
    if json:
        print_json({"repo": done.repo, "url": done.url, "files": done.files})
        return
    out.print(f"Pushed {', '.join(done.files)} to {done.url}")


def pull(
    repo: REPO,
    folder: Annotated[Path, typer.Option("--out", help="The folder for it, which must not exist.")],
    revision: REVISION = None,
    json: JSON = False,
) -> None:
    """Copy an adapter from the Hugging Face hub to a folder, which eval and search take as a run.

    Example: xmafast pull me/msrvtt-adapter --out runs/theirs
    """
    from xmafast.retriever import CONFIG
    from xmafast.sharing import pull as download

    files = download(repo, folder, revision=revision)
    if json:
        print_json({"repo": repo, "folder": str(folder), "files": files})
        return
    out.print(f"Wrote {folder}: {', '.join(files)}")
    note(f"Next: xmafast eval {folder} CACHE" if CONFIG in files else f'Next: xmafast search "…" CACHE --backbone {folder}')
