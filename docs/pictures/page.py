"""Take the README's picture of the search page: the demo's test clips in a library, served, and a question typed into a real Chromium.

    python docs/pictures/page.py RUN [--caches caches/demo] [--ask "red heart"]

RUN is what `xmafast train` left on the demo. The page is the served one, the clips are found by the run's adapter; beside it stands the
frozen backbone, to switch to. Writes page.png and page-dark.png here. Needs Chromium and playwright (extra `test`).
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image
from playwright.sync_api import sync_playwright

HERE = Path(__file__).parent
SIZE = {"width": 1120, "height": 700}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--caches", type=Path, default=Path("caches/demo"))
    parser.add_argument("--ask", default="red heart")
    args = parser.parse_args()
    xmafast = [sys.executable, "-m", "xmafast.cli"]
    with tempfile.TemporaryDirectory() as folder:
        library, test = str(Path(folder) / "demo.xma"), str(args.caches / "test.h5")
        for adapter in (["--run", str(args.run), "--name", "cross-modal"], ["--backbone", "demo", "--name", "frozen"]):
            subprocess.run([*xmafast, "index", test, "--out", library, *adapter], check=True)
        server = subprocess.Popen([*xmafast, "serve", library, "--port", "0"], stdout=subprocess.PIPE, text=True)
        try:
            assert server.stdout is not None
            address = next(found[0] for line in server.stdout if (found := re.search(r"http://\S+/", line)))
            take(address, args.ask)
        finally:
            server.terminate()
            server.wait()


def take(address: str, ask: str) -> None:
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        for name, scheme in (("page.png", "light"), ("page-dark.png", "dark")):
            page = browser.new_page(viewport=SIZE, color_scheme=scheme, device_scale_factor=1.5)
            page.goto(address)
            page.locator("#query").fill(ask)
            page.locator(".card").first.wait_for()
            page.wait_for_timeout(3000)  # for its pictures
            page.screenshot(path=HERE / name)
            with Image.open(HERE / name) as picture:
                picture.convert("RGB").quantize(256).save(HERE / name, optimize=True)
            print(HERE / name, f"{(HERE / name).stat().st_size / 1e3:.0f} kB")
        browser.close()


if __name__ == "__main__":
    main()
