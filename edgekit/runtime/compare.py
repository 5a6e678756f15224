"""Whether bundles for different targets do the same: dB against the clean golden tiles, side by side on this device."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgekit.bundle import reader
from edgekit.bundle.golden import Golden
from edgekit.bundle.reader import Bundle
from edgekit.errors import RecipeError, ShapeError
from edgekit.runtime.check import run_tiles
from edgekit.runtime.denoiser import Denoiser
from edgekit.runtime.verdict import decibels, mean, rows

# Below this level dB are high and move by tenths with single bytes: reported, not judged.
JUDGED_FROM = 15.0


@dataclass(frozen=True)
class Allowance:
    """How far apart two bundles may be, in dB against the clean tiles at one noise level.

    Attributes:
        alike: two int8 bundles whose targets take the same integers: one set of ranges, rounded otherwise at most.
        other: whatever else, as an engine that chooses its own integer kernels, or float against int8.
        targets: the targets that take the same integers.
        own_kernels: engines that compute otherwise whatever the target.
    """

    alike: float = 0.05
    other: float = 0.15
    targets: frozenset[str] = frozenset({"openvino", "tflite"})
    own_kernels: frozenset[str] = frozenset({"onnxruntime", "tensorrt"})

    def between(self, a: Side, b: Side) -> float:
        """The dB allowed between two bundles."""
        alike = all(s.integer and s.target in self.targets and s.engine not in self.own_kernels for s in (a, b))
        return self.alike if alike else self.other


@dataclass(frozen=True)
class Side:
    """One of the two bundles.

    Attributes:
        bundle: where it lies, as it was given.
        name, target, variant: what it is.
        integer: whether it is an integer model, `edgekit.bundle.manifest.Variant.integer`.
        engine, library, kernels: what ran it here, as `edgekit.runtime.engines.base.Engine` tells.
        made_for: the library it is made for, where another one stood in for it here, e.g. "TensorRT".
    """

    bundle: str
    name: str
    target: str
    variant: str
    integer: bool
    engine: str
    library: str
    kernels: str
    made_for: str = ""

    @property
    def label(self) -> str:
        """E.g. "tflite int8"."""
        return f"{self.target} {self.variant}"


@dataclass(frozen=True)
class CompareRow:
    """PSNR in dB at one noise level, mean over the tiles.

    Attributes:
        sigma: noise level in 8-bit units; None for the mean over the levels.
        fp32: of A's original FP32 model, against the clean tiles.
        a, b: of the two bundles on this device, likewise.
        between: of A's output against B's, `edgekit.runtime.verdict.EQUAL_DB` where they are identical.
        judged: whether the level counts.
    """

    sigma: float | None
    fp32: float
    a: float
    b: float
    between: float
    judged: bool

    @property
    def agreement(self) -> float:
        """How far apart the two are, in dB: 0 is best."""
        return abs(self.a - self.b)


@dataclass(frozen=True)
class Comparison:
    """What `compare` found. Prints as one line; `exit_code` is 0 where they agree, 1 where not.

    Attributes:
        a, b: the two bundles; the golden tiles are A's.
        rows: one a noise level, lowest first.
        total: the mean over the levels; not judged.
        allowed: how far apart they may be at a judged level, in dB.
    """

    a: Side
    b: Side
    rows: tuple[CompareRow, ...]
    total: CompareRow
    allowed: float

    @property
    def guilty(self) -> tuple[CompareRow, ...]:
        """The judged levels at which they are too far apart, the worst first."""
        # Written so that a NaN is guilty.
        found = (row for row in self.rows if row.judged and not row.agreement <= self.allowed)
        return tuple(sorted(found, key=lambda row: -row.agreement))

    @property
    def agree(self) -> bool:
        """Whether they are close enough at every judged level."""
        return not self.guilty

    @property
    def exit_code(self) -> int:
        """0 where they agree, 1 where not."""
        return 0 if self.agree else 1

    @property
    def labels(self) -> tuple[str, str]:
        """Names of A and B that differ: targets and variants, after the models' names or the paths where needed."""
        a, b = self.a, self.b
        for one, other in ((a.label, b.label), (f"{a.name} {a.label}", f"{b.name} {b.label}")):
            if one != other:
                return one, other
        return f"{a.bundle} {a.label}", f"{b.bundle} {b.label}"

    def line(self) -> str:
        """The result on one line.

        E.g. "AGREE  tflite int8 against openvino int8: at most 0.03 dB apart at sigma 15 and up (0.05 allowed)".
        """
        who = "{} against {}".format(*self.labels)
        absent = dict.fromkeys(side.made_for for side in (self.a, self.b) if side.made_for)
        stood_in = "".join(f"  (not run on {library})" for library in absent)
        allowed = f"({self.allowed:g} allowed){stood_in}"
        if self.agree:
            most = max(row.agreement for row in self.rows if row.judged)
            return f"AGREE  {who}: at most {most:.2f} dB apart at sigma {JUDGED_FROM:g} and up {allowed}"
        # Rounded up: 0.0504 must not read as 0.05, which would be allowed.
        found = ", ".join(f"{math.ceil(row.agreement * 1e3) / 1e3:g} dB at sigma {row.sigma:g}" for row in self.guilty)
        return f"DISAGREE  {who}: apart by {found} {allowed}"

    def to_dict(self) -> dict[str, Any]:
        """Everything as JSON holds it, with `line`, `agree` and each row's agreement computed."""

        def row(item: CompareRow) -> dict[str, Any]:
            return {**asdict(item), "agreement": item.agreement}

        return {
            "line": self.line(),
            "agree": self.agree,
            "a": asdict(self.a),
            "b": asdict(self.b),
            "rows": [row(item) for item in self.rows],
            "total": row(self.total),
            "allowed": self.allowed,
            "judged_from": JUDGED_FROM,
            "exit_code": self.exit_code,
        }


