"""`xmafast export`, `push` and `pull`: a finished run, its card's numbers, and mistakes."""

import json
import shutil

import pytest
from huggingface_hub import ModelCard

from xmafast import sharing
from xmafast.cache import FrameCache
from xmafast.records import evaluate_run
from xmafast.training import train


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory, small_caches):
    """A run of one step or two with its record, a name that Markdown would take for markup, and its cache."""
    workspace = tmp_path_factory.mktemp("workspace")
    shutil.copytree(small_caches, workspace / "caches" / "demo")
    train(workspace / "caches" / "demo", workspace / "runs" / "a_b*c", epochs=1, batch_size=16)
    evaluate_run(workspace / "runs" / "a_b*c", FrameCache(workspace / "caches" / "demo" / "test.h5"))
    return workspace


@pytest.fixture
def workspace(evaluated, tmp_path, monkeypatch):
    """A copy, whose record still points to the first one's cache."""
    place = tmp_path / "workspace"
    shutil.copytree(evaluated / "runs", place / "runs")
    monkeypatch.setenv("XMAFAST_WORKSPACE", str(place))
    return place


def test_the_cards_numbers_are_the_evaluations(call, workspace):
    code, out, err = call("eval", "a_b*c", "--bootstrap", "300", "--json")
    assert code == 0, err
    result = json.loads(out)
    code, out, err = call("export", "a_b*c", "--out", "out", "--license", "apache-2.0", "--repo", "me/x", "--bootstrap", "300", "--json")
    assert code == 0, err
    assert json.loads(out)["files"] == ["README.md", "adapter_config.json", "adapter_model.safetensors"]
    assert json.loads(out)["remarks"] == []
    card = ModelCard.load("out/README.md")
    data = card.data
    assert (data.license, data.library_name, data.model_name) == ("apache-2.0", "xmafast", "me/x")
    assert {"text-video-retrieval", "cross-modal"} <= set(data.tags)
    found = {(e.task_type, e.metric_type): e.metric_value for e in data.eval_results}
    for task, side in (("text-to-video-retrieval", "t2v"), ("video-to-text-retrieval", "v2t")):
        for name, value in result[side].items():
            assert found[task, name] == pytest.approx(value, abs=0.005)
    assert all(e.dataset_name == "demo" and e.dataset_split == "test" for e in data.eval_results)
    for side in ("t2v", "v2t"):
        low, high = result["interval"][side]["R@1"]
        assert f"{result[side]['R@1']:.1f} ({low:.1f} to {high:.1f})" in card.text
    for said in (
        "| Trained parameters | 58,032, 1.18 % of the backbone's |",
        "| Frames | 4, uniform, cached at 96 px |",
        "| Words | 32 |",
        "the epoch of highest R-sum",
        "95 % intervals of 300 draws",
        f"{result['queries']} queries, {result['candidates']} videos",
        'retriever = xmafast.load("me/x")',
    ):
        assert said in card.text, said
    assert str(workspace) not in card.text
    record = json.loads((workspace / "runs" / "a_b*c" / "eval-test.json").read_text())
    assert not any(caption in card.text for caption in record["captions"])


def test_numbers_of_another_adapter_are_left_out(call, workspace):
    run = workspace / "runs" / "a_b*c"
    path = run / "best" / "adapter_config.json"
    path.write_text(path.read_text() + "\n")
    code, _, err = call("export", "a_b*c", "--out", "out")
    assert code == 0
    assert "eval-test.json is not of this adapter and its cache as they are now; evaluate again" in err
    card = ModelCard.load("out/README.md")
    assert card.data.eval_results is None
    assert "No evaluation of this adapter as it is now is recorded. `xmafast eval RUN CACHE`" in card.text
    assert "# a\\_b\\*c" in card.text


@pytest.mark.parametrize("text", ["{", "[]", '{"form": 1}', '{"form": 1, "cache": "/x", "key": "0", "options": {}}'])
def test_a_damaged_record_is_left_out(call, workspace, text):
    (workspace / "runs" / "a_b*c" / "eval-test.json").write_text(text)
    code, _, err = call("export", "a_b*c", "--out", "out")
    assert code == 0, err
    assert "eval-test.json is not of this adapter" in err


