"""Peak memory of a model file, in a process of its own: in a shared one, what ran before it would hide it."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import edgekit
from edgekit.bundle import reader
from edgekit.runtime.denoiser import Denoiser
from edgekit.runtime.one_tile import fill_one_tile

# An engine may allocate until its second run.
_RUNS = 2
_SECONDS = 600.0


def peak_memory(folder: Path, variant: str, threads: int) -> tuple[int | None, str]:
    """Measure what opening a model file and running a tile adds to a process.

    Args:
        folder: the bundle's, whose files were compared with their sha256 before.
        variant: which of its model files.
        threads: CPU threads.
    Returns: the most bytes it held at once beyond those before the model was opened, the engine's library included; and
        why that is None where it is. Never raises: a missing figure is no reason to lose the others.
    """
    command = [sys.executable, "-m", "edgekit.runtime.memory", str(folder), variant, str(threads)]
    # This very edgekit, however this process found it.
    places = [str(Path(edgekit.__file__).parent.parent), os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, places))}
    try:
        done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=_SECONDS, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        return None, f"not measured: {error}"
    try:
        found: int | None = json.loads(done.stdout)["peak_memory"]
    except (ValueError, KeyError, TypeError):
        lines = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        return None, f"not measured: {lines[-1]}"
    return found, "" if found is not None else "not measured: this system does not tell it"


def _worker(arguments: Sequence[str]) -> None:
    """Open and run one model file, and print how many bytes that took at most."""
    parser = argparse.ArgumentParser(prog="python -m edgekit.runtime.memory", description=_worker.__doc__)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("variant")
    parser.add_argument("threads", type=int)
    options = parser.parse_args(arguments)
    with reader.read(options.bundle, verify=False) as bundle:
        image, sigma = fill_one_tile(bundle)
        forget_high_water()
        before = high_water()
        with Denoiser.from_bundle(bundle, options.variant, options.threads) as denoiser:
            for _ in range(_RUNS):
                denoiser(image, sigma=sigma)
        after = high_water()
    print(json.dumps({"peak_memory": None if before is None or after is None else after - before}))


def high_water() -> int | None:
    """The most bytes of memory that this process has held at once; None where the system does not tell (Windows)."""
    # Not getrusage where there is better: on Linux a child's ru_maxrss begins at its parent's, which may be gigabytes.
    with suppress(OSError, ValueError, IndexError):
        return int(Path("/proc/self/status").read_text().partition("VmHWM:")[2].split()[0]) * 1024
    try:
        import resource
    except ImportError:
        return None
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def forget_high_water() -> None:
    """Let the high water mark begin anew, where Linux allows it: loading the golden tiles must not hide the model."""
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


if __name__ == "__main__":
    _worker(sys.argv[1:])
