"""What every target promises: lower a model to files, and tell layer by layer what became of it."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol, TypeAlias

from edgekit.bundle.manifest import LayerReport, Manifest, Variant
from edgekit.compress.batches import Batches
from edgekit.compress.program import QuantizedProgram
from edgekit.compress.scheme import Scheme
from edgekit.errors import ExportError, MissingExtraError
from edgekit.models.base import DenoiserModel

# "min", "opt" and "max", any of them: [N, C, H, W].
ShapeProfile: TypeAlias = Mapping[Literal["min", "opt", "max"], tuple[int, int, int, int]]


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

    def check_profile(self, profile: ShapeProfile | None, *, channels: int, tile: int) -> None:
        """Refuse shapes that its engine could not be built for, before anything runs.

        Args:
            profile: shapes [N, C, H, W] as "min", "opt" and "max", as the recipe has them; None is one tile.
            channels: of the model's images.
            tile: height and width of one tile.
        Raises: RecipeError.
        """
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
    """What targets have in common: no further quantizers or files unless they say so, and what they refuse."""

    name: str
    extra: str
    precisions: tuple[str, ...]
    quantizers: tuple[str, ...] = ()
    # What it writes with, by import name.
    libraries: tuple[str, ...]

    def available(self) -> str | None:
        """None when what it writes with is installed, else the missing library."""
        missing = (name for name in self.libraries if importlib.util.find_spec(name) is None)
        return next((name.replace("_", "-") for name in missing), None)

    def require(self, precision: str, program: QuantizedProgram | None) -> None:
        """Refuse what cannot be lowered. Raises: MissingExtraError, ExportError."""
        if (missing := self.available()) is not None:
            raise MissingExtraError.needs(f"the {self.name} target", missing, self.extra)
        if precision not in self.precisions:
            raise ExportError(f"precision {precision!r}: {self.name} exports {', '.join(self.precisions)}")
        if precision == "int8" and program is None:
            raise ExportError("precision 'int8' needs a quantized program: run the quantize stage first")

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

    def check_profile(self, profile: ShapeProfile | None, *, channels: int, tile: int) -> None:
        """Nothing to refuse: its files take any size, or one tile."""

    def extras(self, manifest: Manifest) -> dict[str, str]:
        """There are none."""
        return {}
