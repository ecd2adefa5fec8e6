"""Adapters on the Hugging Face hub: push, pull and load, through huggingface_hub's own client.

Login, tokens, private repositories, revisions, proxies and the local store are that client's: ``hf auth login``, ``HF_TOKEN``,
``HF_HUB_OFFLINE``, ``HF_HOME``.
"""

from __future__ import annotations

import difflib
import logging
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import huggingface_hub
from huggingface_hub.utils import HFValidationError, validate_repo_id

from xmafast import __version__, retriever
from xmafast.backbone import LOCAL_CONFIG, LOCAL_WEIGHTS, Backbone
from xmafast.card import needs_own_file
from xmafast.errors import BackboneError, RunError, UsageError
from xmafast.export import CARD, VOCABULARY, Exported, export, is_path, portable, read_config, write_folder
from xmafast.hub import first_line
from xmafast.retriever import CONFIG, OWN_BACKBONE, WEIGHTS, Retriever

# all that is uploaded and downloaded: nothing else of a folder leaves a machine, and no pickle comes to one
_OWN = OWN_BACKBONE.removeprefix("./")
FILES = [
    *(CARD, "LICENSE", "LICENSE.txt", "LICENSE.md", "NOTICE", CONFIG, WEIGHTS),
    *(place + name for place in ("", f"{_OWN}/") for name in (LOCAL_CONFIG, LOCAL_WEIGHTS, VOCABULARY)),
]
REPO = re.compile(r"[\w.-]+/[\w.-]+", re.ASCII)
log = logging.getLogger("xmafast")


@dataclass(frozen=True)
class Pushed:
    """What was uploaded: to which repository, its address, which files, and what was exported for it, where something was."""

    repo: str
    url: str
    files: list[str]
    exported: Exported | None


def load(
    folder: str | Path,
    backbone: Backbone | None = None,
    second: Backbone | None = None,
    *,
    revision: str | None = None,
    token: str | bool | None = None,
    client: Any = None,
) -> Retriever:
    """The retriever that ``Retriever.save``, ``xmafast train`` or ``xmafast export`` wrote to a folder, or of a repository of the hub.

    What exists on this machine is taken, always. A string that names nothing here and is exactly ``user/name`` can be a repository, unless
    the folder ``user`` is here or is called ``runs``: then it is a path with a mistake in it, and nothing is asked of the hub. A ``Path``,
    and a string that begins with ``./``, ``/`` or ``~`` or has more or less than one slash, is never a repository; with ``revision`` it
    can be nothing else. Where the hub is asked, the log says so (a warning, which Python shows on stderr).

    backbone: one that is already in memory, to share it between adapters; its weights must be those of the training. second: likewise,
        for a method of two backbones. revision: a branch, tag or commit. token: None takes that of the client's login. client: in place of
        ``huggingface_hub.HfApi``.
    Raises RunError for a folder that is no run, a damaged file, a backbone with other weights, and what cannot be had from the hub;
    UsageError for a name that can be no repository.
    """
    if _is_here(folder):
        if revision is not None:
            raise UsageError(f"{folder} is a folder of this machine, which has no revisions; leave revision out, or pull the repository.")
        return _load(Path(folder), backbone, second)
    if revision is None and (mistake := _why_local(folder)):
        raise RunError(mistake)
    repo = check_repo(str(folder))
    log.warning("%s is no folder here; it is taken from the Hugging Face hub.", repo)
    with told(repo, "load"):
        found = Path((client or hub_client()).snapshot_download(repo_id=repo, revision=revision, token=token, allow_patterns=FILES))
    check_downloaded(found, repo)
    return _load(found, backbone, second, repo)


def pull(repo: str, out: str | Path, *, revision: str | None = None, token: str | bool | None = None, client: Any = None) -> list[str]:
    """Copy a repository of the hub to the new folder ``out``; returns its files.

    Raises UsageError for a name that can be no repository and a folder that exists; RunError for what cannot be had, is no adapter and no
    merged model, and a disk that cannot be written to.
    """
    check_repo(repo)
    out = Path(out)
    if out.exists() or out.is_symlink():
        raise UsageError(f"{out} exists already; name another --out, so that nothing is overwritten.")
    with told(repo, "pull"):
        found = Path((client or hub_client()).snapshot_download(repo_id=repo, revision=revision, token=token, allow_patterns=FILES))
    check_downloaded(found, repo)

    def fill(partial: Path) -> None:
        for name in FILES:
            if (found / name).is_file():
                (partial / name).parent.mkdir(exist_ok=True)
                shutil.copyfile(found / name, partial / name)

    write_folder(out, fill)
    return [name for name in FILES if (out / name).is_file()]


