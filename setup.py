"""Records the commit that a wheel or an sdist is built from; everything else is in pyproject.toml.

An editable installation records nothing: there `xmafast --version` asks git for what is checked out at that moment.
"""

import runpy
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py
from setuptools.command.sdist import sdist

ROOT = Path(__file__).resolve().parent
VERSION = runpy.run_path(str(ROOT / "xmafast" / "version.py"))


def record(folder: Path) -> None:
    """Write the commit into this copy of the package, where it is known; in an unpacked sdist the file is there already."""
    if commit := VERSION["commit_of"](ROOT):
        (folder / VERSION["RECORD"]).write_text(f"{commit}\n", encoding="utf-8")


class RecordingBuild(build_py):
    def run(self) -> None:
        super().run()
        if not self.editable_mode:
            record(Path(self.build_lib, "xmafast"))


class RecordingSdist(sdist):
    def make_release_tree(self, base_dir: str, files: list[str]) -> None:
        super().make_release_tree(base_dir, files)
        record(Path(base_dir, "xmafast"))


setup(cmdclass={"build_py": RecordingBuild, "sdist": RecordingSdist})
