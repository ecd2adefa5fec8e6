"""The page in a real Chromium: what a person sees, does and is told. CHROMIUM names one, else the ``chromium`` on PATH is taken."""

import os
import re
import shutil
import subprocess
import time

import pytest
from serving import served

from xmafast.serve import Limits

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed (extra test)")
expect = playwright.expect
pytestmark = [pytest.mark.slow, pytest.mark.alone]  # a browser under load misses its moments
WIDE, PHONE = {"width": 1200, "height": 800}, {"width": 390, "height": 844}


@pytest.fixture(scope="module")
def chromium():
    program = os.environ.get("CHROMIUM") or shutil.which("chromium")
    if not program:
        pytest.skip("no Chromium: install Debian's chromium, or name one in CHROMIUM")
    expect.set_options(timeout=30_000)
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=program, args=["--no-sandbox", "--disable-dev-shm-usage"])
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def address(index):
    with served(index) as (host, port):
        yield f"http://{host}:{port}/"


@pytest.fixture
def visit(chromium, address):
    """A page of its own: visit("?q=…", color_scheme="dark"). What it says on its console, and asks of others, fails the test."""
    opened, said, strayed = [], [], []

    def open_page(path="", ready=True, where=address, **options):
        context = chromium.new_context(**{"viewport": WIDE, **options})
        opened.append(context)
        context.set_default_timeout(30_000)
        page = context.new_page()
        page.on("console", lambda message: said.append(message.text) if message.type in ("error", "warning") else None)
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on("request", lambda request: strayed.append(request.url) if not request.url.startswith((where, "blob:" + where)) else None)
        page.goto(where + path)
        if ready:
            expect(page.locator(".card").first).to_be_visible()
        return page

    open_page.said = said
    yield open_page
    for context in opened:
        context.close()
    assert [text for text in said if "Failed to load resource" not in text] == []
    assert strayed == []


def titles(page):
    return page.locator("#grid .title").all_inner_texts()


def found_first(page, title):
    """The first clip on the page; where it is another, what the page says instead is the reason."""
    try:
        expect(page.locator("#grid .title").first).to_have_text(title)
    except AssertionError as error:
        said = {name: page.locator(f"#{name}").inner_text() for name in ("status", "message", "lost")}
        raise AssertionError(f"{titles(page)[:1]} and not {title}; the page says {said}") from error


def until(page, expression):
    """Wait for what is true in the page; playwright's own way asks the page to evaluate text, which its policy forbids."""
    end = time.monotonic() + 30
    while not page.evaluate(expression):
        assert time.monotonic() < end, expression
        page.wait_for_timeout(50)


def dropped(page, path, name, kind):
    """Drop a file on the page, as a person does from another window."""
    data = page.evaluate_handle(
        "([bytes, name, type]) => { const files = new DataTransfer(); "
        "files.items.add(new File([new Uint8Array(bytes)], name, { type })); return files; }",
        [list(path.read_bytes()), name, kind],
    )
    for event in ("dragenter", "dragover", "drop"):
        page.dispatch_event("#query", event, {"dataTransfer": data})


def test_what_is_typed_is_found_and_the_address_says_so(visit):
    page = visit()
    expect(page.locator("#status")).to_have_text("Changed last")
    expect(page.locator("#about")).to_have_text("7 clips")
    assert page.evaluate("document.activeElement.id") == "query"
    page.keyboard.type("rainbow", delay=15)
    expect(page.locator("#grid .title").first).to_have_text("1f308.mp4")
    expect(page.locator("#status")).to_contain_text("Best 7 of 7 clips · frozen")
    expect(page.locator("#grid .score").first).to_have_text(re.compile(r"0\.\d{3}"))
    assert page.locator("#grid li").first.locator(".strip i.best").count() == 1
    expect(page).to_have_url(re.compile(r"\?q=rainbow$"))
    page.reload()
    expect(page.locator("#grid .title").first).to_have_text("1f308.mp4")


