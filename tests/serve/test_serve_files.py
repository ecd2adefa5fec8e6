"""Videos by id: ranges, and that nothing but what was indexed is ever read."""

import os
import shutil
import threading
from pathlib import Path

import pytest
from serving import CANARY, client_of

from xmafast.index.catalog import token_of
from xmafast.serve import Limits, files
from xmafast.serve.answers import Refused
from xmafast.serve.files import open_item, span_of

NAME = "sub/1f308.mp4"


@pytest.fixture
def address(index):
    return f"/api/clips/{token_of(NAME)}/file"


def test_a_file_is_sent_whole_and_in_ranges(client, made, address):
    data = (made[1] / NAME).read_bytes()
    n = len(data)
    whole = client.get(address)
    assert (whole.status_code, whole.content, whole.headers["content-type"]) == (200, data, "video/mp4")
    assert (whole.headers["accept-ranges"], int(whole.headers["content-length"])) == ("bytes", n)
    for asked, start, end in (
        ("bytes=0-0", 0, 1),
        ("bytes=5-9", 5, 10),
        ("bytes=5-", 5, n),
        ("bytes=-7", n - 7, n),
        (f"bytes=3-{10 * n}", 3, n),
        (f"bytes=-{10 * n}", 0, n),
        (f"bytes={n - 1}-", n - 1, n),
    ):
        part = client.get(address, headers={"range": asked})
        assert (part.status_code, part.content) == (206, data[start:end]), asked
        assert part.headers["content-range"] == f"bytes {start}-{end - 1}/{n}"
    for asked in ("bytes=1-2,4-5", "lines=1-2", "bytes=x", "bytes=-", "bytes=9-3", b"bytes=\xb2-", "-5"):
        assert (client.get(address, headers={"range": asked}).content) == data, asked
    for asked in (f"bytes={n}-", "bytes=-0", f"bytes={10**18}-"):
        answer = client.get(address, headers={"range": asked})
        assert (answer.status_code, answer.headers["content-range"]) == (416, f"bytes */{n}"), asked


def test_heads_and_files_that_a_client_has_already(client, made, address):
    head = client.head(address)
    assert (head.status_code, head.content) == (200, b"")
    assert int(head.headers["content-length"]) == (made[1] / NAME).stat().st_size
    tag = head.headers["etag"]
    kept = client.get(address, headers={"if-none-match": f'"other", W/{tag}'})
    assert (kept.status_code, kept.content) == (304, b"")
    assert client.get(address, headers={"range": "bytes=0-3", "if-range": tag}).status_code == 206
    assert client.get(address, headers={"range": "bytes=0-3", "if-range": '"older"'}).status_code == 200


def test_spans_of_an_empty_file():
    assert span_of(None, 0) is None
    with pytest.raises(Refused):
        span_of("bytes=0-", 0)


def swap_contents(path, folder):
    data = path.read_bytes()
    path.write_bytes(bytes(reversed(data)))


def swap_with_the_same_size(path, folder):
    path.write_bytes((CANARY * 10**4)[: path.stat().st_size])


def link_out(path, folder):
    path.unlink()
    path.symlink_to(folder.parent / "secret.mp4")


def link_that_looks_like_the_file(path, folder):
    about = path.stat()
    secret = folder.parent / "secret.mp4"
    secret.write_bytes((CANARY * 10**4)[: about.st_size])
    os.utime(secret, ns=(about.st_atime_ns, about.st_mtime_ns))
    link_out(path, folder)


def folder_that_is_a_link_out(path, folder):
    outside = folder.parent / "outside"
    shutil.move(path.parent, outside)
    path.parent.symlink_to(outside)


def link_within(path, folder):
    path.unlink()
    path.symlink_to(folder / "1f300.mp4")


def pipe(path, folder):
    path.unlink()
    os.mkfifo(path)


def folder_instead(path, folder):
    path.unlink()
    path.mkdir()


def circle(path, folder):
    path.unlink()
    path.symlink_to(path.name)


def gone(path, folder):
    path.unlink()


def root_gone(path, folder):
    shutil.rmtree(folder)


CHANGES = (
    swap_contents,
    swap_with_the_same_size,
    link_out,
    link_that_looks_like_the_file,
    folder_that_is_a_link_out,
    link_within,
    pipe,
    folder_instead,
    circle,
    gone,
    root_gone,
)


@pytest.mark.parametrize("change", CHANGES)
def test_a_file_that_is_not_the_one_that_was_indexed_is_gone(own, address, change):
    library, folder, index = own
    client = client_of(index)
    assert client.get(address).status_code == 200
    change(folder / NAME, folder)
    answer = client.get(address, headers={"range": "bytes=0-99"})
    assert answer.status_code == 410
    assert "has changed or gone" in answer.json()["error"]
    assert str(library.parent) not in answer.text
    assert client.get(address.replace("file", "thumbnails/0")).status_code == 200


def test_a_file_that_moves_into_its_place_while_it_is_opened_is_not_read(own, monkeypatch):
    """The path is checked, and then a link takes the place of a folder on it."""
    _, folder, index = own
    real = os.path.realpath

    def late(path):
        found = real(path)
        if str(path).endswith(NAME):
            folder_that_is_a_link_out(folder / NAME, folder)
        return found

    monkeypatch.setattr("xmafast.serve.files.os.path.realpath", late)
    with pytest.raises(Refused) as refused:
        open_item(index, NAME)
    assert refused.value.status == 410


def test_opened_files_are_closed(client, address):
    descriptors = Path("/proc/self/fd")
    if not descriptors.is_dir():
        pytest.skip("this system does not list a process's files")
    before = len(list(descriptors.iterdir()))
    for headers in ({}, {"range": "bytes=0-3"}, {"range": "bytes=99999999-"}, {"if-none-match": "*"}):
        for _ in range(10):
            client.get(address, headers=headers)
            client.head(address, headers=headers)
    assert len(list(descriptors.iterdir())) <= before + 3


def test_more_files_than_are_sent_at_a_time_wait(index, address):
    with client_of(index, limits=Limits(streams=1)) as client:
        release, opened = threading.Event(), threading.Event()
        first = files.open_item

        def slow(*arguments):
            opened.set()
            release.wait(20)
            return first(*arguments)

        files.open_item = slow
        try:
            one = threading.Thread(target=client.get, args=(address,))
            one.start()
            assert opened.wait(20)
            answer = client.get(address)
            assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
        finally:
            files.open_item = first
            release.set()
            one.join(20)
        assert client.get(address).status_code == 200
