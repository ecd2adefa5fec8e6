"""Checks a built site without a network: every address within it leads to a file, and every #name to a place in that file.

    python docs/site/check.py docs/_build/html

Sphinx checks the links that it makes of Markdown; this reads what came out, navigation, search and home page included.
"""

from __future__ import annotations

import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit


class Page(HTMLParser):
    """The addresses and the names of one page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.links: list[str] = []
        self.names: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for key, value in attrs:
            if key in ("href", "src") and value:
                self.links.append(value)
            elif (key == "id" or (tag == "a" and key == "name")) and value:
                self.names.add(value)


def dead_links(site: Path) -> list[str]:
    """One line for each link of the site's pages that leads nowhere in it."""
    pages = {path: Page(path.read_text(encoding="utf-8")) for path in sorted(site.rglob("*.html"))}
    dead = []
    for path, page in pages.items():
        for link in dict.fromkeys(page.links):
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            target = target / "index.html" if target.is_dir() else target
            if not target.is_file() or not target.is_relative_to(site):
                dead.append(f"{path.relative_to(site)}: {link} is not there")
            elif parts.fragment and target in pages and unquote(parts.fragment) not in pages[target].names:
                dead.append(f"{path.relative_to(site)}: {link} names no place of that page")
    return dead


if __name__ == "__main__":
    site = Path(sys.argv[1]).resolve()
    found = dead_links(site)
    print("\n".join(found) or f"{len(list(site.rglob('*.html')))} pages, every link within them leads somewhere.")
    sys.exit(bool(found))