def test_an_answer_to_an_older_question_is_dropped(visit):
    page = visit()
    late = []
    page.route(re.compile(r"q=snow(&|$)"), lambda route: late.append(route))
    page.keyboard.type("snow")
    page.wait_for_timeout(400)
    assert late
    page.keyboard.type("!")
    expect(page.locator("#status")).to_contain_text("Best 7")
    page.fill("#query", "rainbow")
    expect(page.locator("#grid .title").first).to_have_text("1f308.mp4")
    for route in late:
        route.abort()
    page.wait_for_timeout(300)
    assert titles(page)[0] == "1f308.mp4"
    expect(page.locator("#lost")).to_be_hidden()


def test_a_clip_plays_from_its_best_moment_under_the_pointer_and_stops_after(visit):
    page = visit("?q=rainbow")
    expect(page.locator(".score").first).not_to_be_empty()
    page.hover(".card >> nth=0")
    expect(page.locator(".picture.playing video")).to_have_count(1)
    until(page, "(video => video.muted && !video.paused && video.currentTime > 0)(document.querySelector('.picture video'))")
    page.hover("#query")
    expect(page.locator(".picture video")).to_have_count(0)


def test_what_the_browser_cannot_play_is_leafed_through(visit):
    page = visit("?q=rainbow")
    page.route(re.compile("/file"), lambda route: route.fulfill(status=410, json={"error": "gone"}))
    page.hover(".card >> nth=0")
    expect(page.locator(".picture.leafing")).to_have_count(1)
    page.hover("#query")
    expect(page.locator(".picture.leafing")).to_have_count(0)


def test_the_keyboard_goes_everywhere(visit):
    page = visit("?q=rainbow", viewport={"width": 800, "height": 900})
    expect(page.locator(".score").first).not_to_be_empty()
    at = "[...document.querySelectorAll('.card')].indexOf(document.activeElement)"
    page.keyboard.press("ArrowDown")
    assert page.evaluate(at) == 0
    expect(page.locator(".picture.playing")).to_have_count(1)
    page.keyboard.press("ArrowRight")
    assert page.evaluate(at) == 1
    columns = page.evaluate("getComputedStyle(document.querySelector('#grid')).gridTemplateColumns.split(' ').length")
    page.keyboard.press("ArrowDown")
    assert page.evaluate(at) == 1 + columns
    page.keyboard.press("Home")
    page.keyboard.press("Enter")
    dialog = page.locator("#viewer")
    expect(dialog).to_be_visible()
    expect(page.locator("#viewer-title")).to_have_text("1f308.mp4")
    page.keyboard.press("ArrowRight")
    assert page.locator("#viewer-title").inner_text() == titles(page)[1]
    page.keyboard.press("Escape")
    expect(dialog).to_be_hidden()
    until(page, f"{at} === 1")
    page.keyboard.press("Escape")
    assert page.evaluate("document.activeElement.id") == "query"
    page.keyboard.press("Escape")
    expect(page.locator("#query")).to_have_value("")
    page.keyboard.press("ArrowDown")
    page.keyboard.press("/")
    assert page.evaluate("document.activeElement.id") == "query"
    expect(page.locator("#query")).to_have_value("")


def test_a_clip_opens_large_and_every_frame_leads_to_its_second(visit):
    page = visit("?q=rainbow")
    expect(page.locator(".score").first).not_to_be_empty()
    page.click(".card >> nth=0")
    expect(page.locator("#stage video")).to_be_visible()
    until(page, "document.querySelector('#stage video').readyState > 1")
    moments = page.locator(".moment")
    assert moments.count() > 1
    expect(page.locator(".moment.best")).to_have_count(1)
    page.eval_on_selector("#stage video", "video => video.pause()")
    moments.nth(1).click()
    until(page, "document.querySelector('#stage video').currentTime >= 0.9")
    page.click("#close")
    expect(page.locator("#stage video")).to_have_count(0)


