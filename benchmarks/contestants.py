"""The models that are measured, and where their weights lie."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.console import say
from benchmarks.sets import SHARED
from edgekit.bundle.reader import sha256
from edgekit.errors import CheckpointError, RecipeError, UnknownNameError
from edgekit.models import DenoiserModel, checkpoints

STUDENT, TEACHER = "dsunet-s", "dsunet-l"
# Others that ship, measured in float here; what integers cost them: `benchmarks.int8`.
OTHERS = ("dsunet-n", "dsunet-s-free", "dsunet-m", "dsunet-s-gray")
# Shipped for camera noise, and measured on that by `benchmarks.real`; on white noise, too, to show what that costs.
CAMERA = "dsunet-s-camera"
# Networks of others, with the weights their authors published: file names in ../shared/weights/kair.
PEERS = {
    "ffdnet-color": "ffdnet_color.pth",
    "dncnn-color-blind": "dncnn_color_blind.pth",
    "dncnn-25": "dncnn_25.pth",
}
NAMES = (STUDENT, *OTHERS, CAMERA, TEACHER, *PEERS)
# Noise levels of a network that was trained for few of them.
ONLY = {"dncnn-25": (25,)}


@dataclass(frozen=True)
class Contestant:
    """A float model with its weights.

    Attributes:
        name: one of `NAMES`.
        path: the weight file.
        sha256: of the weight file.
        model: in evaluation mode.
    """

    name: str
    path: Path
    sha256: str
    model: DenoiserModel

    def facts(self) -> dict[str, object]:
        """What the results say of it."""
        return {
            "name": self.name,
            "sha256": self.sha256,
            "macs_per_pixel": round(self.model.macs_per_pixel(), 1),
            "parameters": self.model.parameter_count(),
            "halo": self.model.halo,
        }


def weights_of(texts: Sequence[str]) -> dict[str, Path]:
    """Read the values of --weights, NAME=FILE each.

    Raises: RecipeError: another form; UnknownNameError: no such model.
    """
    found = {}
    for text in texts:
        name, equals, file = text.partition("=")
        if not equals or not file:
            raise RecipeError(f"--weights {text!r}: expected NAME=FILE, e.g. {STUDENT}=runs/last.safetensors")
        check_names([name])
        found[name] = Path(file)
    return found


def measured(asked: Sequence[str] | None, names: Sequence[str], weights: Mapping[str, Path]) -> list[str]:
    """The models to measure: those asked for, or else of `names` those that have weights.

    Raises: UnknownNameError: asked for a name that is not one of `NAMES`.
    """
    if asked:
        check_names(asked)
        return list(asked)
    have = {*PEERS, *weights, *checkpoints.shipped()}
    for name in names:
        if name not in have:
            say(f"{name} is left out: it ships without weights")
    return [name for name in names if name in have]


def check_names(names: Sequence[str]) -> None:
    """Raises: UnknownNameError: a name that is not one of `NAMES`."""
    for name in names:
        if name not in NAMES:
            raise UnknownNameError.unknown("model", name, NAMES)


def load(name: str, *, weights: Mapping[str, Path], kair: Path = SHARED / "weights" / "kair") -> Contestant:
    """Load a model.

    Args:
        name: one of `NAMES`.
        weights: files to take instead of the shipped ones, by name.
        kair: folder of the published weights.
    Raises: CheckpointError, UnknownNameError: no such weights, or they do not fit.
    """
    path = weights.get(name)
    if path is None and name in PEERS:
        path = kair / PEERS[name]
        if not path.is_file():
            raise CheckpointError(
                f"no weights at {path}: put the published ones at ../shared/weights/kair beside the repository, name "
                "their folder with --kair, or leave the model out with --models"
            )
    if path is None:
        shipped = checkpoints.shipped()
        if name not in shipped:
            raise UnknownNameError.unknown("weights", name, shipped)
        path = shipped[name]
    model = checkpoints.load(path, name if path.suffix != ".safetensors" else None)
    return Contestant(name, path, sha256(path), model)
