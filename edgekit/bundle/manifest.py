"""The manifest: what a bundle says about itself. Standard library only; a device reads it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

SCHEMA = 1


@dataclass(frozen=True)
class TensorSpec:
    """One input or output tensor of a model file.

    Attributes:
        name: the tensor's name in the model file's signature.
        role: "image" (input), "sigma" (input) or "clean" (output).
        shape: static shape; -1 where the engine takes any size.
        layout: "NHWC", "NCHW" or "N" (a vector, one value an image).
        dtype: numpy name: "int8", "uint8", "float32".
        scale, zero_point: real = scale * (integer - zero_point), images in 0..1, sigma in 0..1 (25/255); None for
            float.
    """

    name: str
    role: str
    shape: tuple[int, ...]
    layout: str
    dtype: str
    scale: float | None = None
    zero_point: int | None = None


@dataclass(frozen=True)
class Variant:
    """One model file and how to feed it.

    Attributes:
        name: its precision, and what sets it apart: "int8", "int8-uint8io", "fp16", "fp32".
        file: path inside the bundle.
        engine: name of the engine family that runs it: "litert", "openvino", "onnxruntime", "tensorrt".
        inputs, outputs: its tensors; an engine finds them by name.
        companions: further files that belong to it, beside it in the bundle (the weights of an OpenVINO .xml).
        made_for: the library it is made for, "TensorRT", where `engine` only stands in for it: what is measured then
            holds for the graph, not for that library.
    """

    name: str
    file: str
    engine: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    companions: tuple[str, ...] = ()
    made_for: str = ""

    @property
    def files(self) -> tuple[str, ...]:
        """Every file that it consists of, the one that is opened first."""
        return (self.file, *self.companions)

    @property
    def integer(self) -> bool:
        """True for an integer model: images enter as 8-bit integers, which an engine holds the file to, or it says so.

        One that takes float images owes its share of int8 products all the same, so that the word alone gains nothing.
        """
        takes_bytes = any(spec.role == "image" and spec.dtype in ("int8", "uint8") for spec in self.inputs)
        return takes_bytes or self.name.split("-")[0] == "int8"


@dataclass(frozen=True)
class LayerReport:
    """What became of one layer with MACs, read from the exported file.

    Attributes:
        name: the layer's tensor name in the file, or the module path where it is known.
        op: the format's operator name, e.g. "CONV_2D".
        macs: multiply-accumulates per tile.
        dtype: what it computes in: "int8", "float32", ...
        delegated: True when the fast kernels (XNNPACK for LiteRT) took it.
        why: of a layer of an INT8 file that computes in float, what keeps it there; "" where that is not known.
    """

    name: str
    op: str
    macs: int
    dtype: str
    delegated: bool
    why: str = ""

    @property
    def computes(self) -> str:
        """What it computes in, and why where that is known: "float32; reads float32 from Concatenation"."""
        return f"{self.dtype}; {self.why}" if self.why else self.dtype


@dataclass(frozen=True)
class Sensitivity:
    """What rounding one tensor to integers costs when everything else stays float, on held-out tiles.

    Attributes:
        name: the layer that writes the tensor, or whose weights it is.
        kind: "activations" or "weights".
        lost: dB lost by noise level in 8-bit units, e.g. {"5": 0.12, "25": 0.03}.
        cause: why it may lose more than others, in words; "" where nothing stands out.
    """

    name: str
    kind: str
    lost: dict[str, float]
    cause: str = ""

    @property
    def mean(self) -> float:
        """dB lost, the mean over the noise levels."""
        return sum(self.lost.values()) / len(self.lost) if self.lost else 0.0


@dataclass(frozen=True)
class Thresholds:
    """What `check` holds the device to.

    Attributes:
        max_drop: dB lost at most against the original FP32 model.
        min_int8_share: share of MACs in int8 at least, 0..1 (0 for a float bundle).
    """

    max_drop: float
    min_int8_share: float = 0.0


@dataclass(frozen=True)
class ModelFacts:
    """The network inside: shape contract and size, of the original and of what is shipped."""

    arch: str
    channels: int
    stride: int
    halo: int
    blind: bool
    macs_per_pixel: float
    parameters: int
    original_macs_per_pixel: float
    original_parameters: int
    # Bytes of the original weights as float32: what "-74%" is measured against.
    original_bytes: int
    source: str = ""


@dataclass(frozen=True)
class Manifest:
    """Everything `manifest.json` holds. `files` maps each path in the bundle (but the manifest) to its sha256."""

    name: str
    target: str
    precision: str
    default_variant: str
    variants: tuple[Variant, ...]
    model: ModelFacts
    tile: int
    sigma: tuple[float, float]
    thresholds: Thresholds
    layers: tuple[LayerReport, ...] = ()
    sensitivity: tuple[Sensitivity, ...] = ()
    stages: tuple[dict[str, Any], ...] = ()
    recipe: dict[str, Any] = field(default_factory=dict)
    licences: dict[str, str] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    files: dict[str, str] = field(default_factory=dict)
    golden: str = "golden.npz"
    # ISO setting, a whole number as text -> noise level in 8-bit units; empty where none was measured.
    iso_sigma: dict[str, float] = field(default_factory=dict)
    schema: int = SCHEMA
