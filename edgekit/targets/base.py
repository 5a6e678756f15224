"""What every target promises: lower a model to files, and tell layer by layer what became of it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from edgekit.bundle.manifest import LayerReport, Variant
from edgekit.compress.program import QuantizedProgram
from edgekit.compress.scheme import Scheme
from edgekit.models.base import DenoiserModel


@dataclass(frozen=True)
class Lowered:
    """What `Target.lower` wrote: the variants (the first is the one asked for) and the layer report of the first."""

    variants: tuple[Variant, ...]
    layers: tuple[LayerReport, ...]


class Target(Protocol):
    """A device family that a model can be lowered to. One file each in this folder, found by `targets.registry`.

    Attributes:
        name: as on the command line, "tflite".
        extra: the pip extra that brings its libraries.
        engine: the runtime engine that opens its files.
        precisions: precisions it can export: "int8", "fp16", "fp32".
    """

    name: str
    extra: str
    engine: str
    precisions: tuple[str, ...]

    def scheme(self) -> Scheme:
        """How this target wants its integers."""
        ...

    def available(self) -> str | None:
        """None when its libraries are installed, else what is missing."""
        ...

    def lower(
        self,
        model: DenoiserModel,
        program: QuantizedProgram | None,
        folder: Path,
        *,
        name: str,
        tile: int,
        precision: str,
    ) -> Lowered:
        """Write the model files into `folder`.

        Args:
            model: the compressed float model (for the float fallbacks).
            program: its quantized program, None unless precision is "int8".
            folder: an existing empty folder.
            name: stem of the file names.
            tile: height and width of the static input, a multiple of the model's stride.
            precision: "int8", "fp16" or "fp32"; what the first variant is.
        Raises: ExportError.
        """
        ...
