"""Record the README's terminal session and draw it: every command is run in a pseudo-terminal, and what it prints is what is drawn.

    python docs/pictures/session.py [--out docs/pictures/session.svg] [--speed 8] [--keep session.cast]
    python docs/pictures/session.py --from session.cast         draw again what was recorded

The commands run one after the other in an empty folder with the `xmafast` of this environment. Typing is drawn at a person's pace; while
a command runs the picture is ``--speed`` times as fast as it was, and no wait is longer than a second. The record is an asciicast, version
2. The picture is one SVG that moves by itself (SMIL), needs no network, and ends with the last screen. Needs pyte (extra `docs`), a
terminal emulator, which says what a screen shows after what was written to it.
"""

from __future__ import annotations

import argparse
import json
import os
import pty
import select
import struct
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from fcntl import ioctl
from pathlib import Path
from termios import TIOCSWINSZ
from xml.sax.saxutils import escape

import pyte

COMMANDS = ("xmafast cache demo", "xmafast train", "xmafast eval --topk 1 5 10", 'xmafast search "red heart"')
COLUMNS, ROWS = 118, 30
KEY, PAUSE, LONGEST, END = 0.05, 0.8, 1.0, 5.0  # seconds: a key, before a command starts, a wait, the last screen
STEP = 0.2  # the picture changes at most this often
WIDTH, HEIGHT, MARGIN = 8.0, 18.0, 16.0  # of a character, and around all
PROMPT = "\x1b[1;32m$\x1b[0m "
COLOURS = {
    "default": "#d8dee9",
    "black": "#4c566a",
    "red": "#e06c75",
    "green": "#98c379",
    "brown": "#e5c07b",
    "blue": "#61afef",
    "magenta": "#c678dd",
    "cyan": "#56b6c2",
    "white": "#eceff4",
}
Event = tuple[float, str]  # seconds from the beginning, what was written


def record(commands: tuple[str, ...], speed: float) -> Iterator[Event]:
    """Run the commands in an empty folder."""
    now = 0.0
    with tempfile.TemporaryDirectory() as folder:
        for command in commands:
            yield now, PROMPT
            for letter in command:
                now += KEY
                yield now, letter
            now += PAUSE
            yield now, "\r\n"
            for waited, text in run(command, Path(folder)):
                now += min(waited / speed, LONGEST)
                yield now, text
            now += PAUSE
    yield now, PROMPT


def run(command: str, folder: Path) -> Iterator[Event]:
    """(seconds since what was written before, what is written). Exits where the command fails."""
    child, terminal = pty.fork()
    if child == 0:
        os.chdir(folder)
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        os.execvpe("sh", ["sh", "-c", command], {**os.environ, "PATH": path, "TERM": "xterm-256color", "COLUMNS": str(COLUMNS)})
    ioctl(terminal, TIOCSWINSZ, struct.pack("HHHH", ROWS, COLUMNS, 0, 0))
    last, rest = time.monotonic(), b""
    while select.select([terminal], [], [])[0]:
        try:
            content = os.read(terminal, 65536)
        except OSError:  # the terminal's other end is closed
            break
        if not content:
            break
        now = time.monotonic()
        text = (rest + content).decode("utf-8", "ignore")
        rest = (rest + content)[len(text.encode("utf-8")) :]
        yield now - last, text
        last = now
    _, status = os.waitpid(child, 0)
    os.close(terminal)
    if code := os.waitstatus_to_exitcode(status):
        sys.exit(f"{command} ended with {code}")


@dataclass
class Shown:
    """A line's content at its place, from a second to another."""

    row: int
    cells: tuple[tuple[int, str, str, bool], ...]  # (column, text, colour, bold)
    start: float
    end: float = field(default=0.0)


