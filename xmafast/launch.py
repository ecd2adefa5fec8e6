"""Start the processes of a training on this machine, with torchrun's launcher."""

from __future__ import annotations

import logging
import os
import signal
import sys
import uuid
from collections.abc import Sequence

from xmafast.distributed import NPROC, PARENT, check_gpus
from xmafast.errors import RunError

LEAVING = 60  # seconds that a process has to end its step and save, where the launcher can be told


def launch(count: int, arguments: Sequence[str], resume: str) -> int:
    """Run ``python -m xmafast.cli ARGUMENTS`` in ``count`` processes that know of each other; returns 0, or the exit code of the first
    that failed and has said why.

    resume: the command that goes on, for the message where one was killed. Raises UsageError where there are fewer GPUs, RunError where
    a process was killed; the others are ended then.
    """
    check_gpus(count)
    from torch.distributed.elastic.multiprocessing import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    for name in [*logging.root.manager.loggerDict]:
        if name.startswith("torch.distributed"):
            logging.getLogger(name).setLevel(logging.CRITICAL)  # what is to be said is said here
    os.environ |= {NPROC: str(count), PARENT: str(os.getpid())}
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // count)))
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=count,
        run_id=uuid.uuid4().hex,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        max_restarts=0,
    )
    if hasattr(config, "shutdown_timeout"):
        config.shutdown_timeout = LEAVING
    try:
        elastic_launch(config, sys.executable)("-m", "xmafast.cli", *arguments)
    except ChildFailedError as error:
        # those that it has ended itself, once one had failed, are listed as well
        failed = {rank: failure for rank, failure in error.failures.items() if failure.exitcode != -signal.SIGTERM} or error.failures
        rank, failure = min(failed.items(), key=lambda item: (item[1].exitcode >= 0, item[1].timestamp))
        if failure.exitcode >= 0:
            return failure.exitcode
        name = signal.Signals(-failure.exitcode).name
        often = " (which a machine that is out of memory sends)" if name == "SIGKILL" else ""
        raise RunError(
            f"Process {rank} of {count} (pid {failure.pid}) was killed by {name}{often}, and the others were ended; go on with: {resume}"
        ) from None
    except SignalException as stop:  # it was passed on, and the first process has said what is saved
        return 128 + int(stop.sigval)
    finally:
        del os.environ[NPROC], os.environ[PARENT]
    return 0
