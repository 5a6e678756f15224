"""The main job: model -> prune -> distill -> quantize -> lower -> bundle. The one place that knows every stage."""

from __future__ import annotations

import logging
import platform
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from edgekit import noise_header
from edgekit._version import __version__
from edgekit.bundle import reader, writer
from edgekit.bundle.golden import Golden
from edgekit.bundle.manifest import Manifest, ModelFacts, Sensitivity, Thresholds, Variant
from edgekit.bundle.reader import Bundle
from edgekit.compress.batches import Progress as StepProgress
from edgekit.compress.budget import Wide, choose
from edgekit.compress.distill import distill
from edgekit.compress.evaluate import denoise_whole, evaluate
from edgekit.compress.lessons import fingerprint
from edgekit.compress.program import QuantizedProgram
from edgekit.compress.prune import prune
from edgekit.compress.quantize import quantize
from edgekit.compress.record import Size, StageRecord
from edgekit.compress.sensitivity import sensitivity
from edgekit.errors import CheckpointError, EdgekitError, ExportError, MissingExtraError, RecipeError, UnknownNameError
from edgekit.models import DenoiserModel, checkpoints, create, importers, licences, names
from edgekit.models.complexity import layer_macs
from edgekit.out_folder import check_out_folder
from edgekit.recipe import DistillSettings, NoiseSettings, PruneSettings, QuantizeSettings, Recipe
from edgekit.runtime.check import FLOAT_DB, check, run_tiles
from edgekit.runtime.denoiser import Denoiser
from edgekit.runtime.turns import in_turns
from edgekit.runtime.verdict import Verdict, decibels
from edgekit.stage_data import StageData, open_stage_data
from edgekit.targets import registry as targets
from edgekit.targets.base import Lowered, Target
from edgekit.train.images import check_folder
from edgekit.workspace import Workspace

_log = logging.getLogger(__name__)

# Share of the MACs that an INT8 bundle computes in integers at least.
MIN_INT8_SHARE = 0.9
# dB that two digits show.
_SHOWN = 0.005
# How often quantization is begun anew with more layers in float.
_MOST_ATTEMPTS = 4
# Seconds a step, a batch or a file takes on two cores of a 2024 server, with dsunet-s and the default batches: for the
# estimate of --dry-run only.
_MACS_PER_STEP = 8500 * 8 * 96 * 96
_SECONDS = {"step": 0.04, "teacher": 0.06, "qat": 0.13, "start": 15.0, "lower": 25.0, "check": 15.0}
# Distillation's share when --steps names the steps of both trainings: ranges are soon learned
# (docs/int8-experiments.md).
_DISTILL_SHARE = 0.8
# MACs per pixel. A quarter of dsunet-s (8,900) costs 0.14 dB, of dsunet-n (2,900) 0.47 (docs/compression.md).
_SMALL = 5000
# What recovery learns from on the built-in images, which stand in for a user's: they are too few to teach what a good
# image is, but the original's answers on them are worth as much as on others (docs/compression.md).
_ON_BUILT_IN = {"output_weight": 0.75, "clean_weight": 0.25}
# Teachers that need no weights of their own: the model before it was pruned, and none, which leaves the clean images.
_NO_TEACHER_FILE: dict[str, Callable[[DenoiserModel], DenoiserModel | None]] = {
    "original": lambda original: original,
    "none": lambda original: None,
}
_LIBRARIES = (
    "torch", "torchao", "torch-pruning", "litert-torch", "ai-edge-litert", "ai-edge-quantizer", "onnx", "onnxruntime",
    "openvino", "nncf", "numpy",
)  # fmt: skip
# In a bundle, what the compressed network was before it was quantized: for whoever trains it further.
WEIGHTS = "weights.safetensors"


class Progress(Protocol):
    """`progress(stage, done, total, text)` is told how far each stage is."""

    def __call__(self, stage: str, done: int, total: int, text: str = "") -> None: ...


@dataclass(frozen=True)
class StagePlan:
    """One line of `--dry-run`: a stage, its settings, and an estimate of its seconds on two cores."""

    stage: str
    settings: dict[str, Any]
    seconds: float


@dataclass(frozen=True)
class Given:
    """A model that was made here, to be quantized and exported.

    Attributes:
        original: in FP32; the recipe's `weights` name its file, for the terms.
        images: to quantize and to judge it with.
        told: what the bundle's recipe says beside the recipe itself.
        known: all noises that the model knows, the recipe's among them.
    """

    original: DenoiserModel
    images: StageData
    told: Mapping[str, Any]
    known: tuple[NoiseSettings, ...]


@dataclass(frozen=True)
class _Run:
    """What every stage of one run needs."""

    recipe: Recipe
    images: StageData
    work: Workspace
    progress: Progress
    told: Mapping[str, Any]
    known: tuple[NoiseSettings, ...] | None

    def reporter(self, stage: str) -> StepProgress:
        def report(done: int, total: int, text: str = "") -> None:
            self.progress(stage, done, total, text)

        return report


