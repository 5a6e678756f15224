"""How long shapes of a student take on this machine, timed in turns with one fixed shape."""

from __future__ import annotations

import logging
import os
import platform
import socket
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from edgekit.batch import Batch
from edgekit.bundle.manifest import Manifest, Thresholds
from edgekit.compress.quantize import quantize
from edgekit.errors import RecipeError
from edgekit.models import DenoiserModel, create
from edgekit.pipeline import model_facts, open_files
from edgekit.recipe import QuantizeSettings, SearchRecipe
from edgekit.runtime.one_tile import fill
from edgekit.runtime.turns import in_turns
from edgekit.targets.base import Target

if TYPE_CHECKING:
    import optuna

_log = logging.getLogger(__name__)

# The preset whose shape is the fixed one, and whose arguments candidates replace.
MODEL = "dsunet-s"
# Timed runs: of the fixed shape alone, and of a candidate and the fixed shape in turns.
_ALONE, _RUNS, _WARM_UP = 30, 9, 2
_SIGMA = 25.0
# Load of a machine that does nothing but start this search.
_IDLE = 1.2


class Yardstick:
    """Times candidates against a fixed network, so that times hold on a machine that is shared.

    A candidate's time is its ratio to the fixed network in the same turns, times what the fixed network took here at
    its fastest. That is measured once a machine and kept in the study: all times of a machine are in one unit.

    Args:
        target: what is exported to.
        recipe: tile, threads, channels.
        image: what is denoised, uint8 [H, W, C]; repeated to fill a tile.
        study: keeps the fixed network's time.

    Attributes:
        machine: what it is called in the study.
    """

    def __init__(self, target: Target, recipe: SearchRecipe, image: NDArray[np.uint8], study: optuna.Study) -> None:
        self.machine = f"{socket.gethostname()} ({platform.machine()})"
        self._target = target
        self._recipe = recipe
        self._image = image
        self._study = study
        self._stack = ExitStack()

    def __enter__(self) -> Yardstick:
        self._run, pixels = self._stack.enter_context(self._opened({}))
        key = f"fixed shape, seconds a pixel, {self.machine}"
        if key not in self._study.user_attrs:
            load = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
            if load > _IDLE:
                _log.warning("the machine is busy (load %.1f): all times of this study will be too long", load)
            (times,) = in_turns([self._run], _ALONE, 60.0, _WARM_UP)
            self._study.set_user_attr(key, float(times.min()) / pixels)
        self._unit: float = self._study.user_attrs[key]
        self._pixels = pixels
        return self

    def __exit__(self, *problem: object) -> None:
        self._stack.close()

    def time(self, config: Mapping[str, Any]) -> float:
        """Milliseconds per megapixel of useful pixels of the INT8 file of a shape: constructor arguments.

        Weights are random: no kernel's time depends on them.
        """
        with self._opened(config) as (run, pixels):
            ours, fixed = (float(times.min()) for times in in_turns([run, self._run], _RUNS, 60.0, _WARM_UP))
        # Shapes of other depth have other halos, and so other numbers of useful pixels a tile.
        return 1e9 * (ours / pixels) / (fixed / self._pixels) * self._unit

    @contextmanager
    def _opened(self, config: Mapping[str, Any]) -> Iterator[tuple[Callable[[], object], int]]:
        """A shape's INT8 file in the runtime: a function that runs one tile, and how many pixels of it are useful."""
        model = _random(create(MODEL, **config, channels=self._recipe.channels))
        with tempfile.TemporaryDirectory() as name:
            manifest = self._export(model, Path(name))
            if manifest.variants[0].made_for:
                raise RecipeError(
                    f"target {self._target.name}: {manifest.variants[0].made_for} does not run here, and what stands "
                    "in for it tells nothing of its speed; search with --target tflite or openvino"
                )
            image = fill(manifest, self._image)
            with open_files(manifest, Path(name), threads=self._recipe.threads) as denoiser:
                yield lambda: denoiser(image, sigma=_SIGMA), image.shape[0] * image.shape[1]

    def _export(self, model: DenoiserModel, folder: Path) -> Manifest:
        generator = torch.Generator().manual_seed(0)
        side = 8 * model.stride
        # Any image will do: ranges decide values, not times.
        clean = torch.rand(1, model.channels, side, side, generator=generator)
        batch = Batch(clean=clean, noisy=clean, sigma=torch.full((1,), _SIGMA / 255))
        program, _ = quantize(
            model,
            self._target.scheme(),
            QuantizeSettings(steps=0, calibration_batches=1, range_fit="least-squares"),
            lambda step: batch,
            np.zeros((1, side, side, model.channels), np.uint8),
            sigma_range=(0.0, 55 / 255),
            sigmas=(_SIGMA,),
        )
        lowered = self._target.lower(model, program, folder, name="candidate", tile=self._recipe.tile, precision="int8")
        return Manifest(
            name="candidate",
            target=self._target.name,
            precision="int8",
            default_variant=lowered.variants[0].name,
            variants=lowered.variants,
            model=model_facts(model, model),
            tile=self._recipe.tile,
            sigma=(0.0, 55.0),
            thresholds=Thresholds(max_drop=1.0),
            layers=lowered.layers,
        )


def _random(model: DenoiserModel) -> DenoiserModel:
    """Random weights everywhere: fresh residual branches end in zeros, whose ranges would have no width."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(0.1 * torch.randn(parameter.shape, generator=generator))
    return model.eval()
