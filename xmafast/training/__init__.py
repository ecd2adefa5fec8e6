"""Training a method on a frozen backbone, from a frame cache.

recipe.py      how to optimise
recipes.py     the published recipes
split.py       which rows train and which ones choose the epoch
data.py        the batches, drawn in order and read ahead
tokens.py      the token cache of a run on the last blocks
loop.py        the steps
settings.py    what a run is made from, and config.json
folder.py      the run's folder
checkpoint.py  the file that a run is resumed from
stopping.py    SIGTERM and Ctrl-C
log.py         log.jsonl, TensorBoard, a profiler's trace
run.py         ``train``: all of it
"""

from xmafast.training.folder import is_interrupted
from xmafast.training.loop import Diverged, Step, Trainer, batch_loss, fit
from xmafast.training.recipe import Recipe, make_optimizer, schedule
from xmafast.training.run import Trained, train
from xmafast.training.settings import UNSET
from xmafast.training.split import Split, training_split
from xmafast.training.stopping import Interrupted
from xmafast.training.validation import Metrics

__all__ = [
    "Diverged",
    "Interrupted",
    "Metrics",
    "Recipe",
    "Split",
    "Step",
    "Trained",
    "Trainer",
    "UNSET",
    "batch_loss",
    "fit",
    "is_interrupted",
    "make_optimizer",
    "schedule",
    "train",
    "training_split",
]
