"""The golden check: run a bundle's golden tiles on this device and judge what comes out."""

from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import fields, replace
from functools import partial

import numpy as np
from numpy.typing import NDArray

from edgekit.bundle import reader
from edgekit.bundle.golden import Golden, facts_of
from edgekit.bundle.manifest import LayerReport, Manifest, Sensitivity, Thresholds, Variant
from edgekit.bundle.reader import Bundle
from edgekit.errors import EngineError, NoPortableError, first_line
from edgekit.runtime.denoiser import Denoiser
from edgekit.runtime.engines.base import Engine
from edgekit.runtime.engines.registry import open_engine
from edgekit.runtime.one_tile import fill_one_tile
from edgekit.runtime.turns import in_turns
from edgekit.runtime.verdict import (
    Agreement,
    SigmaRow,
    Speed,
    Verdict,
    decibels,
    guilty,
    int8_share,
    mean,
    percent,
    rows,
)

# XNNPACK's integer kernels give the same bits on x86, ARM64 and wasm, so there the bytes must be the host's. Other
# kernels round differently at every layer: on dsunet-s TFLite's own are 46.6 to 47.3 dB and up to 8 LSB from XNNPACK's,
# and from each other. A weight scale doubled in one channel is often nearer than that, so no such bound can find it:
# where the fast kernels are missing the portable ones find it, whose bits are the same everywhere (docs/bundle.md).
_OTHER_KERNELS_DB = 40.0
# dB over the noisy input that nobody would call denoising.
_NOTHING = 0.1
# Float kernels differ by 5e-7, fp16 weights by 1e-3: after rounding some bytes are off by one. All of them are 48 dB.
FLOAT_DB = 50.0

_MAX_RUNS, _SECONDS = 15, 2.0
_log = logging.getLogger(__name__)
# Noise levels up to which a FAIL names them all; of more it names the worst.
_LEVELS, _WORST = 6, 3


def check(path: str | os.PathLike[str], *, variant: str | None = None, threads: int | None = None) -> Verdict:
    """Run a bundle's golden tiles on this device and judge it.

    Args:
        path: the bundle, folder or zip.
        variant: which of its model files; None is the default one.
        threads: CPU threads; None is the engine's default.
    Returns: the verdict. Every dB in it is measured here, from the tiles; none is taken from the manifest.
    Raises: BundleError: the bundle is incomplete, altered, newer or unsafe. UnknownNameError: no such variant.
        MissingExtraError: no engine is installed. EngineError: the engine cannot open or run the model.
    """
    with reader.read(path) as bundle, Denoiser.from_bundle(bundle, variant, threads) as denoiser:
        golden, engine = bundle.golden(), denoiser.engine
        device = run_tiles(denoiser, golden.noisy, golden.sigma)
        agreement = agree(golden, device, denoiser.variant, default_of(bundle.manifest), engine)
        if denoiser.variant.integer and agreement.reference == "host" and not agreement.bit_exact:
            agreement = replace(agreement, portable=_portable_agreement(bundle, denoiser.variant))
        # The time that a stand-in takes says nothing of the library the file is made for.
        speed = None if denoiser.variant.made_for else _time(bundle, denoiser)
        apart = _whole_tile(denoiser, golden, device, agreement.psnr_allowed)
        return _verdict(bundle, denoiser.variant, device, agreement, speed, engine, apart)


def recorded(bundle: Bundle) -> Verdict:
    """The verdict on what the host's engine gave when the golden tiles were made. Nothing runs, nothing is timed."""
    manifest, golden = bundle.manifest, bundle.golden()
    variant = default_of(manifest)
    agreement = agree(golden, golden.host, variant, variant, None)
    return _verdict(bundle, variant, golden.host, agreement, None, None)


def default_of(manifest: Manifest) -> Variant:
    """The variant that a bundle's user gets, and that the host ran."""
    return next(v for v in manifest.variants if v.name == manifest.default_variant)