@dataclass(frozen=True)
class AgreementRow:
    """One target at one noise level, in dB against the clean golden tiles, mean over the tiles.

    Attributes:
        target: its label.
        sigma: noise level in 8-bit units; None for the mean over the levels.
        fp32, int8: of the original FP32 model and of this target's output.
        drop: dB lost; negative where the target is better.
        agreement: how far `int8` is from the first target's, in dB; None for the first target itself.
    """

    target: str
    sigma: float | None
    fp32: float
    int8: float
    drop: float
    agreement: float | None


def compare(
    a: str | os.PathLike[str],
    b: str | os.PathLike[str],
    *,
    allow: float | None = None,
    threads: int | None = None,
) -> Comparison:
    """Run two bundles' default variants on A's golden tiles here and hold them against each other.

    Args:
        a, b: the bundles, folders or zips.
        allow: dB they may be apart at sigma 15 and up; None is what `Allowance` says of the two.
        threads: CPU threads; None is the engines' default.
    Raises: RecipeError: B takes other images or noise levels than A's tiles have, no tile is of a judged level, or
        `allow` is out of range. BundleError, MissingExtraError, EngineError: as `edgekit.runtime.denoiser.open`.
    """
    if allow is not None and not (math.isfinite(allow) and allow >= 0):
        raise RecipeError(f"allow is {allow!r}: expected a number of dB, 0 or more, e.g. 0.05")
    with reader.read(a) as first, reader.read(b) as second:
        golden = first.golden()
        _fit(golden, first, second)
        with (
            Denoiser.from_bundle(first, threads=threads) as one,
            Denoiser.from_bundle(second, threads=threads) as other,
        ):
            sides = _side(first, one), _side(second, other)
            outputs = run_tiles(one, golden.noisy, golden.sigma), run_tiles(other, golden.noisy, golden.sigma)
    table, total = _rows(golden, *outputs)
    return Comparison(*sides, table, total, Allowance().between(*sides) if allow is None else float(allow))