def shown(events: list[Event]) -> tuple[list[Shown], float]:
    """What each line of the screen shows when, and how long the session is."""
    screen, done = pyte.Screen(COLUMNS, ROWS), list[Shown]()
    stream, current, drawn = pyte.Stream(screen), dict[int, Shown](), -STEP
    whole = events[-1][0] + END
    for i, (at, text) in enumerate(events):
        stream.feed(text)
        following = events[i + 1][0] if i + 1 < len(events) else whole
        if following - drawn < STEP and i + 1 < len(events):
            continue
        drawn = at
        for row in range(ROWS):
            cells = spans(screen, row)
            if row in current and current[row].cells == cells:
                continue
            if row in current:
                current[row].end = at
                done.append(current.pop(row))
            if cells:
                current[row] = Shown(row, cells, at)
    for line in current.values():
        line.end = whole
        done.append(line)
    return done, whole


def spans(screen: pyte.Screen, row: int) -> tuple[tuple[int, str, str, bool], ...]:
    """A line in pieces of one colour, without what is blank at its end."""
    found: list[list] = []
    for column in range(COLUMNS):
        cell = screen.buffer[row][column]
        kind = (cell.fg, cell.bold)
        if found and found[-1][2:] == [*kind]:
            found[-1][1] += cell.data
        else:
            found.append([column, cell.data, *kind])
    kept = [(column, text.rstrip(), colour, bold) for column, text, colour, bold in found if text.strip()]
    return tuple(kept)


def drawing(lines: list[Shown], whole: float) -> str:
    """The SVG. Every line is hidden but in its time; those of the last screen are there where nothing moves."""
    width, height = COLUMNS * WIDTH + 2 * MARGIN, ROWS * HEIGHT + 2 * MARGIN
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" xml:space="preserve" viewBox="0 0 {width:g} {height:g}" width="{width:g}" '
        f'height="{height:g}" role="img" aria-label="A terminal in which xmafast caches the demo, trains, evaluates and searches">',
        "<style>text{font:13.3px ui-monospace,SFMono-Regular,Menlo,Consolas,'DejaVu Sans Mono',monospace;white-space:pre}</style>",
        f'<rect width="100%" height="100%" rx="10" fill="#20242c"><animate id="a" attributeName="rx" values="10" dur="{whole:.2f}s" '
        'begin="0s;a.end"/></rect>',
    ]
    for line in lines:
        last = line.end >= whole
        y = MARGIN + (line.row + 0.75) * HEIGHT
        parts.append(f'<g visibility="{"visible" if last else "hidden"}">')
        if last and line.start > 0:
            parts.append(f'<set attributeName="visibility" to="hidden" begin="a.begin" dur="{line.start:.2f}s"/>')
        elif not last:
            parts.append(
                f'<set attributeName="visibility" to="visible" begin="a.begin+{line.start:.2f}s" dur="{line.end - line.start:.2f}s"/>'
            )
        for column, text, colour, bold in line.cells:
            fill = COLOURS.get(colour.removeprefix("bright"), COLOURS["default"] if len(colour) != 6 else f"#{colour}")
            weight = ' font-weight="bold"' if bold else ""
            x, length = MARGIN + column * WIDTH, len(text) * WIDTH
            fit = f'textLength="{length:g}" lengthAdjust="spacingAndGlyphs"'
            parts.append(f'<text x="{x:g}" y="{y:g}" fill="{fill}"{weight} {fit}>{escape(text)}</text>')
        parts.append("</g>")
    return "\n".join([*parts, "</svg>\n"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("commands", nargs="*", default=COMMANDS, metavar="COMMAND")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "session.svg")
    parser.add_argument("--speed", type=float, default=8.0)
    parser.add_argument("--from", dest="source", type=Path, help="a record, to draw it again")
    parser.add_argument("--keep", type=Path, help="where to keep the record")
    args = parser.parse_args()
    if args.source:
        events = [(float(at), text) for at, kind, text in map(json.loads, args.source.read_text(encoding="utf-8").splitlines()[1:])]
    else:
        events = list(record(tuple(args.commands), args.speed))
    if args.keep:
        head = json.dumps({"version": 2, "width": COLUMNS, "height": ROWS})
        args.keep.write_text("\n".join([head, *(json.dumps([round(at, 3), "o", text]) for at, text in events)]) + "\n", encoding="utf-8")
    args.out.write_text(drawing(*shown(events)), encoding="utf-8")
    print(f"{args.out}: {events[-1][0] + END:.0f} s, {args.out.stat().st_size / 1e3:.0f} kB")


if __name__ == "__main__":
    main()