def portable_outputs(
    bundle: Bundle, variant: Variant, noisy: NDArray[np.uint8], sigma: NDArray[np.float32]
) -> NDArray[np.uint8] | None:
    """What a variant gives by the engine's portable kernels; None where the engine has none. Slow.

    Args:
        noisy: uint8 [P, H, W, C].
        sigma: float32 [P], in 8-bit units.
    Raises: EngineError: they cannot run this file.
    """
    try:
        engine = open_engine(variant, bundle.path(variant.file), 1, portable=True)
    except NoPortableError:
        return None
    with Denoiser(engine, bundle.manifest, variant) as denoiser:
        return run_tiles(denoiser, noisy, sigma)


def with_portable(golden: Golden, bundle: Bundle) -> Golden:
    """`golden` with the portable kernels' output of the default variant for a tile of the lowest and the highest noise.

    As it came if the default variant is float, or the engine has no portable kernels; and with a warning if they cannot
    run the file.
    """
    variant = default_of(bundle.manifest)
    if not variant.integer:
        return golden
    # These kernels take seconds a tile on a small device.
    at = golden.extremes()
    try:
        outputs = portable_outputs(bundle, variant, golden.noisy[at], golden.sigma[at])
    except EngineError as error:
        _log.warning(
            "the engine's portable kernels cannot run %s (%s): `edgekit check` fails on devices without the fast ones, "
            "where nothing else would tell an altered file",
            variant.file,
            first_line(error),
        )
        return golden
    return golden if outputs is None else replace(golden, portable=outputs, portable_at=at)


def judge(
    table: Sequence[SigmaRow],
    agreement: Agreement,
    share: float,
    thresholds: Thresholds,
    layers: Sequence[LayerReport],
    sensitivity: Sequence[Sensitivity] = (),
    *,
    tuned: bool = False,
) -> tuple[str, ...]:
    """The rule: why a device fails, one line a reason with the fix; nothing if it passes.

    The total drop is judged as the mean over the noise levels. Every level is in the verdict beside it.

    Args:
        table: one row a noise level.
        agreement: the device's bytes against the reference's.
        share: share of the MACs in int8, 0..1.
        thresholds: what it is held to.
        layers: the exported layers, to name those left in float.
        sensitivity: what each tensor's integers cost, to name the ones to blame.
        tuned: whether `finetune` made the bundle, whose settings have other names than those of `compress`.
    """
    reasons = []
    total = mean(table)
    # Written so that a NaN fails.
    if not total.total_drop <= thresholds.max_drop:
        reasons.append(_explain_drop(table, total, thresholds, sensitivity, tuned))
    if total.device < total.noisy:
        fix = (
            "train the model before it is compressed; a network of your own gives the clean image, not the noise, and "
            "takes values in 0..1 and sigma / 255"
            if total.fp32_compressed <= total.noisy
            else f"FP32 is not ({total.fp32_compressed:.2f} dB), so the training is not to blame: --precision fp16, or "
            "report it"
        )
        worse = f"{total.device:.2f} dB against {total.noisy:.2f} dB"
        reasons.append(f"output is worse than the noisy input ({worse}): {fix}")
    if not agreement.held:
        other = "host" if agreement.reference == "host" else "FP32 model"
        reasons.append(
            f"output differs from the {other}'s: {agreement.told()}: the model file was altered, or this engine "
            "computes otherwise; export the bundle again, or update the engine (edgekit doctor names it)"
        )
    if not share >= thresholds.min_int8_share:
        left = [layer for layer in layers if layer.macs and layer.dtype != "int8"]
        names = (
            ", ".join(f"{layer.name} ({layer.op}, {layer.computes})" for layer in left[:3])
            or "not in the manifest's list"
        )
        reasons.append(
            f"{percent(share)} of MACs in int8, {percent(thresholds.min_int8_share)} required: left in float: {names}: "
            "an operator beside them has no integer form (docs/targets.md); do without it, "
            f"{'' if tuned else 'or for OpenVINO try --quantizer nncf, '}or {_in_float(tuned)}"
        )
    return tuple(reasons)


