"""Denoisers: architectures by name, and their weight files."""

from __future__ import annotations

from edgekit.models.base import DenoiserModel
from edgekit.models.checkpoints import load, save, shipped
from edgekit.models.registry import build, create, names

__all__ = ["DenoiserModel", "build", "create", "load", "names", "save", "shipped"]