def push(
    source: str | Path,
    repo: str,
    *,
    revision: str | None = None,
    private: bool | None = None,
    message: str | None = None,
    token: str | bool | None = None,
    client: Any = None,
    **options: Any,
) -> Pushed:
    """Upload what ``export`` wrote, or a run, which is exported first with ``options``; the repository is made where there is none.

    private: of a repository that is made; None takes the account's default. revision: a branch, made where there is none. A folder with a
    card is uploaded as it is. Of any folder only the files that an export has are uploaded.

    Raises UsageError for a name that can be no repository and options that do not go with the folder; RunError for what ``export`` refuses,
    and where the hub cannot be reached or refuses.
    """
    check_repo(repo)
    source = Path(source)
    if is_exported(source):
        if options:
            raise UsageError(
                f"{source} is exported already, so {next(iter(options))} changes nothing in it; leave it out, or push the run."
            )
        if (source / CONFIG).is_file() and (config := read_config(source)) != portable(config):
            raise UsageError(f"{source / CONFIG} names a backbone by a path of this machine; write another folder with: xmafast export")
        return _upload(source, repo, revision, private, message, token, client, None)
    with tempfile.TemporaryDirectory() as place:
        exported = export(source, Path(place) / "export", repo=repo, **options)
        return _upload(exported.folder, repo, revision, private, message, token, client, exported)


def _upload(
    folder: Path,
    repo: str,
    revision: str | None,
    private: bool | None,
    message: str | None,
    token: str | bool | None,
    client: Any,
    exported: Exported | None,
) -> Pushed:
    client = client or hub_client()
    with told(repo, "push"):
        url = client.create_repo(repo, private=private, token=token, exist_ok=True)
        if revision is not None:
            client.create_branch(repo, branch=revision, token=token, exist_ok=True)
        client.upload_folder(
            repo_id=repo,
            folder_path=str(folder),
            revision=revision,
            token=token,
            commit_message=message or f"Export of xmafast {__version__}",
            allow_patterns=FILES,
        )
    return Pushed(repo, str(url), [name for name in FILES if (folder / name).is_file()], exported)


def hub_client() -> Any:
    """huggingface_hub's client, which knows of logins and of the local store."""
    return huggingface_hub.HfApi(library_name="xmafast", library_version=__version__)


def is_exported(folder: Path) -> bool:
    """Whether a folder is one that ``export`` wrote, or looks just so."""
    return (folder / CARD).is_file() and any((folder / name).is_file() for name in (CONFIG, LOCAL_CONFIG))


def check_repo(repo: str) -> str:
    """``repo``, where it can be a repository. Raises UsageError."""
    try:
        if not REPO.fullmatch(repo):
            raise HFValidationError("one slash; letters, digits, '-', '_' and '.'")
        validate_repo_id(repo)
    except HFValidationError as error:
        raise UsageError(
            f"{repo!r} can be no repository of the hub, which is named user/name, in letters, digits, '-', '_' and '.', neither part "
            "beginning or ending with '-' or '.'."
        ) from error
    return repo


def _is_here(named: str | Path) -> bool:
    try:
        return Path(named).exists()
    except OSError:  # a name that is too long for a file
        return False


def _why_local(named: str | Path) -> str | None:
    """Why a name of nothing that is here is a path all the same; None where it can be a repository."""
    text = str(named)
    missing = f"{text} does not exist, so there is no {CONFIG}; name the folder of a run that `xmafast train` wrote"
    if isinstance(named, Path) or not REPO.fullmatch(text) or text.startswith("."):
        return f"{missing}, or a repository of the hub, as user/name."
    first, last = text.split("/")
    if Path(first).is_dir() or first == "runs":
        near = difflib.get_close_matches(last, sorted(p.name for p in Path(first).iterdir()) if Path(first).is_dir() else [], 1, 0.6)
        hint = f" Did you mean {first}/{near[0]}?" if near else ""
        return f"{missing}.{hint} (The folder {first} is local, so the hub was not asked; to ask it, name a revision, as revision='main'.)"
    return None


