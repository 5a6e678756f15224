"""The recipe for `edgekit compress` that a noise profile proposes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from edgekit._version import __version__
from edgekit.profile.folder import IsoProfile
from edgekit.recipe import Recipe

# Levels are drawn from a range somewhat wider than what was measured: other scenes, other temperatures.
_WIDER = 1.5
# Correlated noise: the weights that know it, and what they learned (edgekit/models/weights/dsunet-s-camera.yaml).
CAMERA_MODEL = "dsunet-s-camera"
CAMERA_NOISE: dict[str, Any] = {
    "model": "camera",
    "grain": [0.0, 2.0],
    "chroma_grain": [0.0, 3.0],
    "jpeg_share": 0.5,
    "quality": [75, 98],
    "level": "auto",
}
# Variance per unit of signal that a recipe takes at least.
_LEAST_SHOT = 1e-6


def correlated(profiles: Sequence[IsoProfile]) -> bool:
    """Whether the noise of at least half of the images is of ISOs where it is correlated between neighbours."""
    return 2 * sum(p.images for p in profiles if p.correlated) >= sum(p.images for p in profiles)


def basis(profiles: Sequence[IsoProfile]) -> list[IsoProfile]:
    """Those that the recipe is made from: what is of the other kind would only mislead."""
    camera = correlated(profiles)
    return [p for p in profiles if p.correlated == camera]


def _stored(profiles: Sequence[IsoProfile]) -> dict[str, Any]:
    """JPEG as the images have it: their share, and from the coarsest to the finest; nothing where none is a JPEG, for
    other files may have been one before."""
    qualities = [quality for p in profiles for quality in p.qualities]
    if not qualities:
        return {}
    share = len(qualities) / sum(p.images for p in profiles)
    return {"jpeg_share": round(share, 2), "quality": [min(qualities), max(qualities)]}


def text(profiles: Sequence[IsoProfile], source: str, target: str) -> str:
    """The file's text.

    White noise is named by its shot and read noise as they were measured. Where most images' noise is correlated these
    were read too low, as levels are: the camera model takes their place, with the ranges that the weights for
    photographs were trained on, and the levels are left to the recipe's default unless one is
    beyond it. Only JPEG, which the files tell, is taken from the images.

    Args:
        profiles: at least one.
        source: what the images are called.
        target: what to export for.
    """
    import yaml

    camera, profiles = correlated(profiles), basis(profiles)
    shots = [p.line.shot for p in profiles]
    reads = [p.line.read for p in profiles]
    noise: dict[str, Any] = {"model": "poisson-gaussian"}
    if camera:
        noise = {**CAMERA_NOISE, **_stored(profiles)}
    else:
        noise["shot"] = [
            max(_LEAST_SHOT, round(min(shots) / _WIDER, 8)),
            min(1.0, max(_LEAST_SHOT, round(max(shots) * _WIDER, 8))),
        ]
        noise["read"] = [round(min(reads) / _WIDER, 2), min(255.0, round(max(reads) * _WIDER, 2))]
    levels = [round(p.sigma, 2) for p in profiles]
    content: dict[str, Any] = {"target": target}
    if camera:
        content["model"] = CAMERA_MODEL
    if not camera or max(levels) > Recipe.model_fields["sigma"].default[1]:
        content["sigma"] = [0.0, min(255.0, round(max(levels) * _WIDER + 1, 1))]
    content["noise"] = noise
    table = {p.iso: level for p, level in zip(profiles, levels, strict=True) if p.iso is not None}
    if table:
        content["iso_sigma"] = table
    lines = [
        f"# edgekit {__version__} profile of {source}",
        "# edgekit compress --recipe THIS_FILE --data CLEAN_IMAGES",
    ]
    body: str = yaml.safe_dump(content, sort_keys=False, default_flow_style=None)
    return "\n".join([*lines, body])
