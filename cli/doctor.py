"""``xmafast doctor``: what this machine has, what falls back, and why."""

from __future__ import annotations

from pathlib import Path

import typer

from xmafast.cli.options import JSON, WORKSPACE
from xmafast.cli.output import out, print_json


def doctor(json: JSON = False, workspace: WORKSPACE = Path()) -> None:
    """Show what this machine has, what falls back, and why. Exit code 1 where something needed is missing."""
    from rich.table import Table

    from xmafast.doctor import examine

    findings = examine(workspace)
    if json:
        print_json([finding._asdict() for finding in findings])
    else:
        table = Table("", "state", "detail", title="xmafast doctor", title_justify="left")
        for finding in findings:
            table.add_row(*finding)
        out.print(table)
    if any(finding.state == "missing" for finding in findings):
        raise typer.Exit(1)