def _explain_drop(
    table: Sequence[SigmaRow],
    total: SigmaRow,
    thresholds: Thresholds,
    sensitivity: Sequence[Sensitivity],
    tuned: bool,
) -> str:
    # Noise without fixed levels has one for each tile.
    shown = table if len(table) <= _LEVELS else sorted(table, key=lambda row: -row.total_drop)[:_WORST]
    levels = ", ".join(f"{row.total_drop:.2f} at sigma {row.sigma:.3g}" for row in shown)
    if len(shown) < len(table):
        levels = f"of {len(table)} levels most at {len(shown)}: {levels}"
    text = f"total drop {total.total_drop:.3f} dB, {thresholds.max_drop:g} dB allowed ({levels}): "
    if total.quantization_drop > total.total_drop / 2:
        blamed = guilty(sensitivity)
        blame = f", most by {'; '.join(_blame(item) for item in blamed)}" if blamed else ""
        return f"{text}quantization loses {total.quantization_drop:.3f} of it{blame}: {_mend(blamed, tuned)}"
    lost = total.total_drop - total.quantization_drop
    return f"{text}pruning and distillation lose {lost:.3f} of it; prune less (--prune), distill longer (--steps)"


def _blame(item: Sensitivity) -> str:
    """A tensor that loses, in words."""
    why = f"; {item.cause}" if item.cause else ""
    return f"{item.name} ({item.kind}, {item.mean:.2f} dB alone{why})"


def _mend(blamed: Sequence[Sensitivity], tuned: bool) -> str:
    """What may win back dB that quantization lost."""
    fixes = [f"quantize longer ({'quantization.steps in a recipe' if tuned else '--steps'})"]
    lost: Counter[str] = Counter()
    for item in blamed:
        lost.update(item.lost)
    level, most = max(lost.items(), key=lambda pair: pair[1], default=("", 0.0))
    # A tuned bundle is for the noise that it had, too: its range does not get narrower.
    if not tuned and most > 2 * sum(lost.values()) / max(1, len(lost)):
        # One scale serves every level: what low noise needs fine, high noise needs wide.
        fixes.append(f"or for a narrower range of noise (--sigma; sigma {level} loses most)")
    if any("calibration saw no sigma" in item.cause for item in blamed):
        fixes.append("or observe more batches (quantization.calibration_batches in a recipe)")
    return ", ".join([*fixes, f"or {_in_float(tuned)}"])


def _in_float(tuned: bool) -> str:
    """Exporting what integers do not suit. `finetune` has no flag for it, but leaves the weights beside its bundle."""
    if tuned:
        again = "edgekit compress --model model.safetensors --prune 0 --precision fp16"
        return f"export the tuned model.safetensors in float ({again})"
    return "export --precision fp16"


def seals(manifest: Manifest, golden: Golden) -> tuple[str, ...]:
    """Whether thresholds, model files and how images are cut are still as when the golden tiles were made.

    One line for each that is not. The manifest, the golden tiles, and for `max_drop` the recipe must tell the same.
    """
    edited = []
    for name in dict.fromkeys(name for variant in manifest.variants for name in variant.files):
        made, found = golden.models.get(name), manifest.files[name]
        if made != found:
            edited.append(
                f"model file edited: {name} has sha256 {found[:12]}..., the golden tiles were made with "
                f"{f'{made[:12]}...' if made else 'none of that name'}: get the bundle again from its maker, or export "
                "it again"
            )
    says_now = facts_of(manifest)
    for fact, sealed in golden.facts.items():
        if (now := says_now.get(fact)) != sealed:
            edited.append(
                f"manifest edited: {fact} is {now or 'missing'}, it was {sealed} when the golden tiles were made: get "
                "the bundle again from its maker, or export it again"
            )
    for item in fields(Thresholds):
        says, kept = getattr(manifest.thresholds, item.name), getattr(golden.thresholds, item.name)
        places = {"manifest says": says, "sealed": kept}
        if item.name == "max_drop":
            places["recipe"] = manifest.recipe.get("max_drop")
        if any(value != kept for value in places.values()):
            unit = " dB" if item.name == "max_drop" else ""
            told = ", ".join(
                f"{place} {'none' if value is None else f'{value}{unit}'}" for place, value in places.items()
            )
            edited.append(
                f"thresholds edited: {told} ({item.name}): get the bundle again from its maker, or export it again "
                "with the threshold you want"
            )
    return tuple(edited)


