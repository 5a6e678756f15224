"""Width search: the student that denoises best within a latency budget measured on this machine (Optuna).

A candidate is first exported with random weights and timed, for a time does not depend on weights. If it is within the
budget, it is trained for a while, quantized by calibration, and scored by the dB of the INT8 program on held-out tiles.
What a candidate may be is `SPACE`.
"""

from __future__ import annotations

import logging
import math
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from edgekit._version import __version__
from edgekit.compress.quantize import quantize
from edgekit.errors import MissingExtraError, OutputExistsError, RecipeError, TrainingError
from edgekit.models import DenoiserModel, create, licences
from edgekit.models.checkpoints import write_atomically
from edgekit.pipeline import Progress, check_tile, silent
from edgekit.recipe import QuantizeSettings, Recipe, SearchRecipe
from edgekit.search import recipe_file
from edgekit.search.storage import open_study
from edgekit.search.yardstick import MODEL, Yardstick
from edgekit.stage_data import StageData, open_stage_data
from edgekit.targets import registry as targets
from edgekit.targets.base import Target
from edgekit.train.loop import fit

if TYPE_CHECKING:
    import optuna

_log = logging.getLogger(__name__)

# What is chosen, from where to where and in which steps: the student's widths, and how many blocks its middle has.
SPACE = {
    "width": (16, 64, 8),
    "middle_width": (24, 96, 8),
    "blocks": (1, 8, 1),
    "hidden": (32, 256, 16),
    "up_width": (8, 48, 8),
    "finish": (16, 128, 16),
}
# Tried first: the shipped shape, and a small one that fits most budgets.
_FIRST = (
    {"width": 32, "middle_width": 56, "blocks": 4, "hidden": 160, "up_width": 24, "finish": 64},
    {"width": 16, "middle_width": 32, "blocks": 3, "hidden": 64, "up_width": 8, "finish": 32},
)
# So many candidates in a row that cannot be trained are no accident.
_MOST_FAILURES = 3
# What a trial holds beside its shape.
_MS, _DB, _MACHINE = "ms_per_megapixel", "psnr", "machine"


@dataclass(frozen=True)
class Candidate:
    """A shape that was tried.

    Attributes:
        shape: values of `SPACE`.
        ms_per_megapixel: of the INT8 file on its machine, per megapixel of useful pixels.
        psnr: dB of the INT8 program on held-out tiles by noise level, after the search's short training; None where the
            candidate was over the budget and not trained.
        machine: where it was measured.
    """

    shape: dict[str, int]
    ms_per_megapixel: float
    psnr: dict[str, float] | None
    machine: str

    @property
    def mean(self) -> float:
        """Mean dB over the noise levels; -inf where it was not trained."""
        return -math.inf if self.psnr is None else sum(self.psnr.values()) / len(self.psnr)


@dataclass(frozen=True)
class Search:
    """What a search found.

    Attributes:
        candidates: all that the study holds, other machines' too, in the order they were begun.
        best: within the budget, the one with the most dB.
        recipe: the file for `edgekit train --recipe`.
    """

    candidates: tuple[Candidate, ...]
    best: Candidate
    recipe: Path


def configuration(shape: Mapping[str, int]) -> dict[str, Any]:
    """The constructor arguments of a shape."""
    return {
        "widths": [shape["width"], shape["middle_width"]],
        "encoder": [[]],
        "middle": [shape["hidden"]] * shape["blocks"],
        "decoder": [[]],
        "up_width": shape["up_width"],
        "finish": shape["finish"],
        "sigma_level": 1,
    }