def settings_of(recipe: Recipe) -> tuple[PruneSettings, DistillSettings, QuantizeSettings]:
    """The stages' settings with the recipe's short forms (`prune`, `steps`, `seed`) put in.

    What was not pruned is taught its own outputs and the clean images all the same, on the 8-bit images of a device
    (docs/int8-experiments.md).
    """
    pruning = recipe.pruning.model_copy(update={"ratio": recipe.prune})
    distillation = recipe.distillation.model_copy(update={"seed": recipe.seed})
    quantization = recipe.quantization
    if recipe.steps is not None:
        first = round(recipe.steps * _DISTILL_SHARE) if recipe.precision == "int8" else recipe.steps
        distillation = distillation.model_copy(update={"steps": first})
        quantization = quantization.model_copy(update={"steps": recipe.steps - first})
    return pruning, distillation, quantization


def plan(recipe: Recipe, *, out: Path | None = None, force: bool = False) -> list[StagePlan]:
    """The stages of a recipe, in order, with an estimate of their time; images are read, nothing is run or written.

    Args:
        out, force: as for `compress`, to learn whether bundles can be written there; None does not ask.
    Raises: what `compress` raises about recipe, images and bundles that exist before it begins. Whether an unfinished
        run can be resumed it does not say.
    """
    chosen, original, teacher = _prepare(recipe)
    recipe = _settled(recipe, original)
    if out is not None:
        _destinations(recipe, chosen, out, force)
    images = open_stage_data(recipe, original.channels)
    pruning, distillation, quantization = settings_of(recipe)
    pixels = distillation.batch * distillation.patch**2
    step, taught = (0.0 if m is None else m.macs_per_pixel() * pixels / _MACS_PER_STEP for m in (original, teacher))
    taught *= distillation.pool * _SECONDS["teacher"]
    low, high = recipe.sigma
    count = len(images.source.training) + len(images.source.held_out)
    left_out = f", {len(images.skipped)} left out" if images.skipped else ""
    given = {
        "model": recipe.model,
        "data": f"{recipe.data or 'built-in'} ({count} images{left_out})",
        "noise": "the pairs' own" if images.source.paired else recipe.noise.model,
        "sigma": f"{low:g}:{high:g}",
    }
    stages = [StagePlan("original", given, _SECONDS["start"])]
    if recipe.prune:
        stages.append(StagePlan("prune", pruning.model_dump(), pruning.batches * step * _SECONDS["qat"] + 5))
    if distillation.steps:
        settings = {"teacher": recipe.teacher, **distillation.model_dump()}
        stages.append(StagePlan("distill", settings, distillation.steps * step * _SECONDS["step"] + taught))
    for target in chosen:
        suffix = f" {target.name}" if len(chosen) > 1 else ""
        if _learns(recipe):
            seconds = quantization.steps * step * _SECONDS["qat"] + 10
            stages.append(StagePlan(f"quantize{suffix}", quantization.model_dump(), seconds))
        lowering = {"target": target.name, "precision": recipe.precision, "tile": recipe.tile}
        stages.append(StagePlan(f"export{suffix}", lowering, _SECONDS["lower"]))
        stages.append(StagePlan(f"check{suffix}", {"max_drop": recipe.max_drop}, _SECONDS["check"]))
    return stages


def compress(
    recipe: Recipe,
    *,
    out: Path = Path("build"),
    force: bool = False,
    resume: bool = False,
    progress: Progress | None = None,
    on_verdict: Callable[[Verdict], None] | None = None,
    given: Given | None = None,
) -> list[Bundle]:
    """Run a recipe: prune and distill once, then quantize, export and judge for each of its targets.

    Args:
        out: folder that receives `MODEL-TARGET.edgekit`.
        force: replace a bundle that is there already, once the new one is complete, and throw away an unfinished run.
        resume: go on where a run with the same recipe was stopped.
        progress: told how far each stage is.
        on_verdict: told the verdict that each bundle's report states.
        given: model and images in place of those that the recipe names.
    Returns: the bundles, read back and verified, one a target; `edgekit.check` judges them.
    Raises: EdgekitError: anything that is wrong with the recipe, images, weights or disk, before or while it runs.
    """
    chosen, original, teacher = _prepare(recipe, given)
    recipe = _settled(recipe, original) if given is None else recipe
    destinations = _destinations(recipe, chosen, out, force)
    images = open_stage_data(recipe, original.channels) if given is None else given.images
    inputs = {
        "weights' digest": fingerprint([], original),
        "teacher's digest": fingerprint([], teacher),
        "images' digest": images.digest,
        **{f"version of {name}": version for name, version in _versions().items()},
    }
    work = Workspace(work_folder(recipe.model, recipe.target, out), recipe, inputs, resume=resume, force=force)
    told, known = ({}, None) if given is None else (given.told, given.known)
    run = _Run(recipe, images, work, progress or silent, told, known)
    try:
        bundles = _stages(run, chosen, original, teacher, destinations, force, on_verdict)
    except EdgekitError:
        if work.holds_stages():
            _log.warning("finished stages are kept in %s: --resume goes on there, --force starts over", work.folder)
        raise
    work.remove()
    return bundles


