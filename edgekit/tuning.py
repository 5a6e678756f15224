"""Fine-tuning: a model learns a new noise without forgetting the old one; a bundle becomes a new bundle."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import yaml

from edgekit import models, noise_header, pipeline
from edgekit.bundle import reader, writer
from edgekit.bundle.reader import Bundle
from edgekit.compress.evaluate import NoisyTiles, Tiles, noisy_tiles
from edgekit.errors import BundleError, OutputExistsError, RecipeError, UnknownNameError
from edgekit.models import DenoiserModel, checkpoints, licences
from edgekit.models.checkpoints import write_atomically
from edgekit.models.licences import Terms
from edgekit.out_folder import check_out_folder
from edgekit.pair_folder import is_paired
from edgekit.pipeline import Given, Progress, silent
from edgekit.recipe import FinetuneRecipe, NoiseSettings, Recipe, TrainSettings, make
from edgekit.runtime.check import recorded
from edgekit.runtime.verdict import Verdict
from edgekit.stage_data import GoldenImages, StageData, open_stage_data
from edgekit.train.images import ImageSource, open_images
from edgekit.train.journal import LOG
from edgekit.train.loop import fit
from edgekit.train.processes import first
from edgekit.train.replay import Mixed, Replay
from edgekit.train.sampling import Sampler
from edgekit.train.state import FILE, WEIGHTS, weights_digest
from edgekit.train.validation import evaluate, validation_levels

_log = logging.getLogger(__name__)

RECIPE, TABLE = "recipe.yaml", "finetune.json"
# Batches that are looked at for the levels of a noise.
_LOOKS = 16
_OURS = (FILE, WEIGHTS, RECIPE, TABLE, LOG)


class Change(NamedTuple):
    """PSNR in dB on held-out images, before and after: of the "new" or the "old" noise, in words."""

    which: str
    noise: str
    before: float
    after: float


@dataclass(frozen=True)
class Tuned:
    """What a fine-tuning ended in.

    Attributes:
        model: in FP32, before it is quantized.
        path: its weight file; recipe, log and `finetune.json`, the table, stand beside it.
        table: what was won on the new noise, and lost or won on the old.
        bundle: the new bundle, open, where a bundle was tuned.
        first: whether this process wrote the files: of several that train together, one does.
    """

    model: DenoiserModel
    path: Path
    table: tuple[Change, ...]
    bundle: Bundle | None = None
    first: bool = True


@dataclass(frozen=True)
class _Start:
    """What is tuned: a model, its name and terms, and the noises that it knows; of a bundle, its recipe and whether its
    verdict was FAIL.
    """

    model: DenoiserModel
    name: str
    terms: Terms
    noises: tuple[NoiseSettings, ...]
    recipe: Recipe | None = None
    failed: bool = False

    @property
    def drawn(self) -> tuple[NoiseSettings, ...]:
        """What old images are drawn with: pairs alone have a noise without a name, and ask for none."""
        return self.noises or (NoiseSettings(),)


def finetune(
    recipe: FinetuneRecipe,
    *,
    out: Path | None = None,
    force: bool = False,
    resume: bool = False,
    progress: Progress | None = None,
    on_verdict: Callable[[Verdict], None] | None = None,
) -> Tuned:
    """Train a model further on new images among old ones; measure both before and after, on images held out.

    A bundle is tuned as it was deployed, pruned, from the weights in it; then it is quantized anew, on new and old
    images, exported for its target, and judged on golden tiles of both.

    Args:
        recipe: what and how.
        out: the run's folder, "runs/NAME-tuned"; a new bundle is written into it, too.
        force: start over where `out` holds a run. resume: go on with it.
        progress: told how far each stage is.
        on_verdict: told the verdict on the new bundle.
    Raises: BundleError: the bundle cannot be read, or holds no weights. OutputExistsError. What `fit` and `compress`
        raise.
    """
    start = _start(recipe)
    if start.failed and first():
        _log.warning(
            "%s failed its verdict (`edgekit check` says why): the reference of the new one is the tuned network in "
            "FP32, so that it says nothing of what was lost before",
            recipe.model,
        )
    folder = _default_folder(start, recipe) if out is None else out
    if (own := _source(recipe)) is not None and own.resolve().parent == folder.resolve():
        raise RecipeError(f"{own} lies in {folder}, where the new run would replace it: name another folder (--out)")
    check_out_folder(folder)
    existing = [folder / name for name in _OURS if (folder / name).exists()]
    if existing and not (resume or force):
        raise OutputExistsError(
            f"{folder} already holds a run ({existing[0].name}): go on with it (--resume), start over (--force), or "
            "name another folder"
        )
    if recipe.license_clean:
        parts = {"weights": (recipe.weights or recipe.model, start.terms)}
        parts["data"] = (str(recipe.data), licences.of_images(recipe.data))
        licences.check_clean(parts)
        if recipe.replay_share:
            licences.check_clean({"data": (str(recipe.replay or "built-in"), licences.of_images(recipe.replay))})
    if resume and not force:
        _check_same(folder / RECIPE, recipe)
    if start.recipe is not None and not resume:
        writer.check_free(pipeline.bundle_folder(start.name, start.recipe.target, folder), force)
    if not recipe.replay_share or is_paired(recipe.replay):
        names = " and ".join(n.model for n in start.noises)
        if names or not recipe.replay_share:
            _log.warning("not shown again, and so forgotten: %s noise", names or "the pairs' own")
    settings: TrainSettings = recipe.train
    told = progress or silent
    told("images", 0, 1)
    again = None if start.recipe is None else _again(start, start.recipe, recipe, folder / WEIGHTS)
    new, old, images = _images(recipe, start, again)
    told("images", 1, 1)
    judged = {"new": (new, (settings.noise,)), "old": (old, start.noises)}
    before = {which: _scores(start.model, *where) for which, where in judged.items()}
    if force and not resume:
        for path in existing:
            path.unlink(missing_ok=True)
    text = yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False)
    model = fit(
        start.model,
        new,
        settings,
        folder,
        replay=Replay(old, start.drawn, recipe.replay_share) if recipe.replay_share else None,
        progress=lambda done, total, words="": told("finetune", done, total, words),
        identity={"starting weights": weights_digest(start.model)},
        on_start=lambda: write_atomically(folder / RECIPE, text.encode()),
    )
    path = folder / WEIGHTS
    if not first():
        return Tuned(model, path, (), first=False)
    after = {which: _scores(model, *where) for which, where in judged.items()}
    table = tuple(Change(w, noise, db, after[w][noise]) for w, found in before.items() for noise, db in found.items())
    shown = (new, old) if recipe.replay_share else (new,)
    made_of = (start.terms, *(Terms(source.licence, source.use) for source in shown))
    header = licences.header(made_of, (start.terms.trained_on, *(source.name for source in shown)))
    known = _known_after(start, recipe)
    header |= noise_header.write(known[0] if known else NoiseSettings(), known)
    models.save(path, model, header)
    content = {"model": recipe.model, "replay_share": recipe.replay_share, "psnr": [row._asdict() for row in table]}
    write_atomically(folder / TABLE, (json.dumps(content, indent=1) + "\n").encode())
    bundle: Bundle | None = None
    if again is not None and images is not None:
        nameless = ["the pairs' own"] if new.paired or (old.paired and recipe.replay_share) else []
        facts = {
            "data": recipe.data.name, "replay": old.name, "replay_share": recipe.replay_share,
            "noises": nameless + [noise.model for noise in known],
        }  # fmt: skip
        if resume and not force and (kept := _kept(again, folder)) is not None:
            if on_verdict is not None:
                on_verdict(recorded(kept))
            return Tuned(model, path, table, kept)
        given = Given(model, images, {"finetune": {**facts, "train": settings.model_dump(mode="json")}}, known)
        (bundle,) = pipeline.compress(
            again, out=folder, force=force, resume=resume, progress=told, on_verdict=on_verdict, given=given
        )
    return Tuned(model, path, table, bundle)


def _check_same(path: Path, recipe: FinetuneRecipe) -> None:
    """What `fit`, which compares the training, does not see. Raises: RecipeError: the run makes another bundle."""
    if not path.exists():
        return
    begun = yaml.safe_load(path.read_text(encoding="utf-8")).get("quantization")
    now = recipe.model_dump(mode="json")["quantization"]
    if begun != now:
        raise RecipeError(
            f"{path.parent} holds a run with another quantization: {json.dumps(begun)}, now {json.dumps(now)}; "
            "resume it with the same settings, or add --force, which keeps the training and quantizes anew"
        )


def _kept(again: Recipe, folder: Path) -> Bundle | None:
    """The new bundle, if a run that is resumed had finished it: nothing of that is left to resume."""
    destination = pipeline.bundle_folder(again.model, again.target, folder)
    if not destination.exists() or pipeline.work_folder(again.model, again.target, folder).exists():
        return None
    _log.warning("%s was finished and is as it was; --force with --resume quantizes anew", destination)
    return reader.read(destination)


def _source(recipe: FinetuneRecipe) -> Path | None:
    """The file that is tuned; None if it ships."""
    return next((Path(name) for name in (recipe.weights, recipe.model) if name and Path(name).exists()), None)


def _default_folder(start: _Start, recipe: FinetuneRecipe) -> Path:
    """`runs/NAME-tuned`; of what lies in such a folder, `-tuned-2` and so on: each tuning has a folder of its own."""
    own, name = _source(recipe), f"{start.name}-tuned"
    above = "" if own is None else own.resolve().parent.name
    found = re.fullmatch(rf"{re.escape(name)}(?:-(\d+))?", above)
    return Path("runs", name if found is None else f"{name}-{int(found[1] or 1) + 1}")


def _start(recipe: FinetuneRecipe) -> _Start:
    """The model to tune, from a bundle, or by name; names come first."""
    source = Path(recipe.model)
    named = recipe.model in models.names() or recipe.model in checkpoints.shipped()
    if not (named or source.exists() or source.suffix in (*reader.SUFFIXES, *checkpoints.SUFFIXES)):
        known = ["a bundle (.edgekit, .zip)", "a weight file", *models.names(), *checkpoints.shipped()]
        raise UnknownNameError.unknown("bundle or model", recipe.model, set(known))
    if named or not (source.exists() or source.suffix in reader.SUFFIXES):
        name = recipe.weights or recipe.model
        if recipe.weights is None and recipe.model in models.names() and recipe.model not in checkpoints.shipped():
            raise RecipeError(f"{recipe.model} comes without weights: name the file to go on from, --weights FILE")
        model = checkpoints.load(name, None if checkpoints.says_model(name) else recipe.model)
        if (owner := checkpoints.preset(recipe.model)) in models.names():
            pipeline.check_fits(model, owner, str(name))
        return _Start(model, Path(recipe.model).stem, licences.of_weights(name), _replayed(recipe, name, name))
    if recipe.weights is not None:
        raise RecipeError(f"weights {recipe.weights!r}: {source} brings its own; leave --weights out")
    if source.suffix in (".pth", ".pt", ".ckpt"):
        raise RecipeError(
            f"{source} does not say which model it is of: edgekit finetune MODEL --weights {source}, "
            "MODEL being a name that `edgekit models` lists"
        )
    if source.suffix == ".safetensors":
        model = checkpoints.load(source)
        return _Start(model, source.stem, licences.of_weights(source), _replayed(recipe, source, source))
    with reader.read(source) as bundle:
        manifest = bundle.manifest
        if pipeline.WEIGHTS not in manifest.files:
            raise BundleError(
                f"{source} holds no {pipeline.WEIGHTS} to go on from: compress it again with this edgekit, or tune the "
                "model that it was made from (edgekit finetune MODEL --weights FILE) and compress that"
            )
        weights = bundle.path(pipeline.WEIGHTS)
        model, terms = checkpoints.load(weights), licences.of_weights(weights)
        fields = {name: value for name, value in manifest.recipe.items() if name in Recipe.model_fields}
        made = make(Recipe, fields, str(source))
        noises = _replayed(recipe, source, weights, made)
        return _Start(model, manifest.name, terms, noises, made, failed=not recorded(bundle).passed)


def _replayed(
    recipe: FinetuneRecipe, source: str | Path, weights: str | Path, made: Recipe | None = None
) -> tuple[NoiseSettings, ...]:
    """The noises of the old images: what the recipe names, or what the weights know, the last first.

    Args:
        source: what is tuned, for messages.
        weights: its weights, whose header may list what they know.
        made: of a bundle, what it was made by: where the list is missing, its noise and levels are what it knows.
    Raises: RecipeError: nobody knows them, or the old images bring their own.
    """
    if recipe.replay_noise and is_paired(recipe.replay):
        raise RecipeError(
            f"replay_noise means nothing to --replay {recipe.replay}, whose pairs bring their own noise: leave one out"
        )
    known = recipe.replay_noise or noise_header.known(weights)
    if known is None and made is not None:
        known = (made.noise.model_copy(update={"sigma": made.sigma}),)
    if known is None:
        known = (noise_header.read(weights) or NoiseSettings(),)
    if known:
        return noise_header.merged(known)
    if recipe.replay_share and not is_paired(recipe.replay):
        raise RecipeError(
            f"{source} learned pairs, whose noise has no name: give --replay with their folder, replay_noise in a "
            "recipe (--recipe), or --replay-share 0 to let it forget"
        )
    return ()


def _known_after(start: _Start, recipe: FinetuneRecipe) -> tuple[NoiseSettings, ...]:
    """What the tuned model knows, the last first: what was not replayed is forgotten, and that of pairs has no name."""
    new = () if is_paired(recipe.data) else (recipe.train.noise,)
    kept = () if is_paired(recipe.replay) or not recipe.replay_share else start.noises
    return noise_header.merged((*new, *kept))


def _again(start: _Start, made: Recipe, recipe: FinetuneRecipe, weights: Path) -> Recipe:
    """The recipe of the new bundle: the old one without what was done to the network already."""
    # Pairs bring a noise without a name: what the bundle's recipe can name is an old one.
    noise = (
        next(iter(_known_after(start, recipe)), recipe.train.noise) if is_paired(recipe.data) else recipe.train.noise
    )
    low, high = _levels(recipe, start.model.channels)
    lows, highs = zip(made.sigma, (low, high), *(n.sigma for n in start.noises if n.model == "gaussian"), strict=True)
    sigma = (min(lows), max(highs))
    _, distillation, quantization = pipeline.settings_of(made)
    if recipe.quantization is not None:
        named = {name: getattr(recipe.quantization, name) for name in recipe.quantization.model_fields_set}
        quantization = quantization.model_copy(update=named)
    changes = {
        "model": start.name, "weights": weights, "teacher": "none", "data": recipe.data, "sigma": sigma, "prune": 0.0,
        "noise": noise.model_copy(update={"sigma": sigma, "device_share": 1.0}), "steps": None,
        "distillation": distillation.model_copy(update={"steps": 0}), "quantization": quantization,
        "pruning": made.pruning.model_copy(update={"ratio": 0.25}), "license_clean": recipe.license_clean,
    }  # fmt: skip
    return made.model_copy(update=changes)


def _levels(recipe: FinetuneRecipe, channels: int) -> tuple[float, float]:
    """The levels of the new noise in 8-bit units: as told of Gaussian noise, else as found in some batches."""
    settings = recipe.train
    if settings.noise.model == "gaussian" and not is_paired(recipe.data):
        return settings.noise.sigma
    source = open_images(recipe.data, channels=channels, patch=settings.patch, seed=settings.seed)
    draw = Sampler(source, settings)
    found = 255 * torch.cat([draw(step).sigma for step in range(_LOOKS)])
    return float(found.min().floor()), float(found.max().ceil().clamp(max=255))


def _images(
    recipe: FinetuneRecipe, start: _Start, again: Recipe | None
) -> tuple[ImageSource, ImageSource, StageData | None]:
    """New and old images, and where a bundle is to be made, what its stages draw from: both in one."""
    channels, settings = start.model.channels, recipe.train
    if again is None:
        options: dict[str, Any] = {"channels": channels, "patch": settings.patch, "seed": settings.seed}
        options["leaves"] = settings.leaves
        share = settings.validation_share
        if not share:
            raise RecipeError(
                "validation_share is 0: finetune measures before and after on images held out; set it above 0, "
                "e.g. 0.02"
            )
        new = open_images(recipe.data, validation_share=share, **options)
        return new, open_images(recipe.replay, validation_share=share, **options), None
    # One division of the images for training, quantization and the verdict.
    stage = again.distillation.model_copy(update={"patch": settings.patch})
    fresh = again.model_copy(update={"distillation": stage})
    seen = [noise.model_copy(update={"device_share": 1.0}) for noise in start.drawn]
    known = [fresh.model_copy(update={"data": recipe.replay, "noise": n, "sigma": n.sigma}) for n in seen]
    if is_paired(recipe.replay):
        # One noise, of whatever levels.
        known = [fresh.model_copy(update={"data": recipe.replay})]
    new_data, first_old = open_stage_data(fresh, channels), open_stage_data(known[0], channels)
    others = (first_old, *(open_stage_data(more, channels, first_old.source) for more in known[1:]))
    # What is not shown again is forgotten, and the bundle is not for it.
    every = (new_data, *others) if recipe.replay_share else (new_data,)
    drawing = TrainSettings(
        batch=stage.batch,
        patch=stage.patch,
        seed=again.seed,
        noise=settings.noise.model_copy(update={"device_share": 1.0}),
    )
    replayed = Replay(first_old.source, tuple(seen[: len(known)]), recipe.replay_share)
    terms = licences.combine(*(Terms(data.licence, data.use) for data in every))
    joined = replace(
        new_data,
        batches=Mixed(new_data.source, drawing, replayed),
        tiles=_join([_noisy(data.tiles, data.sigmas) for data in every]),
        golden=GoldenImages(*map(np.concatenate, zip(*(_fields(data.golden) for data in every), strict=True))),
        digest=" ".join(data.digest for data in every),
        licence=terms.licence,
        use=terms.use,
        skipped=(*new_data.skipped, *first_old.skipped),
    )
    return new_data.source, first_old.source, joined


def _fields(golden: GoldenImages) -> tuple[Any, ...]:
    return golden.noisy, golden.clean, golden.sigma


def _join(parts: Sequence[NoisyTiles]) -> NoisyTiles:
    return NoisyTiles(*map(np.concatenate, zip(*parts, strict=True)))


def _noisy(tiles: Tiles, levels: tuple[float, ...]) -> NoisyTiles:
    """Tiles with their noise; Gaussian noise of every level where they have none."""
    if isinstance(tiles, NoisyTiles):
        return tiles
    return NoisyTiles(
        np.concatenate([tiles] * len(levels)),
        np.concatenate([noisy_tiles(tiles, level) for level in levels]),
        np.repeat(np.array(levels, np.float32), len(tiles)),
    )


def _scores(model: DenoiserModel, source: ImageSource, noises: Sequence[NoiseSettings]) -> dict[str, float]:
    """PSNR in dB on the held-out images, by what each noise is called."""
    found: dict[str, float] = {}
    for noise in (*noises, NoiseSettings())[:1] if source.paired else noises:
        if not source.paired and noise.model == "gaussian":
            for level in validation_levels(noise):
                found[f"sigma {level:g}"] = round(evaluate(model, source.held_out, level).psnr, 3)
            continue
        name = "its own" if source.paired else noise.model
        # Two noises of one model are told apart by number, the one learned last first.
        same = sum(label.split(" (")[0] == name for label in found)
        label = f"{name} ({same + 1})" if same else name
        found[label] = round(evaluate(model, source.held_out, noise_settings=noise).psnr, 3)
    return found