def test_a_record_that_lacks_something_is_left_out(call, workspace):
    path = workspace / "runs" / "a_b*c" / "eval-test.json"
    whole = json.loads(path.read_text()) | {"cache": "/not/here/test.h5"}
    for lost in ("protocol", "metrics", "queries", "adapted", "missing"):
        path.write_text(json.dumps({key: value for key, value in whole.items() if key != lost}))
        code, _, err = call("export", "a_b*c", "--out", f"out-{lost}")
        assert code == 0, err
        assert "eval-test.json is not of this adapter" in err


def test_a_record_whose_cache_is_elsewhere_is_taken_and_said_to_be_unchecked(call, workspace):
    path = workspace / "runs" / "a_b*c" / "eval-test.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"cache": "/not/here/test.h5"}))
    assert call("export", "a_b*c", "--out", "out")[0] == 0
    card = ModelCard.load("out/README.md")
    assert "was not at hand when this card was written, so it was not checked against it" in card.text
    assert card.data.eval_results


def test_push_and_pull_go_through_the_client(call, workspace, tmp_path, monkeypatch):
    asked = []

    class Client:
        def create_repo(self, repo, **options):
            asked.append((repo, options["private"]))
            return f"https://hub.example/{repo}"

        def upload_folder(self, *, folder_path, **options):
            shutil.copytree(folder_path, tmp_path / "remote")

        def snapshot_download(self, **options):
            return str(tmp_path / "remote")

    monkeypatch.setattr(sharing, "hub_client", Client)
    code, out, err = call("push", "a_b*c", "me/x", "--private", "--license", "mit", "--json")
    assert code == 0, err
    assert json.loads(out)["url"] == "https://hub.example/me/x"
    assert asked == [("me/x", True)]
    code, out, err = call("pull", "me/x", "--out", "theirs")
    assert code == 0, err
    assert "xmafast eval theirs CACHE" in err
    code, out, err = call("push", "theirs", "me/y")
    assert code == 1
    assert "remote" in err, "what another error says is passed on"
    shutil.rmtree(tmp_path / "remote")
    assert call("push", "theirs", "me/y")[0] == 0
    assert asked[-1] == ("me/y", None)


@pytest.mark.parametrize(
    ("arguments", "code", "sentence"),
    [
        (["export", "nowhere", "--out", "out"], 1, "nowhere does not exist"),
        (["export", "a_b*c", "--out", "."], 2, "exists already"),
        (["export", "a_b*c", "--out", "out", "--merged"], 2, "'cross-modal' cannot be merged"),
        (["export", "a_b*c", "--out", "out", "--repo", "me and you"], 2, "'me and you' can be no repository"),
        (["export", "a_b*c"], 2, "--out"),
        (["push", "a_b*c", "me/a b"], 2, "'me/a b' can be no repository"),
        (["push", "nowhere", "me/x"], 1, "nowhere does not exist"),
        (["pull", "me/x", "--out", "."], 2, "exists already"),
        (["pull", "x", "--out", "out"], 2, "'x' can be no repository"),
    ],
)
def test_mistakes_get_one_clear_sentence(call, workspace, arguments, code, sentence):
    status, out, err = call(*arguments)
    assert status == code, err
    assert sentence in err
    assert "Traceback" not in err
    assert not out


def test_an_unfinished_run_is_told_how_to_go_on(call, workspace):
    (workspace / "runs" / "a_b*c" / "metrics.json").unlink()
    for arguments in (("export", "a_b*c", "--out", "out"), ("push", "a_b*c", "me/x")):
        code, _, err = call(*arguments)
        assert code == 1
        assert "is not finished; go on with: xmafast train --resume" in err


def test_offline_is_said_in_one_sentence(call, workspace, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    for arguments in (("pull", "nobody-here/nothing", "--out", "out"), ("push", "a_b*c", "nobody-here/nothing")):
        code, _, err = call(*arguments)
        assert code == 1
        assert "nobody-here/nothing: HF_HUB_OFFLINE keeps the client off the network; unset it." in err