def share_of(macs_per_pixel: float) -> float:
    """The share of a network's MACs that is pruned where nobody says: none of a small one, which has none to spare."""
    return 0.0 if macs_per_pixel < _SMALL else PruneSettings().ratio


def _settled(recipe: Recipe, original: DenoiserModel) -> Recipe:
    """The recipe with what it leaves to model and images: the share to prune, the noise that the weights were trained
    on, and what recovery learns from.

    Raises: CheckpointError: the weights' header holds a noise that this edgekit does not know.
    """
    changes: dict[str, Any] = {}
    if recipe.prune is None:
        changes["prune"] = share_of(original.macs_per_pixel())
    if "noise" not in recipe.model_fields_set and not importers.accepts(recipe.model):
        source = recipe.weights or recipe.model
        noise = noise_header.read(source)
        changes |= {} if noise is None else {"noise": noise}
        if len(known := noise_header.known(source) or ()) > 1:
            _log.warning(
                "%s knows %s noise; this run is for the first alone and may forget the others: finetune a bundle "
                "instead, which keeps them",
                source, " and ".join(item.model for item in known),
            )  # fmt: skip
    settled = recipe.model_copy(update=changes)
    chosen = recipe.distillation.model_fields_set & set(_ON_BUILT_IN)
    if settled.prune and settled.data is None and settled.teacher == "original" and not chosen:
        weights = settled.distillation.model_copy(update=_ON_BUILT_IN)
        settled = settled.model_copy(update={"distillation": weights})
    return settled


def _stem(model: str) -> str:
    """What bundles and model files are called: the model's name, its file's, or its folder's, which may be "."."""
    return Path(model).resolve().stem


def bundle_folder(model: str, target: str, out: Path) -> Path:
    """Where the bundle of a model, as a recipe names it, for a target goes."""
    return out / f"{_stem(model)}-{target}.edgekit"


def work_folder(model: str, target: str, out: Path) -> Path:
    """Where a run keeps what `resume` goes on with, until its bundle is complete."""
    place = bundle_folder(model, target, out)
    return place.with_name(f".{place.name}.work")


def _destinations(recipe: Recipe, chosen: Sequence[Target], out: Path, force: bool) -> dict[str, Path]:
    """Where each target's bundle goes. Raises: OutputExistsError."""
    check_out_folder(out)
    found = {target.name: bundle_folder(recipe.model, target.name, out) for target in chosen}
    for place in found.values():
        writer.check_free(place, force)
    return found


def _stages(
    run: _Run,
    chosen: Sequence[Target],
    original: DenoiserModel,
    teacher: DenoiserModel | None,
    destinations: Mapping[str, Path],
    force: bool,
    on_verdict: Callable[[Verdict], None] | None,
) -> list[Bundle]:
    """Everything that takes time, from pruning to the verdicts."""
    records = [_original(run, original)]
    compressed = _shrink(run, original, teacher, records)
    exported = [_export(run, target, original, compressed, records, many=len(chosen) > 1) for target in chosen]
    peers = {label: images for item in exported for label, images in item.outputs.items()}
    bundles = []
    for item in exported:
        # Its own first: the others are held against it.
        others = {**item.outputs, **{label: made for label, made in peers.items() if label not in item.outputs}}
        bundles.append(_write(run, item, destinations[item.target.name], others, force, on_verdict))
    return bundles


def _shrink(
    run: _Run, original: DenoiserModel, teacher: DenoiserModel | None, records: list[StageRecord]
) -> DenoiserModel:
    """Prune and distill; what no target changes."""
    images, work = run.images, run.work
    pruning, distillation, _ = settings_of(run.recipe)
    compressed = original
    if run.recipe.prune:
        compressed = _stage(
            run,
            records,
            "prune",
            lambda: prune(original, pruning, images.batches, images.tiles, run.reporter("prune"), sigmas=images.sigmas),
        )
    if distillation.steps:
        pruned = compressed
        compressed = _stage(
            run,
            records,
            "distill",
            lambda: distill(
                pruned,
                teacher,
                distillation,
                images.batches,
                images.tiles,
                sigmas=images.sigmas,
                progress=run.reporter("distill"),
                checkpoint=work.checkpoint("distill"),
                cache=work.teachings("distill"),
            ),
        )
    return compressed


def _learns(recipe: Recipe) -> bool:
    """Whether ranges are learned here, by the quantize stage."""
    return recipe.precision == "int8" and recipe.quantizer == "edgekit"