def search(recipe: SearchRecipe, *, out: Path, progress: Progress | None = None) -> Search:
    """Search for a student within a latency budget, and write the recipe that trains the best one found.

    A study lives in `recipe.storage`: run again, the same command goes on; run on several machines with one storage
    (a file on a shared disk, or a database's URL), they work on one study together. What they have begun when the last
    candidate is done is finished, too.

    Args:
        recipe: budget, target, images, how many candidates, how long each is trained.
        out: the recipe file to write.
        progress: told how far it is.
    Raises:
        LicenceError: `license_clean` is set, and the images are not free for any use.
        RecipeError: no candidate is within the budget; the storage holds a search with other settings; a tile that the
            deepest candidate does not fit. OutputExistsError: `out` is not what a search wrote. CheckpointError: the
            storage cannot be opened, or holds something else. TrainingError: several candidates in a row gave NaN.
            Else what `compress` raises about a target, and `train` about images and settings.
    """
    optuna = _optuna()
    target = targets.get(recipe.target)
    if (missing := target.available()) is not None:
        raise MissingExtraError.needs(f"--target {target.name}", missing, target.extra)
    deepest = configuration({name: high if name == "blocks" else low for name, (low, high, _) in SPACE.items()})
    try:
        check_tile(recipe.tile, create(MODEL, channels=recipe.channels, **deepest))
    except RecipeError as error:
        raise RecipeError(f"{error}; so the deepest candidate, of {SPACE['blocks'][1]} blocks") from None
    storage = recipe.storage or str(out.with_suffix(".search"))
    if Path(storage).absolute() == out.absolute():
        raise RecipeError(f"--storage and --out are both {out}: name two files")
    if out.exists() and not recipe_file.is_ours(out.read_text(encoding="utf-8", errors="replace")):
        raise OutputExistsError(f"{out} exists, and is not as a search wrote it: name another file with --out")
    if recipe.license_clean:
        licences.check_clean({"data": (str(recipe.data or "built-in"), licences.of_images(recipe.data))})
    images = _images(recipe)
    study = open_study(optuna, recipe, storage, {**recipe.identity(), "images": images.digest, "edgekit": __version__})
    _enqueue(study, optuna)
    told = progress or silent
    done = (optuna.trial.TrialState.COMPLETE, optuna.trial.TrialState.PRUNED)
    with Yardstick(target, recipe, images.golden.noisy[0], study) as yardstick:
        work = _Work(recipe, target, images, yardstick, told)
        while (count := len(study.get_trials(deepcopy=False, states=done))) < recipe.trials:
            told("search", count, recipe.trials, _standing(study, optuna))
            study.optimize(work.objective, n_trials=1)
    told("search", recipe.trials, recipe.trials, _standing(study, optuna))
    found = tuple(
        Candidate(dict(trial.params), trial.user_attrs[_MS], trial.user_attrs.get(_DB), trial.user_attrs[_MACHINE])
        for trial in study.get_trials(deepcopy=False, states=done)
    )
    best = max(found, key=lambda candidate: candidate.mean)
    if best.psnr is None:
        fastest = min(found, key=lambda candidate: candidate.ms_per_megapixel)
        raise RecipeError(
            f"budget {recipe.budget:g} ms/MP: none of {len(found)} candidates is within it, the fastest takes "
            f"{fastest.ms_per_megapixel:.1f}; try more (--trials; the study goes on), or raise "
            f"--budget"
        )
    levels = ", ".join(f"sigma {level} {db:.2f}" for level, db in best.psnr.items())
    about = (
        f"Best of {len(found)} candidates for {recipe.target} within {recipe.budget:g} ms/MP: "
        f"{best.ms_per_megapixel:.1f} with {recipe.threads} thread(s) on {best.machine}; {levels} dB after "
        f"{recipe.steps} steps."
    )
    write_atomically(out, recipe_file.text(recipe, configuration(best.shape), about, out).encode())
    return Search(found, best, out)


def _optuna() -> Any:
    try:
        import optuna
    except ModuleNotFoundError as error:
        raise MissingExtraError.needs("search", error.name or "optuna", "search") from None
    # Its lines and tracebacks would run through the progress bar; what matters is told here.
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    return optuna


def _images(recipe: SearchRecipe) -> StageData:
    """One division of the images for training, calibration and scores."""
    settings = recipe.train
    return open_stage_data(
        Recipe.model_validate(
            {
                "target": recipe.target,
                "data": recipe.data,
                "sigma": settings.noise.sigma,
                # Scores are on what a device sees.
                "noise": settings.noise.model_copy(update={"device_share": 1.0}),
                "seed": recipe.seed,
                "distillation": {"patch": settings.patch, "batch": settings.batch},
            }
        ),
        recipe.channels,
    )


