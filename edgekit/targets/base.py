"""What every target promises: lower a model to files, and tell layer by layer what became of it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from edgekit.bundle.manifest import LayerReport, Manifest, Variant
from edgekit.compress.batches import Batches
from edgekit.compress.program import QuantizedProgram
from edgekit.compress.scheme import Scheme
from edgekit.errors import ExportError
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
        quantizers: tools of others that can make its integers instead, as baselines: "nncf".
    """

    name: str
    extra: str
    engine: str
    precisions: tuple[str, ...]
    quantizers: tuple[str, ...]

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

    def quantized_by(
        self,
        quantizer: str,
        model: DenoiserModel,
        batches: Batches,
        count: int,
        folder: Path,
        *,
        name: str,
        tile: int,
    ) -> Lowered:
        """Write the model files with the integers of another tool, as `lower` does with edgekit's.

        Args:
            quantizer: one of `quantizers`.
            batches: training batches by step number, to calibrate with.
            count: how many of them.
        Raises: MissingExtraError: the tool is not installed. ExportError.
        """
        ...

    def extras(self, manifest: Manifest) -> dict[str, str]:
        """Text files that a bundle for this target holds beside the model files, by path."""
        ...


class Plain:
    """What a target without further quantizers or files promises of them."""

    quantizers: tuple[str, ...] = ()

    def quantized_by(
        self,
        quantizer: str,
        model: DenoiserModel,
        batches: Batches,
        count: int,
        folder: Path,
        *,
        name: str,
        tile: int,
    ) -> Lowered:
        """There is none. Raises: ExportError."""
        raise ExportError(f"quantizer {quantizer!r}: this target takes edgekit's alone")

    def extras(self, manifest: Manifest) -> dict[str, str]:
        """There are none."""
        return {}
