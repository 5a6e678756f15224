"""What works on this machine, and the pip line for each thing that does not."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
from dataclasses import dataclass
from pathlib import Path

from edgekit._version import __version__
from edgekit.extras import EXTRAS, pip_line
from edgekit.shortened import shortened

# Instructions that 8-bit kernels live on, as Linux names them, x86 first, then ARM.
_INT8_FLAGS = ("avx2", "avx512_vnni", "avx_vnni", "amx_int8", "asimd", "asimddp", "i8mm", "sve", "sme")


@dataclass(frozen=True)
class Finding:
    """One line of the report.

    Attributes:
        area: "machine", "engine", "target" or "train".
        name: what was looked at, e.g. "litert".
        works: whether it can be used here.
        detail: versions, or what is wrong.
        fix: what to type, "" where nothing is to be done.
    """

    area: str
    name: str
    works: bool
    detail: str
    fix: str = ""


def examine() -> list[Finding]:
    """Look at the machine, the engines, the targets and training. Nothing is installed, changed or sent anywhere."""
    return [*_machine(), *_engines(), *_targets(), _train()]


def cpu_flags(cpuinfo: str) -> list[str]:
    """Those instructions in the text of /proc/cpuinfo that matter for 8-bit kernels."""
    words = set(cpuinfo.split())
    return [flag for flag in _INT8_FLAGS if flag in words]


def _machine() -> list[Finding]:
    system = f"{platform.system()} {platform.machine()}, Python {platform.python_version()}, edgekit {__version__}"
    info = Path("/proc/cpuinfo")
    flags = cpu_flags(info.read_text(errors="replace")) if info.exists() else []
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return [
        Finding("machine", "system", True, system),
        Finding("machine", "cpu", True, f"{cores} cores, {' '.join(flags) or 'instructions unknown'}"),
        Finding("machine", "numpy, pillow", True, f"{_version('numpy')}, {_version('pillow')}"),
    ]


def _engines() -> list[Finding]:
    from edgekit.runtime.engines import registry

    return [
        Finding("engine", name, found.library is not None, found.library or found.problem, found.fix)
        for name, found in registry.available().items()
    ]


def _targets() -> list[Finding]:
    if importlib.util.find_spec("torch") is None:
        # Without torch the targets cannot even be asked what they need.
        return [Finding("target", "any", False, "torch is not installed", pip_line("train,tflite"))]
    try:
        from edgekit.targets import registry
    except (ImportError, OSError) as error:
        return [Finding("target", "any", False, _broken(error), pip_line("train,tflite"))]
    findings = []
    for name in registry.names():
        target = registry.get(name)
        problem = target.available()
        detail = problem or f"precisions {', '.join(target.precisions)}"
        findings.append(Finding("target", name, problem is None, detail, pip_line(target.extra) if problem else ""))
    return findings


def _train() -> Finding:
    libraries = [library for library, extra in EXTRAS.items() if extra == "train"]
    missing = [library for library in libraries if importlib.util.find_spec(library) is None]
    if missing:
        return Finding("train", "train", False, f"not installed: {shortened(missing, 2)}", pip_line("train"))
    try:
        return Finding("train", "train", True, f"torch {_version('torch')}, {_accelerator()}")
    except (ImportError, OSError) as error:
        return Finding("train", "train", False, _broken(error), pip_line("train"))


def _broken(error: Exception) -> str:
    return f"installed but broken: {' '.join(str(error).split())}"


def _accelerator() -> str:
    import torch

    if torch.cuda.is_available():
        return f"CUDA: {torch.cuda.get_device_name()}"
    if torch.backends.mps.is_available():
        return "Apple MPS"
    return f"CPU, {torch.get_num_threads()} threads"


def _version(distribution: str) -> str:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return "of unknown version"