def _load(folder: Path, backbone: Backbone | None, second: Backbone | None, repo: str | None = None) -> Retriever:
    if (folder / LOCAL_CONFIG).is_file() and not (folder / CONFIG).is_file():
        how = f"xmafast.load_backbone({str(folder)!r})"
        raise RunError(f"{repo or folder} holds a plain open_clip model, not an adapter; load it with {how}, or with open_clip.")
    try:
        return retriever.load(folder, backbone, second)
    except (BackboneError, UsageError) as error:
        wanted = read_config(retriever.adapter_folder(folder))["backbone"]
        if backbone is not None or is_path(wanted["name"]) or is_path(wanted["pretrained"]) or not needs_own_file(wanted):
            raise
        raise RunError(
            f"{repo or folder} was trained on a backbone that no public name gives back: {wanted['name']} ({wanted['pretrained']}), sha256 "
            f"{wanted['sha256'][:12]}…. Load it from its file or folder, and give it: xmafast.load({str(repo or folder)!r}, backbone=…)."
        ) from error


def check_downloaded(folder: Path, repo: str) -> None:
    """Raise RunError unless a repository holds an adapter or a merged model, and names no file of this machine.

    Its configuration is someone else's: it must not make this program read a file that it names.
    """
    if not any((folder / name).is_file() for name in (CONFIG, LOCAL_CONFIG)):
        raise RunError(f"The repository {repo} holds neither an adapter ({CONFIG}) nor an open_clip model ({LOCAL_CONFIG}).")
    if not (folder / CONFIG).is_file():
        return
    config = read_config(folder)
    named = [config["backbone"], config.get("second", {}), config["options"], *(options for _, options in config.get("plugs", []))]
    for of in named:
        for key in ("name", "pretrained", "second", "second_pretrained"):
            value = of.get(key)
            if isinstance(value, str) and (is_path(value) or value == ".."):
                raise RunError(f"{repo} names a backbone by a path, {value!r}, which is of another machine; it cannot be used.")


@contextmanager
def told(repo: str, doing: str) -> Iterator[None]:
    """Turn what the client raises into one sentence."""
    try:
        yield
    except Exception as error:
        raise RunError(sentence(error, repo, doing)) from error


LOGIN = "log in with `hf auth login`, or set HF_TOKEN"


def sentence(error: BaseException, repo: str, doing: str) -> str:
    """What an error of the client means, and what to do."""
    chain = [error]
    while (cause := chain[-1].__cause__) is not None and cause not in chain:
        chain.append(cause)
    kinds = {kind.__name__ for each in chain for kind in type(each).__mro__}  # by name: the client has changed its own HTTP library
    status = next((r.status_code for each in chain if (r := getattr(each, "response", None)) is not None), None)
    reason = first_line(error) if isinstance(error, Exception) else type(error).__name__
    rules: list[tuple[Callable[[], bool], str]] = [
        (lambda: "OfflineModeIsEnabled" in kinds, f"cannot {doing} {repo}: HF_HUB_OFFLINE keeps the client off the network; unset it."),
        (lambda: "GatedRepoError" in kinds, f"{repo} asks to accept its conditions first, on its page on the hub; then {LOGIN}."),
        (lambda: "RevisionNotFoundError" in kinds, f"the repository {repo} has no such revision; its page on the hub lists them."),
        (
            lambda: "RepositoryNotFoundError" in kinds,
            f"there is no repository {repo} on the hub, or it is private and the login at hand may not see it; check the name, or {LOGIN}.",
        ),
        (
            lambda: "LocalTokenNotFoundError" in kinds or status == 401,
            f"not logged in to the hub, which it takes to {doing} {repo}; {LOGIN}.",
        ),
        (lambda: status == 403, f"the login at hand may not {doing} {repo}; use an account or a token that may, and {LOGIN}."),
        (lambda: status is not None, f"the hub answered {status} to {doing} {repo} ({reason}); try again later."),
        (
            lambda: bool(kinds & {"LocalEntryNotFoundError", "TransportError", "ConnectionError", "Timeout", "TimeoutError", "gaierror"}),
            f"cannot {doing} {repo}: the hub cannot be reached ({reason}); be online, or name a folder of this machine.",
        ),
    ]
    said = next((said for holds, said in rules if holds()), f"cannot {doing} {repo}: {reason}.")
    return said[0].upper() + said[1:] if not said.startswith(repo) else said
