"""The hub: which names are repositories, what is uploaded and downloaded, and one sentence for whatever goes wrong there."""

import json
import logging
import shutil

import huggingface_hub
import pytest
import torch
from huggingface_hub import errors

import xmafast
from xmafast import sharing
from xmafast.errors import RunError, UsageError
from xmafast.export import export
from xmafast.retriever import CONFIG, WEIGHTS, Retriever
from xmafast.sharing import FILES, check_repo, load, pull, push, sentence


class Hub:
    """A client whose repositories are folders; it refuses what huggingface_hub's own would not be called with."""

    def __init__(self, root):
        self.root, self.calls = root, []

    def create_repo(self, repo_id, *, private=None, token=None, exist_ok=False):
        self.calls.append(("create_repo", repo_id, private, token))
        (self.root / repo_id).mkdir(parents=True, exist_ok=exist_ok)
        return f"https://hub.example/{repo_id}"

    def create_branch(self, repo_id, *, branch, token=None, exist_ok=False):
        self.calls.append(("create_branch", repo_id, branch))

    def upload_folder(self, *, repo_id, folder_path, revision, token, commit_message, allow_patterns):
        self.calls.append(("upload_folder", repo_id, revision, commit_message))
        shutil.copytree(folder_path, self.root / repo_id, dirs_exist_ok=True, ignore=self.ignore(folder_path, allow_patterns))

    def snapshot_download(self, *, repo_id, revision, token, allow_patterns):
        self.calls.append(("snapshot_download", repo_id, revision, token))
        return str(self.root / repo_id)

    @staticmethod
    def ignore(top, patterns):
        def ignored(folder, names):
            place = "" if folder == str(top) else f"{folder[len(str(top)) + 1 :]}/"
            return [n for n in names if place + n not in patterns and not any(p.startswith(f"{place}{n}/") for p in patterns)]

        return ignored


class Never:
    def __getattr__(self, name):
        raise AssertionError(f"the hub was asked: {name}")


@pytest.fixture
def hub(tmp_path):
    return Hub(tmp_path / "hub")


@pytest.fixture
def run(demo_backbone, tmp_path):
    torch.manual_seed(0)
    model = Retriever(demo_backbone, "cross-modal")
    with torch.no_grad():
        for parameter in model.trained.values():
            parameter.normal_(std=0.05)
    return model.save(tmp_path / "runs" / "mine")


def test_what_is_pushed_is_loaded_and_pulled(demo_backbone, run, hub, tmp_path, monkeypatch, caplog):
    monkeypatch.chdir(tmp_path)
    export(run, "out")
    (tmp_path / "out" / "embeddings.h5").write_text("private")
    (tmp_path / "out" / ".git").mkdir()
    done = push("out", "me/x", private=True, revision="draft", token="t", client=hub)
    assert done.files == ["README.md", CONFIG, WEIGHTS]
    assert done.url == "https://hub.example/me/x"
    assert sorted(p.name for p in (hub.root / "me/x").iterdir()) == sorted(done.files), "nothing else is uploaded"
    assert hub.calls[:2] == [("create_repo", "me/x", True, "t"), ("create_branch", "me/x", "draft")]
    assert hub.calls[2][:3] == ("upload_folder", "me/x", "draft")
    with caplog.at_level(logging.WARNING, "xmafast"):
        again = load("me/x", demo_backbone, revision="draft", token="t", client=hub)
    assert hub.calls[-1] == ("snapshot_download", "me/x", "draft", "t")
    assert "me/x is no folder here; it is taken from the Hugging Face hub." in caplog.text
    assert torch.equal(again.encode_text(["owl"]), xmafast.load(run, demo_backbone).encode_text(["owl"]))
    assert pull("me/x", "theirs", client=hub) == ["README.md", CONFIG, WEIGHTS]
    assert (tmp_path / "theirs" / WEIGHTS).read_bytes() == (run / WEIGHTS).read_bytes()


def test_a_run_is_exported_on_the_way_and_its_card_names_the_repository(run, hub):
    done = push(run, "me/x", licence="mit", dtype="float16", client=hub)
    text = (hub.root / "me/x" / "README.md").read_text()
    assert 'xmafast.load("me/x")' in text
    assert "license: mit" in text
    assert "float16" in text
    assert done.exported is not None
    assert not (run / "README.md").exists()


def test_options_of_an_export_do_not_go_with_what_is_exported(run, hub, tmp_path):
    export(run, tmp_path / "out")
    with pytest.raises(UsageError, match="is exported already, so licence changes nothing"):
        push(tmp_path / "out", "me/x", licence="mit", client=hub)
    assert not hub.calls


