"""The recipe for `edgekit compress` that a noise profile proposes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from edgekit._version import __version__
from edgekit.profile.folder import IsoProfile

# Levels are drawn from a range somewhat wider than what was measured: other scenes, other temperatures.
_WIDER = 1.5
# Variance per unit of signal that a recipe takes at least.
_LEAST_SHOT = 1e-6


def text(profiles: Sequence[IsoProfile], source: str, target: str) -> str:
    """The file's text.

    White noise is named by its shot and read noise as they were measured. What is correlated was read too low, so that
    the camera model with its own ranges takes its place.

    Args:
        profiles: at least one.
        source: what the images are called.
        target: what to export for.
    """
    import yaml

    shots = [p.line.shot for p in profiles]
    reads = [p.line.read for p in profiles]
    noise: dict[str, Any] = {"model": "poisson-gaussian"}
    if any(p.correlated for p in profiles):
        noise = {"model": "camera", "quality": [75, 98]}
    else:
        noise["shot"] = [
            max(_LEAST_SHOT, round(min(shots) / _WIDER, 8)),
            min(1.0, max(_LEAST_SHOT, round(max(shots) * _WIDER, 8))),
        ]
        noise["read"] = [round(min(reads) / _WIDER, 2), min(255.0, round(max(reads) * _WIDER, 2))]
    levels = [round(p.sigma, 2) for p in profiles]
    content: dict[str, Any] = {
        "target": target,
        "sigma": [0.0, min(255.0, round(max(levels) * _WIDER + 1, 1))],
        "noise": noise,
    }
    table = {p.iso: level for p, level in zip(profiles, levels, strict=True) if p.iso is not None}
    if table:
        content["iso_sigma"] = table
    lines = [
        f"# edgekit {__version__} profile of {source}",
        "# edgekit compress --recipe THIS_FILE --data CLEAN_IMAGES",
    ]
    body: str = yaml.safe_dump(content, sort_keys=False, default_flow_style=None)
    return "\n".join([*lines, body])
