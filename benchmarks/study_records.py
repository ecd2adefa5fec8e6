"""The study's results file: one JSON object, a line for the outcome of each run, under its key."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any


class Records:
    """Written after each run, whole or not at all: a study that is killed goes on with the runs that are missing."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.rows: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}

    def __contains__(self, key: str) -> bool:
        return key in self.rows

    def __getitem__(self, key: str) -> Any:
        return self.rows[key]

    def __setitem__(self, key: str, value: Any) -> None:
        self.rows[key] = value
        self.path.parent.mkdir(parents=True, exist_ok=True)
        lines = (f"{json.dumps(name)}: {json.dumps(self.rows[name], sort_keys=True)}" for name in sorted(self.rows))
        partial = self.path.with_name(self.path.name + ".partial")
        with partial.open("w", encoding="utf-8") as file:
            file.write("{\n" + ",\n".join(lines) + "\n}\n")
            file.flush()
            os.fsync(file.fileno())
        partial.replace(self.path)