def test_another_adapter_answers_at_once(visit):
    page = visit("?q=rainbow")
    expect(page.locator("#status")).to_contain_text("frozen")
    before = page.locator(".score").all_inner_texts()
    page.select_option("#adapter", "other")
    expect(page.locator("#status")).to_contain_text("other")
    assert page.locator(".score").all_inner_texts() != before
    expect(page).to_have_url(re.compile("adapter=other"))


def test_an_image_and_a_clip_that_are_dropped_are_searched_by(visit, made):
    page = visit()
    dropped(page, made[1] / "fractal.png", "holiday.png", "image/png")
    found_first(page, "fractal.png")
    expect(page.locator("#status")).to_contain_text("Best")  # the answer to it, and not what was there before
    expect(page.locator("#chip-name")).to_have_text("holiday.png")
    expect(page.locator("#chip-picture img")).to_be_visible()
    page.set_input_files("#file", made[1] / "1f300.mp4")
    found_first(page, "1f300.mp4")
    page.select_option("#adapter", "other")
    expect(page.locator("#status")).to_contain_text("other")
    found_first(page, "1f300.mp4")
    page.click("#unchip")
    expect(page.locator("#status")).to_have_text("Changed last")
    expect(page.locator("#chip")).to_be_hidden()


def test_a_wrong_file_is_said_to_be_one_and_the_page_goes_on(visit, made, tmp_path):
    page = visit()
    (tmp_path / "notes.txt").write_text("hello " * 50)
    dropped(page, tmp_path / "notes.txt", "notes.txt", "text/plain")
    expect(page.locator("#message")).to_contain_text("notes.txt cannot be searched by")
    expect(page.locator("#message")).to_contain_text("neither an image nor a video")
    (tmp_path / "cut.mp4").write_bytes((made[1] / "1f300.mp4").read_bytes()[:900])
    dropped(page, tmp_path / "cut.mp4", "cut.mp4", "video/mp4")
    expect(page.locator("#message")).to_contain_text("cut.mp4 cannot be searched by")
    page.fill("#query", "rainbow")
    expect(page.locator("#grid .title").first).to_have_text("1f308.mp4")
    expect(page.locator("#message")).to_be_hidden()


def test_a_file_that_is_too_large_is_not_even_sent(visit, index, made):
    with served(index, Limits(upload_bytes=1000)) as (host, port):
        page = visit(where=f"http://{host}:{port}/")
        sent = []
        page.on("request", lambda request: sent.append(request.url) if request.method == "POST" else None)
        dropped(page, made[1] / "fractal.png", "huge.png", "image/png")
        expect(page.locator("#message")).to_contain_text("huge.png cannot be searched by")
        assert sent == []


def test_a_path_that_no_clip_has_leaves_nothing_and_says_so(visit):
    page = visit()
    page.fill("#query", "path:nowhere/ rainbow")
    expect(page.locator("#message")).to_contain_text("Nothing found")
    page.fill("#query", "path:sub/ rainbow")
    expect(page.locator("#grid li")).to_have_count(3)


def test_similar_clips_and_the_way_back(visit):
    page = visit("?q=rainbow")
    expect(page.locator(".score").first).not_to_be_empty()
    page.click(".card >> nth=2")
    name = page.locator("#viewer-title").inner_text()
    page.click("#similar")
    expect(page.locator("#chip-name")).to_have_text(f"like {name}")
    expect(page.locator("#grid .title").first).to_have_text(name)
    page.go_back()
    expect(page.locator("#grid .title").first).to_have_text("1f308.mp4")
    expect(page.locator("#query")).to_have_value("rainbow")


