"""The noise of a camera from its own noisy images: a line for each ISO, a chart, and a recipe."""

from __future__ import annotations

from edgekit.profile.folder import IsoFolder, IsoProfile, iso_folders, measure
from edgekit.profile.line import NoiseProfile, fit

__all__ = ["IsoFolder", "IsoProfile", "NoiseProfile", "fit", "iso_folders", "measure"]