def silent(stage: str, done: int, total: int, text: str = "") -> None:
    """The progress of a run that nobody watches."""


def _prepare(recipe: Recipe, given: Given | None = None) -> tuple[list[Target], DenoiserModel, DenoiserModel | None]:
    """The targets, the model and its teacher, once everything is refused that shows before the images are read."""
    chosen = targets.chosen(recipe.target)
    for target in chosen:
        if (missing := target.available()) is not None:
            raise MissingExtraError.needs(f"--target {target.name}", missing, target.extra)
        if recipe.precision not in target.precisions:
            raise RecipeError(
                f"precision {recipe.precision!r}: target {target.name} exports {', '.join(target.precisions)}"
            )
        if recipe.quantizer not in ("edgekit", *target.quantizers):
            able = [name for name in targets.names() if recipe.quantizer in targets.get(name).quantizers]
            raise RecipeError(
                f"quantizer {recipe.quantizer!r}: target {target.name} takes "
                f"{', '.join(('edgekit', *target.quantizers))}; {recipe.quantizer} is for --target {', '.join(able)}"
            )
    if given is None:
        _check_names(recipe)
    if recipe.license_clean:
        parts = {role: (str(origin), terms) for role, (origin, terms) in _terms(recipe).items()}
        licences.check_clean({**parts, "data": (str(recipe.data or "built-in"), licences.of_images(recipe.data))})
    original, teacher = _models(recipe) if given is None else (given.original, None)
    if recipe.quantization.wide:
        _check_wide(recipe, original)
    check_tile(recipe.tile, original)
    for target in chosen:
        target.check_profile(recipe.shape_profile, channels=original.channels, tile=recipe.tile)
    if original.pools_globally:
        _log.warning(
            "%s averages over its whole input: each tile of %d gets averages of its own, so the result depends on the "
            "tile, and tiles may not join without a seam (docs/models.md)",
            recipe.model,
            recipe.tile,
        )
    if recipe.data is not None:
        check_folder(recipe.data)
    return chosen, original, teacher


def _check_wide(recipe: Recipe, model: DenoiserModel) -> None:
    """Refuse layers to keep in float that are none, or that nothing would keep; warn where the verdict must fail."""
    if not _learns(recipe):
        made = f"quantizer {recipe.quantizer!r}" if recipe.precision == "int8" else f"precision {recipe.precision!r}"
        raise RecipeError(f"quantization.wide is for edgekit's own integers, and {made} makes none: leave it out")
    macs = {name: float(count) for name, count in layer_macs(model, 8 * model.stride)}
    for name in recipe.quantization.wide:
        if name not in macs:
            raise UnknownNameError.unknown("layer in quantization.wide", name, macs)
    share = sum(macs[name] for name in recipe.quantization.wide) / sum(macs.values())
    if share > 1 - MIN_INT8_SHARE:
        _log.warning(
            "quantization.wide holds %.0f%% of the MACs: the verdict wants %.0f%% in int8",
            100 * share,
            100 * MIN_INT8_SHARE,
        )


def _check_names(recipe: Recipe) -> None:
    """Refuse a model or teacher that is unknown, or has no weights; files are looked at when they are read."""
    shipped = checkpoints.shipped()
    if recipe.weights is not None and importers.accepts(recipe.model) and not importers.takes_weights(recipe.model):
        raise RecipeError(f"weights {str(recipe.weights)!r}: {recipe.model} brings its own; leave --weights out")
    if recipe.model not in names() and Path(recipe.model).is_dir() and not importers.accepts(recipe.model):
        raise RecipeError(f"model {recipe.model!r} is a folder without saved_model.pb: expected a SavedModel or a file")
    for role, name in (("model", recipe.model), ("teacher", recipe.teacher)):
        allowed = [*names(), *(n for n in shipped if n not in names())]
        allowed += _NO_TEACHER_FILE if role == "teacher" else []
        if role == "model" and Path(name).suffix == ".safetensors" and checkpoints.says_model(name):
            # What edgekit trained or tuned knows its own network, which may have no other name: one of the user's own.
            if recipe.weights is not None:
                raise RecipeError(f"weights {str(recipe.weights)!r}: {name} brings its own; leave --weights out")
            continue
        if role == "model" and (Path(name).suffix == ".py" or Path(name).suffix in (".pth", ".safetensors", ".ckpt")):
            kind = "a Python file" if Path(name).suffix == ".py" else "a file of weights"
            raise RecipeError(
                f"model {name!r} is {kind}: name the function in it that returns the module, net.py:make, and its "
                "weights by --weights"
            )
        if Path(name).suffix or importers.accepts(name) or (role == "teacher" and name in _NO_TEACHER_FILE):
            continue
        if name not in allowed:
            files = ["a network's file (net.py:make, .pt2, .onnx, .keras, SavedModel)"] if role == "model" else []
            raise UnknownNameError.unknown(role, name, [*allowed, *files])
        if name not in shipped and (role == "teacher" or recipe.weights is None):
            fix = "--teacher none or a weight file" if role == "teacher" else "--weights FILE"
            raise RecipeError(
                f"{role} {name!r} comes without weights: use one that has them ({', '.join(shipped) or 'none does'}), "
                f"or {fix}; edgekit train makes one"
            )


