"""Several processes that train one model: how many a launcher started, and which one is gone when the others stop."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from types import FrameType

import torch
import torch.distributed as dist

from edgekit.errors import EdgekitError, RecipeError, TrainingError, first_line
from edgekit.recipe import TrainSettings
from edgekit.train.state import FILE

# Seconds for the other processes to report that they noticed, too; torchrun kills those that take more than 30.
_GRACE = 5.0
_NOTICED = "noticed"
# What a launcher other than torchrun tells the processes that it starts on several nodes.
_LAUNCHED = ("MASTER_ADDR", "SLURM_NTASKS", "LSB_JOBID", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE")


def as_launched(settings: TrainSettings) -> TrainSettings:
    """The settings with the devices and nodes that torchrun started processes for; without torchrun, as they are.

    Raises: RecipeError: the settings ask for others, or for several nodes that nothing started.
    """
    if not (dist.is_available() and dist.is_torchelastic_launched()):
        if settings.num_nodes > 1 and not any(name in os.environ for name in _LAUNCHED):
            raise RecipeError(
                f"num_nodes is {settings.num_nodes}, but this process was started alone: start it by torchrun on each "
                "node (docs/training.md has the line), or leave --num-nodes out"
            )
        return settings
    world, here = int(os.environ["WORLD_SIZE"]), int(os.environ["LOCAL_WORLD_SIZE"])
    if world % here:
        raise RecipeError(
            f"torchrun started {here} processes on this node and {world} in all: expected as many on every node; "
            "give each the same --nproc-per-node"
        )
    found = {"devices": here, "num_nodes": world // here}
    for name, count in found.items():
        asked = str(getattr(settings, name))
        # 1 is the default: nobody asked.
        if asked not in ("1", "-1", "auto", str(count)):
            raise RecipeError(
                f"{name} is {asked}, but torchrun started processes for {count}: leave it out, torchrun decides"
            )
    return settings.model_copy(update=found)


def first() -> bool:
    """Whether this is the only process of its run, or the one among several that writes and prints."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank() == 0
    return int(os.environ.get("RANK", os.environ.get("LOCAL_RANK", "0"))) == 0


def join(launch: Callable[[], object], settings: TrainSettings) -> None:
    """Start or find the other processes. Raises: TrainingError: they did not come together in time."""
    try:
        launch()
    except (dist.DistError, TimeoutError) as error:
        raise TrainingError(
            f"the processes did not find each other within {settings.process_timeout:g} s ({first_line(error)}): "
            "expected the same number of nodes and the same address and port on every node, and no firewall in between"
        ) from error


@contextmanager
def together(folder: Path) -> Iterator[None]:
    """Train beside other processes, and when one of them is gone, say which.

    A process that dies takes its connections with it: what the others exchange next fails (at once over gloo, else when
    `process_timeout` is over), or their launcher tells them to stop (SIGTERM). Each then reports to the store that the
    launcher keeps; who does not within seconds is gone, and who failed with an error has left it there.

    Args:
        folder: of the run.
    Raises: TrainingError: names the ranks that are gone and how to go on.
    """
    if not (dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1):
        yield
        return
    meeting = _Meeting()
    before = _on_terminate(meeting.stop)
    try:
        yield
    except (RuntimeError, _ToldToStopError) as error:
        if not _is_about_others(error):
            meeting.report(first_line(error))
            raise
        raise TrainingError(meeting.lost(error, folder)) from error
    except (EdgekitError, OSError, MemoryError) as error:
        meeting.report(first_line(error))
        raise
    finally:
        if before is not None:
            signal.signal(signal.SIGTERM, before)


class _ToldToStopError(Exception):
    """SIGTERM came."""


class _Meeting:
    """The store where processes report why they stop; open from the start, while all are alive."""

    def __init__(self) -> None:
        self.rank, self.world = dist.get_rank(), dist.get_world_size()
        # A restarted job must not read what the one before left.
        attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
        self._keys = [f"edgekit/{attempt}/{rank}" for rank in range(self.world)]
        address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        self._store = dist.TCPStore(  # type: ignore[attr-defined]
            address, port, is_master=False, timeout=timedelta(seconds=30), wait_for_workers=False
        )
        self._stopping = False

    def stop(self, number: int, frame: FrameType | None) -> None:
        """Handle SIGTERM: once; while the reason is being looked for it is no news."""
        if not self._stopping:
            self._stopping = True
            raise _ToldToStopError("SIGTERM")

    def report(self, word: str) -> None:
        """Leave word for the others, unless the store is gone."""
        self._stopping = True
        try:
            self._store.set(self._keys[self.rank], word)
        except (RuntimeError, OSError):
            return

    def lost(self, error: Exception, folder: Path) -> str:
        """Find out who is gone and word it."""
        self.report(_NOTICED)
        if dist.get_backend() == "gloo":
            # Others may wait for this process, not for the one that is gone: now they notice, too.
            dist.destroy_process_group()
        kept = folder / FILE
        batch = "as many processes as before, or others with processes x batch the same"
        go_on = (
            f"the last checkpoint is {kept}: start the same command with --resume, {batch}"
            if kept.exists()
            else "no checkpoint was due before: start the same command with --resume"
        )
        return f"rank {self.rank} of {self.world} stopped, {self._reason(error)}; {go_on}"

    def _reason(self, error: Exception) -> str:
        others = [rank for rank in range(self.world) if rank != self.rank]
        words: dict[int, str] = {}
        end = time.monotonic() + _GRACE
        try:
            while len(words) < len(others) and time.monotonic() < end:
                time.sleep(0.05)
                for rank in others:
                    if rank not in words and self._store.check([self._keys[rank]]):
                        words[rank] = self._store.get(self._keys[rank]).decode()
        except (RuntimeError, OSError):
            where = os.environ["MASTER_ADDR"]
            return f"because the process at {where} that keeps all of them together is gone: look at what it said last"
        silent = [str(rank) for rank in others if rank not in words]
        if silent:
            return (
                f"because rank {', '.join(silent)} is gone without a word: killed, out of memory, or its machine is "
                "down or cut off"
            )
        for rank, word in words.items():
            if word != _NOTICED:
                return f"because rank {rank} did: {word}"
        if isinstance(error, _ToldToStopError):
            return "as all were told to (SIGTERM)"
        return f"because the exchange between them failed: {first_line(error)}"


def _is_about_others(error: Exception) -> bool:
    """Whether an exchange failed, or this process was told to stop: nothing that it did itself."""
    if isinstance(error, dist.DistError | _ToldToStopError):
        return True
    text = str(error).lower()
    return not isinstance(error, torch.OutOfMemoryError) and any(word in text for word in ("gloo", "nccl"))


def _on_terminate(handler: Callable[[int, FrameType | None], None]) -> signal._HANDLER:
    """Install a handler of SIGTERM where that is possible; returns the one before, None where it is not."""
    if threading.current_thread() is not threading.main_thread():
        return None
    return signal.signal(signal.SIGTERM, handler)
