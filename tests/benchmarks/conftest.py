"""The scripts under benchmarks/ import each other by name, as they do when one is run."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))