def test_a_folder_that_names_a_path_of_this_machine_is_not_pushed_as_it_is(run, hub):
    (run / "README.md").write_text("written by hand")
    config = json.loads((run / CONFIG).read_text())
    config["backbone"] |= {"name": "/home/me/clip", "pretrained": "local"}
    (run / CONFIG).write_text(json.dumps(config))
    with pytest.raises(UsageError, match="names a backbone by a path of this machine; write another folder with: xmafast export"):
        push(run, "me/x", client=hub)
    assert not hub.calls


def test_a_merged_model_is_pulled_but_is_no_adapter(demo_backbone, hub, tmp_path):
    run = Retriever(demo_backbone, "lora").save(tmp_path / "lora")
    push(run, "me/merged", merged=True, client=hub)
    assert "hf-hub:me/merged" in (hub.root / "me/merged" / "README.md").read_text()
    assert "bpe.txt.gz" in pull("me/merged", tmp_path / "out", client=hub)
    assert xmafast.load_backbone(str(tmp_path / "out")).image_size == 96
    for where in (tmp_path / "out", "me/merged"):
        with pytest.raises(RunError, match="holds a plain open_clip model, not an adapter; load it with"):
            load(where, client=hub)


@pytest.mark.parametrize(
    "name", ["mine", "./me/x", "me/x/", "/me/x", "~me/x", "../me/x", "a/b/c", "me\\x", "runs/mien", "here/x", "me/x y", "", "hf://me/x"]
)
def test_a_mistyped_path_asks_no_hub(name, run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here").mkdir()
    if name:
        with pytest.raises(RunError, match=r"does not exist, so there is no adapter_config\.json"):
            load(name, client=Never())
    else:  # the folder itself
        with pytest.raises(RunError, match=r"holds no adapter_config\.json"):
            load(name, client=Never())


def test_a_mistyped_run_is_told_the_nearest_and_why_the_hub_was_not_asked(run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RunError, match=r"Did you mean runs/mine\? .*folder runs is local, so the hub was not asked"):
        load("runs/mien", client=Never())
    monkeypatch.chdir(run)
    with pytest.raises(RunError, match="the hub was not asked"):  # runs is no user, wherever one stands
        load("runs/mine", client=Never())


def test_a_local_folder_always_wins(demo_backbone, run, hub, tmp_path, monkeypatch):
    shutil.copytree(run, tmp_path / "me" / "x")
    monkeypatch.chdir(tmp_path)
    assert load("me/x", demo_backbone, client=Never()).trainable
    with pytest.raises(UsageError, match="a folder of this machine, which has no revisions"):
        load("me/x", demo_backbone, revision="main", client=Never())
    (hub.root / "me").mkdir(parents=True)
    shutil.copytree(run, hub.root / "me" / "y")
    assert load("me/y", demo_backbone, revision="main", client=hub).trainable, "a revision says that a repository is meant"
    with pytest.raises(RunError):
        load(tmp_path / "me" / "y", client=Never())


@pytest.mark.parametrize(
    "name", ["x", "a/b/c", "me/x y", "me/ü", "me/-x", "me/x.git", "me/a--b", "me/a..b", "../x", "me/", "/x", "me/" + 99 * "x", "me/x\n"]
)
def test_a_repository_has_a_name_that_can_be_one(name, tmp_path):
    for call in (
        lambda: check_repo(name),
        lambda: pull(name, tmp_path / "out", client=Never()),
        lambda: push(tmp_path, name, client=Never()),
        lambda: load(name, revision="main", client=Never()),
    ):
        with pytest.raises(UsageError, match="can be no repository of the hub, which is named user/name"):
            call()


@pytest.mark.parametrize(
    ("change", "sentence_"),
    [
        ({"backbone": {"name": "/etc", "pretrained": "local", "sha256": "0"}}, "names a backbone by a path, '/etc'"),
        ({"backbone": {"name": "ViT-B-32", "pretrained": "../evil.pt", "sha256": "0"}}, "names a backbone by a path"),
        ({"options": {"second": "~/x"}}, "names a backbone by a path"),
        ({"second": {"name": "..", "pretrained": "local", "sha256": "0"}}, "names a backbone by a path"),
        ({"plugs": [["hada", {"second_pretrained": "/tmp/evil.pt"}]]}, "names a backbone by a path"),
        ({"plugs": ["hada"]}, "is not an xmafast adapter configuration"),
        ({"backbone": "demo"}, "is not an xmafast adapter configuration"),
        ({"peft_type": "LORA"}, "that peft made"),
    ],
)
def test_a_strangers_configuration_names_no_file_of_this_machine(run, hub, tmp_path, change, sentence_):
    shutil.copytree(run, hub.root / "you/x")
    path = hub.root / "you/x" / CONFIG
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    for call in (lambda: load("you/x", client=hub), lambda: pull("you/x", tmp_path / "out", client=hub)):
        with pytest.raises(RunError, match=sentence_):
            call()
    assert not (tmp_path / "out").exists()


def test_a_repository_without_an_adapter_is_said_to_be_one(hub, tmp_path):
    (hub.root / "you/x").mkdir(parents=True)
    with pytest.raises(RunError, match=r"you/x holds neither an adapter \(adapter_config.json\) nor"):
        pull("you/x", tmp_path / "out", client=hub)
    (tmp_path / "there").mkdir()
    with pytest.raises(UsageError, match="there exists already"):
        pull("you/x", tmp_path / "there", client=Never())
    with pytest.raises(RunError, match="missing does not exist"):
        push(tmp_path / "missing", "me/x", client=Never())


def test_a_backbone_that_no_name_gives_back_is_asked_for(demo_backbone, run, hub):
    shutil.copytree(run, hub.root / "you/x")
    path = hub.root / "you/x" / CONFIG
    config = json.loads(path.read_text())
    config["backbone"] |= {"name": "theirclip", "pretrained": "local"}
    path.write_text(json.dumps(config))
    with pytest.raises(RunError, match=r"you/x was trained on a backbone that no public name gives back: theirclip .*backbone="):
        load("you/x", client=hub)
    assert load("you/x", demo_backbone, client=hub).trainable


def test_no_pickle_and_no_code_is_asked_for():
    assert {name.rpartition(".")[2] for name in FILES} <= {"md", "txt", "json", "safetensors", "gz", "LICENSE", "NOTICE"}
    assert not [name for name in FILES if "*" in name]


class Response:
    headers: dict = {}  # noqa: RUF012
    request = None

    def __init__(self, status):
        self.status_code = status


class Status(Exception):
    def __init__(self, status):
        super().__init__(f"{status} for url\nsecond line")
        self.response = Response(status)


def caused(error, cause):
    error.__cause__ = cause
    return error


def of(kind, status):
    error = kind.__new__(kind)
    error.args, error.response = ("what the hub says",), Response(status)
    return error


class ConnectError(ConnectionError):
    pass


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (errors.OfflineModeIsEnabled("x"), "Cannot pull me/x: HF_HUB_OFFLINE keeps the client off the network; unset it."),
        (caused(errors.LocalEntryNotFoundError("x"), errors.OfflineModeIsEnabled("y")), "HF_HUB_OFFLINE keeps"),
        (errors.LocalEntryNotFoundError("no network.\nmore"), "the hub cannot be reached (no network); be online, or name a folder"),
        (ConnectError("no route"), "the hub cannot be reached (no route)"),
        (TimeoutError("too slow"), "the hub cannot be reached (too slow)"),
        (
            errors.LocalTokenNotFoundError("x"),
            "Not logged in to the hub, which it takes to pull me/x; log in with `hf auth login`, or set HF_TOKEN.",
        ),
        (Status(401), "Not logged in to the hub"),
        (Status(403), "The login at hand may not pull me/x"),
        (Status(503), "The hub answered 503 to pull me/x (503 for url); try again later."),
        (of(errors.RepositoryNotFoundError, 404), "There is no repository me/x on the hub, or it is private"),
        (of(errors.RepositoryNotFoundError, 401), "There is no repository me/x on the hub, or it is private"),
        (of(errors.RevisionNotFoundError, 404), "The repository me/x has no such revision"),
        (of(errors.GatedRepoError, 403), "me/x asks to accept its conditions first"),
        (OSError("No space left on device"), "Cannot pull me/x: No space left on device."),
    ],
)
def test_what_the_client_raises_is_one_clear_sentence(error, said):
    found = sentence(error, "me/x", "pull")
    assert said in found
    assert "\n" not in found


def test_the_client_itself_is_huggingface_hubs_and_says_that_it_is_offline(tmp_path, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    assert isinstance(sharing.hub_client(), huggingface_hub.HfApi)
    for call in (lambda: load("nobody-here/nothing"), lambda: pull("nobody-here/nothing", tmp_path / "out")):
        with pytest.raises(RunError, match="nobody-here/nothing: "):
            call()
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("call", ["create_repo", "create_branch", "upload_folder", "snapshot_download"])
def test_the_fake_clients_calls_are_those_of_the_real_one(call):
    import inspect

    real = inspect.signature(getattr(huggingface_hub.HfApi, call)).parameters
    assert set(inspect.signature(getattr(Hub, call)).parameters) <= set(real)