def agree(
    golden: Golden, device: NDArray[np.uint8], variant: Variant, default: Variant, engine: Engine | None
) -> Agreement:
    """Compare the device's bytes with the reference's and say what is required of them.

    Args:
        golden: the tiles; its `host` is the default variant's output on the machine that compressed it.
        device: uint8 [K, H, W, C].
        variant, default: the variant that ran, and the one that `golden.host` came from.
        engine: what ran it here; None for what the host recorded.
    """
    host = variant == default or (variant.integer and default.integer)
    kernels = golden.kernels if engine is None else engine.kernels
    has_portable = golden.portable is not None if engine is None else engine.has_portable
    reference = golden.host if host else Golden.to_uint8(golden.fp32_compressed)
    apart = np.abs(device.astype(np.int16) - reference)
    return Agreement(
        reference="host" if host else "fp32",
        identical=float(np.mean(apart == 0)),
        max_lsb=int(apart.max()),
        psnr=decibels(device, reference),
        bit_exact=variant.integer and host and kernels == golden.kernels == "xnnpack",
        psnr_allowed=_OTHER_KERNELS_DB if variant.integer else FLOAT_DB,
        portable_required=variant.integer and host and has_portable,
    )


def _portable_agreement(bundle: Bundle, variant: Variant) -> float | None:
    """Share of identical bytes when device and host both use the portable kernels; None if either cannot."""
    golden = bundle.golden()
    if golden.portable is None or golden.portable_at is None:
        return None
    at = golden.portable_at
    try:
        outputs = portable_outputs(bundle, variant, golden.noisy[at], golden.sigma[at])
    except EngineError:
        return None
    return None if outputs is None else float(np.mean(outputs == golden.portable))


