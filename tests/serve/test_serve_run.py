"""``xmafast serve``: what it says before anything listens, and that it listens where it is told."""

import signal
import socket
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest

from xmafast import cli
from xmafast.errors import UsageError
from xmafast.serve import run as running
from xmafast.serve.run import is_loopback, listen


@pytest.fixture
def call(capfd, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def command(*arguments):
        capfd.readouterr()
        try:
            cli.main(["serve", *map(str, arguments)])
            code = 0
        except SystemExit as stop:
            code = stop.code or 0
        return code, *capfd.readouterr()

    return command


def test_a_missing_extra_is_one_sentence(call, monkeypatch):
    monkeypatch.setitem(sys.modules, "starlette", None)
    code, out, err = call("lib.xma")
    assert (code, out) == (2, "")
    assert "pip install 'xmafast[serve]'" in err
    assert "Traceback" not in err


def test_what_cannot_be_served_is_said_before_anything_listens(call, made, tmp_path, monkeypatch):
    monkeypatch.setattr(running, "listen", None)
    assert "There is no library lib.xma" in call()[2]
    (tmp_path / "empty").mkdir()
    assert "it is no library" in call("empty")[2]
    code, _, err = call(made[0], "--adapter", "nobody")
    assert (code, "Unknown adapter 'nobody'" in err) == (2, True)


def test_an_address_that_cannot_be_had_is_a_sentence():
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(UsageError, match="cannot be listened on"):
        listen("127.0.0.1", taken.getsockname()[1])
    for host in ("192.0.2.1", "no.such.host.invalid"):
        with pytest.raises(UsageError, match="choose another with --host"):
            listen(host, 0)
    with listen("127.0.0.1", 0) as free:
        assert free.getsockname()[0] == "127.0.0.1"


def test_what_loopback_is():
    assert [is_loopback(host) for host in ("127.0.0.1", "127.1.2.3", "::1", "localhost")] == [True] * 4
    assert [is_loopback(host) for host in ("0.0.0.0", "::", "192.168.0.7", "videos.example")] == [False] * 4


@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0"])
def test_the_command_says_where_it_listens_and_whom_it_lets_in(call, made, monkeypatch, host):
    asked = {}

    def run(path, *, ready, **options):
        asked.update(options, path=path)
        ready(f"http://{host}:8765/")
        raise KeyboardInterrupt

    monkeypatch.setattr(running, "run", run)
    code, out, err = call(made[0], "--host", host, "--adapter", "other", "--allow-host", "videos.example")
    assert code == 0
    assert f"at http://{host}:8765/" in out
    assert ("There is no password" in err) == (host == "0.0.0.0")
    assert (asked["port"], asked["adapter"], list(asked["names"])) == (8765, "other", ["videos.example"])


@pytest.mark.slow
def test_the_command_serves_until_a_signal_ends_it(made):
    command = [sys.executable, "-m", "xmafast.cli", "serve", made[0], "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=Path(made[0]).parent) as process:
        try:
            line = process.stdout.readline()
            address = line.split(" at ")[1].split(" ")[0]
            assert address.startswith("http://127.0.0.1:")
            with urllib.request.urlopen(address, timeout=30) as answer:
                assert b"<!doctype html>" in answer.read()
            process.send_signal(signal.SIGINT)
            assert process.wait(30) == 0
            assert "Traceback" not in process.stderr.read()
        finally:
            process.kill()