def _enqueue(study: optuna.Study, optuna: Any) -> None:
    """Put the first shapes in front, unless they are waiting or done; one that was interrupted is tried again."""
    state = optuna.trial.TrialState
    known = study.get_trials(deepcopy=False, states=(state.COMPLETE, state.PRUNED))
    waiting = study.get_trials(deepcopy=False, states=(state.WAITING,))
    shapes = [t.params for t in known] + [t.system_attrs.get("fixed_params") for t in waiting]
    for shape in _FIRST:
        if shape not in shapes:
            study.enqueue_trial(shape)


def _standing(study: optuna.Study, optuna: Any) -> str:
    done = study.get_trials(deepcopy=False, states=(optuna.trial.TrialState.COMPLETE,))
    values = [trial.value for trial in done if trial.value is not None]
    return f"best {max(values):.2f} dB" if values else ""


@dataclass
class _Work:
    """Everything that a candidate is tried with."""

    recipe: SearchRecipe
    target: Target
    images: StageData
    yardstick: Yardstick
    progress: Progress
    failures: int = 0

    def objective(self, trial: optuna.Trial) -> float:
        """Mean dB of a candidate; one over the budget is pruned, and the sampler is told by how much it missed."""
        import optuna

        shape = {name: trial.suggest_int(name, low, high, step=step) for name, (low, high, step) in SPACE.items()}
        config = configuration(shape)
        earlier = self._earlier(trial, shape)
        told: Mapping[str, Any] = (
            {_MACHINE: self.yardstick.machine, _MS: round(self.yardstick.time(config), 2)}
            if earlier is None
            else earlier.user_attrs
        )
        for key, value in told.items():
            trial.set_user_attr(key, value)
        trial.set_constraint(_MS, told[_MS] - self.recipe.budget)
        if told[_MS] > self.recipe.budget:
            raise optuna.TrialPruned(f"{told[_MS]:.1f} ms/MP")
        if earlier is not None:
            return float(earlier.values[0])
        try:
            psnr = self._train(config)
        except TrainingError as error:
            self.failures += 1
            if self.failures >= _MOST_FAILURES:
                raise
            _log.warning("a candidate is left out: %s", error)
            return math.nan  # fails the trial, which is not counted
        self.failures = 0
        trial.set_user_attr(_DB, {f"{level:g}": round(db, 3) for level, db in psnr.items()})
        return sum(psnr.values()) / len(psnr)

    @staticmethod
    def _earlier(trial: optuna.Trial, shape: Mapping[str, int]) -> optuna.trial.FrozenTrial | None:
        """A finished trial of the same shape: samplers may draw one twice."""
        import optuna

        done = (optuna.trial.TrialState.COMPLETE, optuna.trial.TrialState.PRUNED)
        known = trial.study.get_trials(deepcopy=False, states=done)
        return next((t for t in known if t.params == shape and _MS in t.user_attrs), None)

    def _train(self, config: Mapping[str, Any]) -> dict[float, float]:
        """Train a candidate for the search's steps and quantize it by calibration; dB by noise level."""
        torch.manual_seed(self.recipe.seed)
        model: DenoiserModel = create(MODEL, channels=self.recipe.channels, **config)
        settings = self.recipe.train.model_copy(
            update={
                "steps": self.recipe.steps,
                "seed": self.recipe.seed,
                "save_every": self.recipe.steps,
                "patience": 0,
                "tensorboard": False,
            }
        )
        # Nothing held out: whole images would be validated on, at the price of as many steps.
        source = replace(self.images.source, held_out=())
        with tempfile.TemporaryDirectory() as folder:
            trained = fit(model, source, settings, Path(folder), progress=partial(self.progress, "candidate"))
        low, high = settings.noise.sigma
        _, record = quantize(
            trained,
            self.target.scheme(),
            QuantizeSettings(steps=0),
            self.images.batches,
            self.images.tiles,
            sigma_range=(low / 255, high / 255),
            sigmas=self.images.sigmas,
        )
        if any(math.isnan(db) for db in record.db_after.values()):
            raise TrainingError(f"search: {config} gives NaN: lower train.learning_rate in the recipe")
        return dict(record.db_after)