def run_tiles(denoiser: Denoiser, noisy: NDArray[np.uint8], sigma: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Denoise tiles one by one: noisy uint8 [K, H, W, C], sigma [K] in 8-bit units -> uint8 [K, H, W, C]."""
    return np.stack([denoiser(tile, sigma=float(level)) for tile, level in zip(noisy, sigma, strict=True)])


def _whole_tile(denoiser: Denoiser, golden: Golden, device: NDArray[np.uint8], allowed: float) -> tuple[str, ...]:
    """Why the window of a whole tile, which large images are cut into, fails; golden tiles need smaller ones.

    Args:
        device: what the smaller windows gave, uint8 [K, H, W, C].
        allowed: dB that the two must at least be from each other, where they need not be the same bits.
    """
    if not denoiser.engine.any_size:
        return ()
    at = golden.extremes()
    with denoiser.whole_tiles():
        whole = run_tiles(denoiser, golden.noisy[at], golden.sigma[at])
    apart, db = int(np.abs(whole.astype(np.int16) - device[at]).max()), decibels(whole, device[at])
    exact = denoiser.variant.integer and denoiser.engine.kernels == "xnnpack"
    # Written so that a NaN fails.
    if apart == 0 or (not exact and db >= allowed):
        return ()
    side = denoiser.tile
    return (
        f"windows of {side}x{side}, which large images are cut into, give other pixels than the golden tiles' smaller "
        f"ones: up to {apart} LSB apart, {db:.1f} dB ({'identical bytes' if exact else f'{allowed:g} dB'} required): "
        "this engine computes otherwise there; update it (edgekit doctor names it)",
    )


def _int8_share(engine: Engine | None, layers: Sequence[LayerReport]) -> tuple[float, str, tuple[str, ...]]:
    """Share of MACs in int8, where it comes from, and what is wrong if the manifest's layers tell otherwise."""
    stated, total = int8_share(layers), sum(engine.macs.values()) if engine is not None else 0
    if engine is None or not total:
        return stated, "as exported", ()
    share = engine.macs.get("int8", 0) / total
    if not engine.counts_file:
        # What a processor or GPU made of the file: no sign of an edit where it differs from the host's.
        return share, "as it runs here", ()
    if abs(share - stated) <= 1e-6:
        return share, "counted in the model file", ()
    wrong = (
        f"layers edited: the manifest says {percent(stated)} of MACs in int8, the model file holds {percent(share)}: "
        "get the bundle again from its maker, or export it again"
    )
    return share, "counted in the model file", (wrong,)


def _verdict(
    bundle: Bundle,
    variant: Variant,
    device: NDArray[np.uint8],
    agreement: Agreement,
    speed: Speed | None,
    engine: Engine | None,
    apart: tuple[str, ...] = (),
) -> Verdict:
    manifest, golden = bundle.manifest, bundle.golden()
    table = rows(golden, device)
    # The layers and the share of int8 are about the default variant and integer ones: a float fallback owes none.
    owes = variant.integer or variant == default_of(manifest)
    layers, sensitivity = (manifest.layers, manifest.sensitivity) if owes else ((), ())
    thresholds = golden.thresholds if owes else Thresholds(golden.thresholds.max_drop)
    share, source, wrong = _int8_share(engine if owes else None, layers)
    kernels = golden.kernels if engine is None else engine.kernels
    tuned = "finetune" in manifest.recipe
    reasons = judge(table, agreement, share, thresholds, layers, sensitivity, tuned=tuned)
    reasons += apart + wrong + seals(manifest, golden)
    return Verdict(
        passed=not reasons,
        reasons=reasons,
        notes=(*_notes(bundle, variant, agreement, kernels), *_doubts(bundle, variant, mean(table))),
        name=manifest.name,
        target=manifest.target,
        variant=variant.name,
        rows=table,
        total=mean(table),
        agreement=agreement,
        int8_share=share,
        int8_source=source,
        guilty=guilty(sensitivity),
        speed=speed,
        bytes=sum(bundle.path(name).stat().st_size for name in variant.files),
        original_bytes=manifest.model.original_bytes,
        engine=variant.engine,
        library="as recorded by the host" if engine is None else engine.library,
        made_for=variant.made_for,
        kernels=kernels,
        thresholds=thresholds,
    )


def _doubts(bundle: Bundle, variant: Variant, total: SigmaRow) -> tuple[str, ...]:
    """What no rule forbids, but nobody expects."""
    found = []
    if 0 <= total.device - total.noisy < _NOTHING:
        found.append(
            f"removes next to no noise: {total.device - total.noisy:.2f} dB better than the noisy input; is the model "
            "trained, and does it give the clean image?"
        )
    sizes = {name: bundle.path(name).stat().st_size for name in variant.files}
    weights = bundle.manifest.model.original_bytes
    if weights and variant.integer and sum(sizes.values()) > weights:
        largest = max(sizes, key=lambda name: sizes[name])
        found.append(
            f"the model file is larger than the original's float32 weights ({sum(sizes.values()) / 1e3:.0f} KB against "
            f"{weights / 1e3:.0f}): {largest} describes the graph, which of so small a network is the larger part"
        )
    return tuple(found)


def _notes(bundle: Bundle, variant: Variant, agreement: Agreement, kernels: str) -> tuple[str, ...]:
    notes = []
    if variant.made_for:
        notes.append(
            f"not run on {variant.made_for}: {variant.engine} computed the graph in its place; dB hold for the graph, "
            "and nothing is known of the speed"
        )
    # build_engine.py writes there, each file with its own digests beside it.
    unlisted = [name for name in bundle.unlisted if not name.startswith("engines/")]
    if unlisted:
        notes.append(f"files that the manifest does not list, and nothing reads: {', '.join(unlisted)}")
    if agreement.portable is not None:
        notes.append(
            f"this device runs {kernels} kernels, the host ran {bundle.golden().kernels}: the bits of the fast kernels "
            "cannot be compared; the model was held to the host's by portable kernels"
        )
    return tuple(notes)


def _time(bundle: Bundle, denoiser: Denoiser) -> Speed | None:
    """Median time of an image whose useful pixels fill one tile, in turns with a float variant if there is another."""
    image, sigma = fill_one_tile(bundle)
    threads, side = denoiser.engine.threads, len(image)
    names = [v.name for v in bundle.manifest.variants]
    baseline = next((name for name in ("fp32", "fp16") if name in names and name != denoiser.variant.name), None)
    with ExitStack() as stack:
        contenders = [denoiser]
        if baseline is not None:
            contenders.append(stack.enter_context(Denoiser.from_bundle(bundle, baseline, threads)))
        runs = [partial(contender, image, sigma=sigma) for contender in contenders]
        times = in_turns(runs, _MAX_RUNS, _SECONDS, warm_up=3)
    medians = [float(np.median(taken)) for taken in times]
    ratio = medians[1] / medians[0] if baseline is not None else None
    return Speed(medians[0] * 1e3 / (side * side / 1e6), threads, baseline, ratio)
