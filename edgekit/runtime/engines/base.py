"""What every inference engine promises. The documentation of the contract lives here; engines do not repeat it."""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from numpy.typing import NDArray

from edgekit.bundle.manifest import Variant
from edgekit.errors import MissingExtraError, NoPortableError, RecipeError
from edgekit.runtime.unreported import unreported


@dataclass(frozen=True)
class OperatorCount:
    """How many operators of one kind a graph holds, and how many of them the fast kernels took."""

    total: int
    delegated: int


@dataclass(frozen=True)
class Availability:
    """Whether an engine can run here, for `edgekit doctor`.

    Attributes:
        engine: the engine's name, "litert".
        library: the library that would be used, with its version, "ai-edge-litert 2.3.0"; None when there is none.
        problem: why there is none, or "".
        fix: the pip line that mends it, or "".
    """

    engine: str
    library: str | None
    problem: str = ""
    fix: str = ""


HINTS = ("latency", "throughput")


@dataclass(frozen=True)
class EngineOptions:
    """How to run a model beyond its threads, for engines that know such a choice; others refuse all but the default.

    Attributes:
        device: what runs it, as the engine's library names it ("CPU", "GPU", "NPU", "AUTO" for OpenVINO); "" is the
            engine's default.
        hint: "latency" (one tile at a time, as fast as it goes) or "throughput" (several at once, for folders).
        cache: folder where compiled models are kept for the next time; None keeps none.
        tile: side of the windows that large images are cut into, which engines of any size prepare for; 0 if unknown.
    """

    device: str = ""
    hint: str = "latency"
    cache: Path | None = None
    tile: int = 0

    def refuse(self, engine: str) -> None:
        """Raise for an engine without such choices. Raises: RecipeError."""
        for name, value in (("device", self.device.upper().replace("CPU", "")), ("cache", self.cache)):
            if value:
                raise RecipeError(
                    f"{name} is {str(getattr(self, name))!r}: engine {engine} has no such choice; leave it out"
                )


DEFAULTS = EngineOptions()


class Engine(Protocol):
    """One open model file. Not safe to run from two threads at once.

    Attributes:
        name: as `Variant.engine` writes it, "litert".
        library: the library that runs it, with its version, "ai-edge-litert 2.3.0".
        threads: CPU threads it was opened with.
        any_size: whether batches may have any height and width that the network takes; otherwise they are the tile's.
        has_portable: whether `open` knows kernels with the same bits on every machine.
        counts_file: whether `macs` are those of the model file; otherwise they are what this device makes of it.
        kernels: what computes the operators that do arithmetic: "xnnpack" (all of them), "mixed" (some of them),
            "reference" (none), or "unknown" where the library does not tell. Only "xnnpack" gives the same bits on
            every machine.
        operators: census of the graph by the format's operator name; empty where the library does not tell.
        macs: multiply-accumulates of one run by the dtype they are computed in, counted in the open file, e.g.
            {"int8": 570_000_000}; empty where the library does not tell.
    """

    name: str
    library: str
    threads: int
    any_size: bool
    has_portable: bool
    counts_file: bool
    kernels: str
    operators: Mapping[str, OperatorCount]
    macs: Mapping[str, int]

    def run(self, inputs: Mapping[str, NDArray[Any]]) -> NDArray[Any]:
        """Run one batch.

        Args:
            inputs: one array per input of the variant, by `TensorSpec.name`, already in the tensor's dtype and shape.
        Returns: the variant's first output, a copy, in the tensor's dtype.
        Raises: EngineError: a missing, unknown or ill-fitting input; the library failed; the engine is closed.
        """
        ...

    def close(self) -> None:
        """Free the model. Closing twice is allowed."""
        ...


@runtime_checkable
class Profiler(Protocol):
    """What an engine may offer besides: the time of each layer. Optional: an engine that cannot tell has no `profile`.

    `edgekit bench` asks for it where an int8 model file is slower than the float one, to name the layers that cost it.
    """

    def profile(self, inputs: Mapping[str, NDArray[Any]]) -> Mapping[str, float]:
        """Run one batch and time its layers.

        Args:
            inputs: as for `Engine.run`.
        Returns: milliseconds by the layer's name, in the order they ran. Where engine and format allow it, the names
            are those of `LayerReport.name`, and a layer has one name in the int8 and in the float file.
        Raises: EngineError: as `Engine.run`.
        """
        ...


def run_all(engine: Engine, batches: Iterator[Mapping[str, NDArray[Any]]]) -> Iterator[NDArray[Any]]:
    """The outputs of a stream of batches, in order: by the engine's own `run_many`, which may work on several at once.

    An engine without one runs batch by batch.
    """
    many = getattr(engine, "run_many", None)
    return many(batches) if many is not None else map(engine.run, batches)


class EngineModule(Protocol):
    """What an engine's file offers at module level. The file's name is the engine's name."""

    @staticmethod
    def open(
        path: Path, variant: Variant, *, threads: int, portable: bool = False, options: EngineOptions = DEFAULTS
    ) -> Engine:
        """Open a model file and compare its tensors with what the manifest says of them.

        Args:
            path: the model file.
            variant: what the manifest says of it.
            threads: CPU threads, at least 1.
            portable: use the slow kernels that give the same bits on every machine, for `check` where the fast ones are
                missing.
            options: device, hint, cache.
        Raises: MissingExtraError: no library to run it; EngineError: the file is corrupt, or its tensors (name, dtype,
            shape, scale, zero point) are not those of the manifest; the engine has no portable kernels. RecipeError: an
            option that the engine does not know.
        """
        ...

    @staticmethod
    def available() -> Availability:
        """Whether a library to run this engine's files is installed. Never raises."""
        ...


def look(name: str) -> Availability:
    """Whether the library of an engine that is named after it can be imported, and its version."""
    try:
        with unreported():
            version = str(importlib.import_module(name).__version__)
    except ImportError as error:
        missing = isinstance(error, ModuleNotFoundError) and error.name == name
        problem = "not installed" if missing else f"installed but broken ({' '.join(str(error).split())})"
        return Availability(name, None, problem, f"pip install 'edgekit[{name}]'")
    return Availability(name, f"{name} {version.split('-')[0]}")


def require(name: str, path: Path, *, portable: bool) -> None:
    """Refuse to open a file where the engine's library is missing, or portable kernels are wanted and it has none."""
    found = look(name)
    if found.library is None and found.problem == "not installed":
        raise MissingExtraError.needs(f"running {path.name}", name, name)
    if found.library is None:
        raise MissingExtraError(f"running {path.name} needs {name}: {found.problem}: {found.fix}")
    if portable:
        raise NoPortableError(f"{name} has no portable kernels: its bits may differ from machine to machine")