def _models(recipe: Recipe) -> tuple[DenoiserModel, DenoiserModel | None]:
    """The model to compress, and its teacher."""
    source = recipe.weights or recipe.model
    # Shipped weights may have a name of their own.
    name = checkpoints.preset(recipe.model)
    foreign = importers.accepts(recipe.model)
    original = importers.load(recipe.model, recipe.weights) if foreign else _load(source, name)
    if name in names():
        check_fits(original, name, str(source))
    if recipe.teacher in _NO_TEACHER_FILE:
        return original, _NO_TEACHER_FILE[recipe.teacher](original)
    teacher = _load(recipe.teacher)
    if teacher.channels != original.channels:
        raise RecipeError(
            f"teacher {recipe.teacher!r} has {teacher.channels} channels, the model {original.channels}: "
            "choose another teacher, or --teacher none"
        )
    return original, teacher


def _load(source: str | Path, name: str | None = None) -> DenoiserModel:
    """A model from a shipped name or a file; a weight file that edgekit did not write is of the model `name`."""
    if importers.accepts(source):
        return importers.load(source)
    # A file that edgekit wrote knows its own widths.
    return checkpoints.load(source, None if checkpoints.says_model(source) else name)


def check_fits(loaded: DenoiserModel, name: str, source: str) -> None:
    """Weights of another model would be compressed under the wrong name. Widths of one's own are no other model."""
    known = checkpoints.presets_of(loaded.arch, loaded.config())
    if loaded.arch != create(name).arch or (known and name not in known):
        raise CheckpointError(
            f"{source} holds weights of {known[0] if known else loaded.arch}, not of {name}: "
            f"name the model they belong to, {f'e.g. --model {known[0]}' if known else f'--model {source}'}"
        )


