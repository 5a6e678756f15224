"""What every inference engine promises. The documentation of the contract lives here; engines do not repeat it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from numpy.typing import NDArray

from edgekit.bundle.manifest import Variant


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


class Engine(Protocol):
    """One open model file. Not safe to run from two threads at once.

    Attributes:
        name: as `Variant.engine` writes it, "litert".
        library: the library that runs it, with its version, "ai-edge-litert 2.3.0".
        threads: CPU threads it was opened with.
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


class EngineModule(Protocol):
    """What an engine's file offers at module level. The file's name is the engine's name."""

    @staticmethod
    def open(path: Path, variant: Variant, *, threads: int, portable: bool = False) -> Engine:
        """Open a model file and compare its tensors with what the manifest says of them.

        Args:
            path: the model file.
            variant: what the manifest says of it.
            threads: CPU threads, at least 1.
            portable: use the slow kernels that give the same bits on every machine, for `check` where the fast ones are
                missing.
        Raises: MissingExtraError: no library to run it; EngineError: the file is corrupt, or its tensors (name, dtype,
            shape, scale, zero point) are not those of the manifest; the engine has no portable kernels.
        """
        ...

    @staticmethod
    def available() -> Availability:
        """Whether a library to run this engine's files is installed. Never raises."""
        ...