def test_a_server_that_is_lost_is_said_so_and_found_again(visit, index):
    with served(index) as (host, port):
        page = visit(where=f"http://{host}:{port}/")
    page.fill("#query", "rainbow")
    expect(page.locator("#lost")).to_contain_text("The server does not answer")
    expect(page.locator("body")).to_have_class(re.compile("stale"))
    page.click("#again")
    expect(page.locator("#lost")).to_be_visible()
    with served(index, port=port):
        expect(page.locator("#lost")).to_be_hidden()
        expect(page.locator("#grid .title").first).to_have_text("1f308.mp4")
    visit.said[:] = [text for text in visit.said if "ERR_CONNECTION_REFUSED" not in text]


def test_a_phone_shows_all_of_it_without_scrolling_sideways(visit):
    page = visit("?q=rainbow", viewport=PHONE, has_touch=True, is_mobile=True)
    expect(page.locator(".score").first).not_to_be_empty()
    sideways = "document.documentElement.scrollWidth > document.documentElement.clientWidth"
    assert not page.evaluate(sideways)
    page.tap(".card >> nth=0")
    expect(page.locator("#viewer")).to_be_visible()
    assert not page.evaluate("(v => v.scrollWidth > v.clientWidth)(document.querySelector('#viewer'))")
    assert page.locator("#close").bounding_box()["y"] < PHONE["height"]


def test_nothing_moves_where_a_person_wants_no_motion(visit):
    page = visit("?q=rainbow", reduced_motion="reduce")
    expect(page.locator(".score").first).not_to_be_empty()
    page.hover(".card >> nth=0")
    page.wait_for_timeout(500)
    expect(page.locator(".picture video")).to_have_count(0)
    page.click(".card >> nth=0")
    until(page, "document.querySelector('#stage video').readyState > 0")
    assert page.eval_on_selector("#stage video", "video => video.paused")


@pytest.fixture(scope="module")
def axe(tmp_path_factory):
    """The source of axe-core, which npm fetches."""
    npm = shutil.which("npm")
    if not npm:
        pytest.skip("no npm to fetch axe-core with")
    folder = tmp_path_factory.mktemp("axe")
    command = [npm, "install", "--no-save", "--ignore-scripts", "--no-audit", "--no-fund", "--prefix", str(folder), "axe-core@4"]
    try:
        subprocess.run(command, cwd=folder, check=True, capture_output=True, timeout=120)
    except (subprocess.SubprocessError, OSError) as error:
        pytest.skip(f"npm cannot fetch axe-core ({type(error).__name__})")
    return (folder / "node_modules/axe-core/axe.min.js").read_text(encoding="utf-8")


@pytest.mark.parametrize("look", [{}, {"color_scheme": "dark"}, {"viewport": PHONE}], ids=["light", "dark", "phone"])
def test_axe_finds_no_serious_fault(visit, axe, made, tmp_path, look):
    page = visit(**look)

    def faults():
        page.evaluate(f"() => {{ if (!window.axe) {{ {axe} }} }}")
        found = page.evaluate("axe.run({ resultTypes: ['violations'] })")
        assert found["passes"], "axe looked at nothing"
        return [
            (fault["id"], node["target"], node["failureSummary"])
            for fault in found["violations"]
            if fault["impact"] in ("serious", "critical")
            for node in fault["nodes"]
        ]

    assert faults() == []
    page.fill("#query", "rainbow")
    expect(page.locator(".score").first).not_to_be_empty()
    assert faults() == []
    page.locator(".card").first.click()
    expect(page.locator("#viewer")).to_be_visible()
    page.wait_for_timeout(300)
    assert faults() == []
    page.keyboard.press("Escape")
    (tmp_path / "notes.txt").write_text("hello " * 50)
    dropped(page, tmp_path / "notes.txt", "notes.txt", "text/plain")
    expect(page.locator("#message")).to_contain_text("cannot be searched by")
    page.wait_for_timeout(300)
    assert faults() == []
    dropped(page, made[1] / "fractal.png", "holiday.png", "image/png")
    expect(page.locator("#chip-name")).to_have_text("holiday.png")
    page.evaluate("document.querySelector('#lost').hidden = false")
    assert faults() == []