def agreement_table(golden: Golden, outputs: Mapping[str, NDArray[np.uint8]]) -> tuple[AgreementRow, ...]:
    """What several targets made of the same golden tiles, for a report.

    Args:
        golden: the tiles.
        outputs: by the target's label, uint8 [K, H, W, C], what it gave for `golden.noisy`; the first is the one that
            the others are held against.
    Returns: target by target in the order given, its noise levels lowest first and then their mean.
    Raises: ShapeError: an output of another dtype or shape than the tiles.
    """
    found: list[AgreementRow] = []
    first: list[float] = []
    for target, images in outputs.items():
        if images.dtype != np.uint8 or images.shape != golden.noisy.shape:
            raise ShapeError(
                f"output of {target} is {images.dtype} {list(images.shape)}: expected that of the golden tiles, "
                f"uint8 {list(golden.noisy.shape)}"
            )
        levels = rows(golden, images)
        table = [*levels, mean(levels)]
        for at, row in enumerate(table):
            agreement = abs(row.device - first[at]) if first else None
            found.append(AgreementRow(target, row.sigma, row.fp32_original, row.device, row.total_drop, agreement))
        first = first or [row.device for row in table]
    return tuple(found)


def _fit(golden: Golden, a: Bundle, b: Bundle) -> None:
    """Refuse a pair that cannot be compared: another kind of images, noise that B does not take, no level to judge."""
    ours, theirs = a.manifest.model.channels, b.manifest.model.channels
    if ours != theirs:
        raise RecipeError(
            f"{b.source} takes images of {theirs} channel{'s' * (theirs > 1)}, the golden tiles of {a.source} have "
            f"{ours}: compare bundles of models with the same channels"
        )
    levels, (low, high) = golden.levels(), b.manifest.sigma
    # Float32 levels may miss an end of the range by a rounding.
    outside = [level for level in levels if not np.float32(low) <= np.float32(level) <= np.float32(high)]
    if outside and not b.manifest.model.blind:
        raise RecipeError(
            f"{b.source} takes sigma {low:g} to {high:g}, the golden tiles of {a.source} have sigma "
            f"{', '.join(f'{level:g}' for level in outside)}: compare the other way round, or with one made for them"
        )
    if max(levels) < JUDGED_FROM:
        raise RecipeError(
            f"the golden tiles of {a.source} have sigma {', '.join(f'{level:g}' for level in levels)}: agreement is "
            f"judged at sigma {JUDGED_FROM:g} and up; compare the other way round"
        )


def _side(bundle: Bundle, denoiser: Denoiser) -> Side:
    manifest, variant, engine = bundle.manifest, denoiser.variant, denoiser.engine
    return Side(
        bundle=str(bundle.source),
        name=manifest.name,
        target=manifest.target,
        variant=variant.name,
        integer=variant.integer,
        engine=engine.name,
        library=engine.library,
        kernels=engine.kernels,
        made_for=variant.made_for,
    )


def _rows(golden: Golden, a: NDArray[np.uint8], b: NDArray[np.uint8]) -> tuple[tuple[CompareRow, ...], CompareRow]:
    """One row a noise level, and their mean, of outputs [K, H, W, C]."""
    ours, theirs = rows(golden, a), rows(golden, b)
    table = []
    for one, other in zip(ours, theirs, strict=True):
        level = one.sigma if one.sigma is not None else math.nan
        at = np.flatnonzero(golden.sigma == np.float32(level))
        between = float(np.mean([decibels(a[k], b[k]) for k in at]))
        table.append(
            CompareRow(level, one.fp32_original, one.device, other.device, between, judged=level >= JUDGED_FROM)
        )
    one, other = mean(ours), mean(theirs)
    between = float(np.mean([row.between for row in table]))
    return tuple(table), CompareRow(None, one.fp32_original, one.device, other.device, between, judged=False)
