"""``xmafast serve``: the page over a library."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from xmafast.cli.options import WORKSPACE
from xmafast.cli.output import note, out


def serve(
    ctx: typer.Context,
    library: Annotated[Path | None, typer.Argument(help="The library (default: lib.xma in the workspace).")] = None,
    host: Annotated[str, typer.Option(help="The address to listen on; 0.0.0.0 lets other machines in.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one.")] = 8765,
    adapter: Annotated[str | None, typer.Option(help="The adapter that is searched first (default: the library's first).")] = None,
    allow_host: Annotated[
        list[str] | None, typer.Option(help="Another name that the server is called by, as of a proxy before it.")
    ] = None,
    workspace: WORKSPACE = Path(),
) -> None:
    """Search a library in a browser: by text as you type, by an image or a clip.

    What `xmafast index` changes is taken over while the server runs. The JSON API is described at /openapi.json.

    Examples: xmafast serve lib.xma | xmafast serve lib.xma --port 9000 --adapter mine
    """
    from xmafast.errors import UsageError

    try:
        import h11  # noqa: F401
        import starlette  # noqa: F401
        import uvicorn  # noqa: F401
    except ImportError as error:
        raise UsageError(f"The page needs {error.name}, which is not installed; try: pip install 'xmafast[serve]'") from error
    from xmafast.serve.run import is_loopback, run

    path = library or workspace / "lib.xma"
    note(f"Opening {path}")

    def ready(address: str) -> None:
        if not is_loopback(host):
            note(f"Listening on {host}: whoever reaches this machine can search the library and see its files. There is no password.")
        out.print(f"Searching {path} at {address} (Ctrl+C ends it)")

    debug = bool(ctx.parent and ctx.parent.params.get("debug"))
    try:
        run(path, host=host, port=port, adapter=adapter, names=allow_host or (), ready=ready, debug=debug)
    except KeyboardInterrupt:
        note("Stopped.")
