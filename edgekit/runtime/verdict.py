"""The verdict: what a bundle does on this device, against the FP32 model it came from."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgekit.bundle.golden import Golden
from edgekit.bundle.manifest import LayerReport, Sensitivity, Thresholds
from edgekit.runtime.quality import psnr

# Two equal images have no finite PSNR, and JSON no infinity; one byte of a 512x512 tile off by one is 107 dB.
EQUAL_DB = 110.0


@dataclass(frozen=True)
class SigmaRow:
    """PSNR in dB against the clean tiles at one noise level, or over all: 8-bit rounded output, mean over the tiles.

    Attributes:
        sigma: noise level in 8-bit units; None for the mean over the levels.
        noisy: of the input itself.
        fp32_original, fp32_compressed: of the two FP32 models.
        device: of this device.
    """

    sigma: float | None
    noisy: float
    fp32_original: float
    fp32_compressed: float
    device: float

    @property
    def total_drop(self) -> float:
        """dB lost against the original FP32 model; negative where the device is better."""
        return self.fp32_original - self.device

    @property
    def quantization_drop(self) -> float:
        """dB lost against the compressed FP32 model."""
        return self.fp32_compressed - self.device


@dataclass(frozen=True)
class Agreement:
    """How the device's bytes on the golden tiles compare with the reference's.

    Attributes:
        reference: what they are compared with: "host" (the host's own output) or "fp32" (the compressed FP32 model).
        identical: share of identical bytes, 0..1.
        max_lsb: largest difference in 8-bit steps.
        psnr: of the device's output against the reference, dB.
        bit_exact: whether the two must be identical.
        psnr_allowed: the least psnr otherwise, dB.
        portable: share of bytes identical with the host's when both use the portable kernels; None if they did not run.
        portable_required: whether all of those must be identical where the bytes themselves are not: dB alone do not
            tell an altered integer file from other kernels.
    """

    reference: str
    identical: float
    max_lsb: int
    psnr: float
    bit_exact: bool
    psnr_allowed: float
    portable: float | None = None
    portable_required: bool = False

    @property
    def held(self) -> bool:
        """Whether the device keeps within what is required."""
        if self.max_lsb == 0:
            return True
        if self.bit_exact:
            return False
        return self.psnr >= self.psnr_allowed and (
            self.portable == 1.0 or (self.portable is None and not self.portable_required)
        )

    def told(self) -> str:
        """What was found, in words."""
        text = (
            f"{percent(self.identical)} of bytes identical, up to {self.max_lsb} LSB apart, {self.psnr:.1f} dB"
            f" ({'identical bytes' if self.bit_exact else f'{self.psnr_allowed:g} dB'} required)"
        )
        if self.portable is None:
            missing = self.portable_required and not self.bit_exact
            return (
                f"{text}; portable kernels, which would tell an altered file, are missing here, or what they give in "
                "the bundle (then compress it again)"
                if missing
                else text
            )
        return f"{text}; by portable kernels {percent(self.portable)} identical (all required)"


@dataclass(frozen=True)
class Speed:
    """Time of the Denoiser on this device, of useful pixels (the halo's cost is inside).

    Attributes:
        ms_per_megapixel: median over the runs.
        threads: CPU threads of the engine.
        baseline: the float variant timed in turns with it, None if the bundle has none.
        ratio: how many times faster than the baseline, None likewise.
    """

    ms_per_megapixel: float
    threads: int
    baseline: str | None = None
    ratio: float | None = None


@dataclass(frozen=True)
class Verdict:
    """What `check` found. Prints as one line; `exit_code` is 0 for PASS, 1 for FAIL.

    Attributes:
        passed: whether every rule holds.
        reasons: why not: one line each, with the fix.
        notes: what is worth knowing and no reason to fail.
        name, target, variant: what was checked.
        rows: one row a noise level, lowest first.
        total: the mean over the noise levels.
        agreement: the device's bytes against the host's.
        int8_share: share of the MACs in int8, 0..1.
        int8_source: where that comes from: "counted in the model file", "as it runs here" or "as exported".
        guilty: what costs most dB when it alone is rounded to integers, the worst first; none if it was not measured.
        speed: None if it was not timed.
        bytes, original_bytes: size of the variant's file, and of the original weights as float32.
        engine, library, kernels: what ran it, e.g. "litert", "ai-edge-litert 2.3.0", "xnnpack".
        thresholds: those it was held to.
        made_for: the library that the file is made for, where another one stood in for it here, e.g. "TensorRT".
    """

    passed: bool
    reasons: tuple[str, ...]
    notes: tuple[str, ...]
    name: str
    target: str
    variant: str
    rows: tuple[SigmaRow, ...]
    total: SigmaRow
    agreement: Agreement
    int8_share: float
    int8_source: str
    guilty: tuple[Sensitivity, ...]
    speed: Speed | None
    bytes: int
    original_bytes: int
    engine: str
    library: str
    kernels: str
    thresholds: Thresholds
    made_for: str = ""

    @property
    def exit_code(self) -> int:
        """0 for PASS, 1 for FAIL."""
        return 0 if self.passed else 1

    @property
    def worst(self) -> SigmaRow:
        """The noise level with the largest total drop."""
        return max(self.rows, key=lambda row: row.total_drop)

    def line(self) -> str:
        """The verdict on one line.

        E.g. "PASS  FP32 30.71 dB  INT8 30.62 dB (total -0.09, quantization -0.06)  0.21 MB (-74%)  55 ms/MP (2.3x FP32)
        100% of MACs in int8".
        """
        total, label = self.total, self.variant.split("-")[0].upper()
        device = f"{label} on device" if label == "FP32" else label
        change = self.bytes / self.original_bytes - 1 if self.original_bytes else 0.0
        parts = [
            "PASS" if self.passed else "FAIL",
            f"FP32 {total.fp32_original:.2f} dB",
            f"{device} {total.device:.2f} dB "
            f"(total {signed(-total.total_drop)}, quantization {signed(-total.quantization_drop)})",
            f"{self.bytes / 1e6:.2f} MB ({change:+.0%})",
        ]
        if self.speed is not None:
            faster = f" ({self.speed.ratio:.1f}x {(self.speed.baseline or '').upper()})" if self.speed.ratio else ""
            parts.append(f"{self.speed.ms_per_megapixel:.0f} ms/MP{faster}")
        if self.int8_share or self.thresholds.min_int8_share:
            slow = f" by {self.kernels} kernels" if self.kernels in ("mixed", "reference") else ""
            parts.append(f"{percent(self.int8_share)} of MACs in int8{slow}")
        if self.made_for:
            parts.append(f"(not run on {self.made_for})")
        return "  ".join(parts)

    def to_dict(self) -> dict[str, Any]:
        """Everything as JSON holds it, with `line`, `worst_sigma` and both drops of each row computed."""

        def row(item: SigmaRow) -> dict[str, Any]:
            return {**asdict(item), "total_drop": item.total_drop, "quantization_drop": item.quantization_drop}

        plain = {f.name: getattr(self, f.name) for f in fields(self)}
        plain.update(
            reasons=list(self.reasons),
            notes=list(self.notes),
            rows=[row(item) for item in self.rows],
            total=row(self.total),
            agreement={**asdict(self.agreement), "held": self.agreement.held},
            guilty=[asdict(item) for item in self.guilty],
            speed=asdict(self.speed) if self.speed else None,
            thresholds=asdict(self.thresholds),
        )
        return {"line": self.line(), **plain, "worst_sigma": self.worst.sigma, "exit_code": self.exit_code}


def rows(golden: Golden, device: NDArray[np.uint8]) -> tuple[SigmaRow, ...]:
    """Measure the golden tiles anew; no figure is taken from the manifest.

    Args:
        golden: the tiles and the FP32 models' outputs.
        device: uint8 [K, H, W, C], what the device gave for `golden.noisy`.
    Returns: one row a noise level, lowest first.
    """
    original, compressed = Golden.to_uint8(golden.fp32_original), Golden.to_uint8(golden.fp32_compressed)
    table = []
    for sigma in golden.levels():
        at = np.flatnonzero(golden.sigma == np.float32(sigma))
        means = [
            float(np.mean([decibels(images[k], golden.clean[k]) for k in at]))
            for images in (golden.noisy, original, compressed, device)
        ]
        table.append(SigmaRow(sigma, *means))
    return tuple(table)


def mean(table: Sequence[SigmaRow]) -> SigmaRow:
    """The mean over the noise levels, each counting alike however many tiles it has."""
    columns = ("noisy", "fp32_original", "fp32_compressed", "device")
    return SigmaRow(None, *(float(np.mean([getattr(row, name) for row in table])) for name in columns))


def decibels(image: NDArray[Any], reference: NDArray[Any]) -> float:
    """PSNR of two images of one kind in dB, `EQUAL_DB` at most."""
    if np.array_equal(image, reference):
        return EQUAL_DB
    return min(float(psnr(image, reference)), EQUAL_DB)


def int8_share(layers: Iterable[LayerReport]) -> float:
    """Share of the MACs that are computed in int8, 0..1; 0 if no layer has MACs."""
    counted = [(layer.macs, layer.dtype) for layer in layers]
    total = sum(macs for macs, _ in counted)
    return sum(macs for macs, dtype in counted if dtype == "int8") / total if total else 0.0


def guilty(sensitivity: Iterable[Sensitivity], count: int = 3) -> tuple[Sensitivity, ...]:
    """What costs most when it alone is rounded, the worst first; nothing that costs no dB."""
    ranked = sorted((item for item in sensitivity if item.mean > 0), key=lambda item: -item.mean)
    return tuple(ranked[:count])


def percent(share: float) -> str:
    """A share as "100%" only when it is whole; below, rounded down to 0.1%: one float layer must show."""
    return "100%" if share >= 1 else f"{math.floor(share * 1000) / 10:g}%"


def signed(change: float) -> str:
    """A change in dB with its sign, "+0.00" and never "-0.00"."""
    return f"{round(change, 2) + 0.0:+.2f}"