def check_tile(tile: int, model: DenoiserModel) -> None:
    """A tile is a multiple of the stride and leaves useful pixels inside the halo. Raises: RecipeError: it is not."""
    least = 2 * model.halo + model.stride
    if tile % model.stride or tile < least:
        near = max(-(-least // model.stride), round(tile / model.stride)) * model.stride
        raise RecipeError(
            f"tile {tile}: {model.arch} needs a multiple of {model.stride}, at least {least} "
            f"(twice its halo of {model.halo} and more); use --tile {near}"
        )


def _original(run: _Run, original: DenoiserModel) -> StageRecord:
    """The record of the model as it came."""
    began = time.perf_counter()
    run.progress("original", 0, 1)
    db = evaluate(original, run.images.tiles, run.images.sigmas)
    _doubt(run, db)
    size = Size(original.macs_per_pixel(), original.parameter_count())
    run.progress("original", 1, 1)
    # A bundle goes to others: where its maker kept the file is nobody's business.
    what = f"{Path(run.recipe.model).name}, FP32"
    return StageRecord("original", what, size, size, db, db, time.perf_counter() - began)


def _doubt(run: _Run, db: Mapping[float, float]) -> None:
    """Say at the start, not by a FAIL at the end of the run, that the model to imitate is none."""
    noisy = evaluate(lambda image, _: image, run.images.tiles, run.images.sigmas)
    found, before = (sum(levels.values()) / len(levels) for levels in (db, noisy))
    if found < before:
        _log.warning(
            "%s, FP32, makes its images worse: %.2f dB, %.2f dB before; expect a FAIL at the end. Train it first "
            "(edgekit train), or see that the weights are this model's; a network of your own gives the clean image, "
            "not the noise, and takes values in 0..1 and sigma / 255",
            run.recipe.model, found, before,
        )  # fmt: skip


def _stage(
    run: _Run, records: list[StageRecord], name: str, work: Callable[[], tuple[DenoiserModel, StageRecord]]
) -> DenoiserModel:
    """Run a stage, or take what it left when an earlier run finished it; append its record."""
    done = run.work.finished(name)
    if done is None:
        done = work()
        run.work.finish(name, *done)
    else:
        run.progress(name, 1, 1, "done before")
    records.append(done[1])
    return done[0]


@dataclass(frozen=True)
class _Exported:
    """A target's files and what they give here, before the bundle is written.

    Attributes:
        outputs: by label, "tflite int8", what the default variant gave for the golden tiles, and what another quantizer
            gave that the report compares with it: uint8 [K, H, W, C].
    """

    target: Target
    manifest: Manifest
    golden: Golden
    files: dict[str, Path]
    outputs: dict[str, NDArray[np.uint8]]


def _export(
    run: _Run,
    target: Target,
    original: DenoiserModel,
    compressed: DenoiserModel,
    shared: list[StageRecord],
    *,
    many: bool,
) -> _Exported:
    """Quantize for a target, lower, and run the golden tiles on this machine."""
    recipe = run.recipe.model_copy(update={"target": target.name})
    suffix = f" {target.name}" if many else ""
    records = list(shared)
    _, _, quantization = settings_of(recipe)
    program: QuantizedProgram | None = None
    costs: tuple[Sensitivity, ...] = ()
    if _learns(recipe):
        program, record, costs = _quantize(run, target, recipe, compressed, records[0], suffix)
        records.append(record)
    stage = f"export{suffix}"
    run.progress(stage, 0, 3, "lowering")
    files = run.work.folder / f"files-{target.name}"
    # What a run that was killed here left behind is made anew.
    shutil.rmtree(files, ignore_errors=True)
    files.mkdir()
    stem = _stem(recipe.model)
    noisy, clean, sigma = run.images.golden.noisy, run.images.golden.clean, run.images.golden.sigma
    thresholds = Thresholds(
        max_drop=recipe.max_drop, min_int8_share=MIN_INT8_SHARE if recipe.precision == "int8" else 0.0
    )

    def ran(lowered: Lowered) -> tuple[Manifest, NDArray[np.uint8], str]:
        manifest = _manifest(run, target, recipe, original, compressed, lowered, records, thresholds)
        return manifest, *_host_outputs(manifest, files, noisy, sigma)

    def baseline(quantizer: str) -> Lowered:
        count = quantization.calibration_batches
        return target.quantized_by(quantizer, compressed, run.images.batches, count, files, name=stem, tile=recipe.tile)

    if recipe.precision == "int8" and program is None:
        lowered = baseline(recipe.quantizer)
    else:
        lowered = target.lower(compressed, program, files, name=stem, tile=recipe.tile, precision=recipe.precision)
    run.progress(stage, 1, 3, "golden tiles")
    manifest, host, kernels = ran(lowered)
    if wide := records[-1].details.get("wide"):
        again = [layer.name for layer in manifest.layers if layer.name in wide and layer.dtype == "int8"]
        if again:
            _log.warning("%s made %s integer again: name its neighbours, too", target.name, ", ".join(again))
        records[-1] = _with_time(records[-1], manifest, files, wide)
        manifest = replace(manifest, stages=tuple(record.to_dict() for record in records))
    manifest = replace(manifest, sensitivity=costs)
    outputs = {f"{target.name} {lowered.variants[0].name}": host}
    if program is not None:
        for quantizer in target.quantizers:
            # The baseline to beat: in the report, not in the bundle.
            run.progress(stage, 1, 3, f"{quantizer} for comparison")
            outputs[f"{target.name} int8 by {quantizer}"] = ran(baseline(quantizer))[1]
    run.progress(stage, 2, 3, "float outputs")
    golden = Golden(
        noisy=noisy,
        clean=clean,
        sigma=sigma,
        fp32_original=Golden.pack(float_outputs(original, noisy, sigma)),
        fp32_compressed=Golden.pack(float_outputs(compressed, noisy, sigma)),
        host=host,
        thresholds=thresholds,
        kernels=kernels,
    )
    _check_float(manifest, files, golden)
    written = {name: files / name for v in lowered.variants for name in v.files}
    written |= {name: _text_file(files / name, text) for name, text in target.extras(manifest).items()}
    written[WEIGHTS] = files / WEIGHTS
    use = manifest.licences["use"]
    parts = [licences.Terms(words, use) for role, words in manifest.licences.items() if role != "use"]
    shown = [name for name in _terms(recipe)["weights"][1].trained_on.split(", ") if name]
    # Of weights that do not say what they were trained on, the images here would be told as if they were all.
    if shown and any(record.stage in ("prune", "distill") for record in records):
        shown.append(run.images.source.name)
    # A bundle goes to others: of the maker's folders the last two names, as many are called "train".
    terms = licences.header(parts, ["/".join(Path(name).parts[-2:]) for name in shown])
    terms = {name: value for name, value in terms.items() if value}
    terms |= noise_header.write(recipe.noise, run.known)
    checkpoints.save(written[WEIGHTS], compressed, terms)
    run.progress(stage, 3, 3, f"{len(written)} files")
    return _Exported(target, manifest, golden, written, outputs)


def _quantize(
    run: _Run,
    target: Target,
    recipe: Recipe,
    compressed: DenoiserModel,
    original: StageRecord,
    suffix: str,
) -> tuple[QuantizedProgram, StageRecord, tuple[Sensitivity, ...]]:
    """Quantize within the budget of `max_drop`: layers stay in float, as few as can be, where it would be exceeded.

    Returns: the program, its record, and what each of its tensors costs.
    """
    _, _, settings = settings_of(recipe)
    macs = {name: float(count) for name, count in layer_macs(compressed, 8 * compressed.stride)}
    scheme, left = replace(target.scheme(), wide=frozenset(settings.wide)), list[Wide]()
    report = run.reporter(f"quantize{suffix}")
    costs: tuple[Sensitivity, ...] = ()

    def measure(calibrated: QuantizedProgram) -> None:
        nonlocal costs
        costs = sensitivity(calibrated, run.images.tiles, run.images.sigmas, report)

    for attempt in range(_MOST_ATTEMPTS):
        program, record = quantize(
            compressed,
            scheme,
            settings,
            run.images.batches,
            run.images.tiles,
            sigma_range=(recipe.sigma[0] / 255, recipe.sigma[1] / 255),
            sigmas=run.images.sigmas,
            progress=report,
            checkpoint=run.work.checkpoint(f"quantize-{target.name}{f'-{attempt}' if attempt else ''}"),
            # What a tensor costs alone does not change where another is left in float.
            on_calibrated=None if attempt else measure,
        )
        excess = _mean(original.db_after) - _mean(record.db_after) - recipe.max_drop
        # What pruning lost no float layer wins back.
        lost = _mean(record.db_before) - _mean(record.db_after)
        more = choose(program, costs, macs, excess=excess, least=MIN_INT8_SHARE) if excess <= lost else []
        if not more or attempt == _MOST_ATTEMPTS - 1:
            break
        left += more
        scheme = replace(scheme, wide=frozenset().union(scheme.wide, *(item.layers for item in more)))
        _log.warning("%.2f dB above --max-drop: %s", excess, "; ".join(item.told() for item in more))
    rounded = {("activations", name) for name, _ in program.tensors()}
    rounded |= {("weights", layer.name) for layer in program.layers() if layer.weight is not None}
    costs = tuple(item for item in costs if (item.kind, item.name) in rounded)
    asked = [f"{', '.join(settings.wide)} in float, as the recipe says"] if settings.wide else []
    notes = [*asked, *(item.told() for item in left)]
    if excess >= _SHOWN:
        # On these tiles. The golden ones decide, and the verdict says so.
        why = f"after {_MOST_ATTEMPTS} attempts" if more else "which no more layers in float would mend"
        notes.append(f"{excess:.2f} dB above --max-drop on held-out tiles, {why}")
    if notes:
        details = {**record.details, **({"wide": sorted(scheme.wide)} if scheme.wide else {})}
        record = replace(record, what="; ".join([record.what, *notes]), details=details)
    return program, record, costs


def _mean(db: Mapping[float, float]) -> float:
    return sum(db.values()) / len(db)


def _text_file(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text.encode())
    return path


def _write(
    run: _Run,
    item: _Exported,
    destination: Path,
    outputs: dict[str, NDArray[np.uint8]],
    force: bool,
    on_verdict: Callable[[Verdict], None] | None,
) -> Bundle:
    """Write a bundle and judge it."""
    stage = f"check {item.target.name}" if run.recipe.target == targets.ALL else "check"
    run.progress(stage, 0, 1, "golden tiles through the runtime")
    verdicts: list[Verdict] = []

    def judge(folder: Path) -> Verdict:
        verdicts.append(check(folder))
        return verdicts[-1]

    path = writer.write(destination, item.manifest, item.files, item.golden, force=force, judge=judge, compared=outputs)
    if on_verdict is not None:
        on_verdict(verdicts[-1])
    run.progress(stage, 1, 1, path.name)
    return reader.read(path)


def float_outputs(model: DenoiserModel, noisy: NDArray[np.uint8], sigma: NDArray[np.float32]) -> NDArray[np.float32]:
    """Outputs of an FP32 model: noisy uint8 [K, H, W, C], sigma [K] in 8-bit units -> float32 [K, H, W, C] in 0..1."""
    model.eval()
    return np.stack([denoise_whole(model, image, float(level)) for image, level in zip(noisy, sigma, strict=True)])


def _check_float(manifest: Manifest, files: Path, golden: Golden) -> None:
    """Hold the float file to the network in torch: integers that lose much may be blamed on rounding, floats may not.

    Raises: ExportError: a converter wrote another network.
    """
    if "fp32" not in {variant.name for variant in manifest.variants}:
        return
    at = golden.extremes()
    with open_files(manifest, files, "fp32") as denoiser:
        found = run_tiles(denoiser, golden.noisy[at], golden.sigma[at])
        db = decibels(found, Golden.to_uint8(golden.fp32_compressed[at]))
        # Written so that a NaN fails.
        if not db >= FLOAT_DB:
            raise ExportError(
                f"{denoiser.variant.file} gives other images than the network in torch: {db:.1f} dB between them on "
                f"two golden tiles, {FLOAT_DB:g} dB required: the converter wrote another network; update it (edgekit "
                "doctor names it) and go on with --resume, or report it"
            )


def _with_time(record: StageRecord, manifest: Manifest, files: Path, wide: Sequence[str]) -> StageRecord:
    """A record that tells what its float layers cost, by the rates of float and integer products on one tile here."""
    engines = {name: open_files(manifest, files, name) for name in (manifest.default_variant, "fp32")}
    tile = np.zeros((manifest.tile - 2 * manifest.model.halo,) * 2 + (manifest.model.channels,), np.uint8)
    runs = [partial(denoiser, tile, manifest.sigma[1]) for denoiser in engines.values()]
    mixed, floats = (float(times.min()) for times in in_turns(runs, 5, 60.0, warm_up=1))
    for denoiser in engines.values():
        denoiser.close()
    macs = {layer.name: layer.macs for layer in manifest.layers}
    share = sum(macs.get(name, 0) for name in wide) / sum(macs.values())
    integers = (mixed - share * floats) / (1 - share) if share < 1 else mixed
    extra = max(0.0, mixed - integers)
    told = f"{record.what}; float there costs about {1e3 * extra:.1f} ms of {1e3 * mixed:.1f} ms a tile here"
    return replace(record, what=told, details={**record.details, "wide_ms": round(1e3 * extra, 3)})


def open_files(manifest: Manifest, files: Path, variant: str | None = None, threads: int | None = None) -> Denoiser:
    """A variant of files in a folder that are not a bundle yet."""
    listed = replace(manifest, files={name: "" for v in manifest.variants for name in v.files})
    return Denoiser.from_bundle(Bundle(manifest=listed, folder=files, source=files), variant, threads)


def _host_outputs(
    manifest: Manifest, files: Path, noisy: NDArray[np.uint8], sigma: NDArray[np.float32]
) -> tuple[NDArray[np.uint8], str]:
    """What the default variant gives here, through the runtime, and the kernels that computed it."""
    with open_files(manifest, files) as denoiser:
        return run_tiles(denoiser, noisy, sigma), denoiser.engine.kernels


def _manifest(
    run: _Run,
    target: Target,
    recipe: Recipe,
    original: DenoiserModel,
    compressed: DenoiserModel,
    lowered: Lowered,
    records: list[StageRecord],
    thresholds: Thresholds,
) -> Manifest:
    default: Variant = lowered.variants[0]
    return Manifest(
        name=_stem(recipe.model),
        target=target.name,
        precision=recipe.precision,
        default_variant=default.name,
        variants=lowered.variants,
        model=model_facts(compressed, original),
        tile=recipe.tile,
        sigma=recipe.sigma,
        thresholds=thresholds,
        layers=lowered.layers,
        stages=tuple(record.to_dict() for record in records),
        recipe={**_shareable(recipe), **run.told},
        licences=_licences(recipe, run.images),
        versions=_versions(),
        iso_sigma={str(iso): level for iso, level in recipe.iso_sigma.items()},
    )


def model_facts(compressed: DenoiserModel, original: DenoiserModel) -> ModelFacts:
    """What a manifest says of the network inside, beside the one that it was made from."""
    return ModelFacts(
        arch=compressed.arch,
        channels=compressed.channels,
        stride=compressed.stride,
        halo=compressed.halo,
        blind=compressed.blind,
        macs_per_pixel=compressed.macs_per_pixel(),
        parameters=compressed.parameter_count(),
        original_macs_per_pixel=original.macs_per_pixel(),
        original_parameters=original.parameter_count(),
        original_bytes=4 * original.parameter_count(),
        source=compressed.source,
    )


def _shareable(recipe: Recipe) -> dict[str, Any]:
    """The recipe without the maker's folders: a bundle goes to others."""
    told = recipe.model_dump(mode="json")
    for name in ("model", "data", "weights", "teacher"):
        told[name] = Path(told[name]).name if told[name] else told[name]
    return told


def _terms(recipe: Recipe) -> dict[str, tuple[Path | str, licences.Terms]]:
    """What the weights were made from, by role: where it lies, and its terms."""
    origins = {"weights": recipe.weights or recipe.model}
    if recipe.teacher not in _NO_TEACHER_FILE:
        origins["teacher"] = recipe.teacher
    return {role: (origin, licences.of_weights(origin)) for role, origin in origins.items()}


def _licences(recipe: Recipe, images: StageData) -> dict[str, str]:
    """The terms of what the model files were made from, and "use": what all of them together allow."""
    parts = {role: terms for role, (_, terms) in _terms(recipe).items()}
    parts["data"] = licences.Terms(images.licence, images.use)
    return {**{role: terms.licence for role, terms in parts.items()}, "use": licences.combine(*parts.values()).use}


def _versions() -> dict[str, str]:
    found = {"edgekit": __version__, "python": platform.python_version()}
    for library in _LIBRARIES:
        try:
            found[library] = metadata.version(library)
        except metadata.PackageNotFoundError:
            continue
    return found
