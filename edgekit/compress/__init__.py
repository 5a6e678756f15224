"""The stages: prune, distill, quantize. Called, as `edgekit.compress(...)`, it is the whole job (`edgekit.api`)."""

from __future__ import annotations

from edgekit.callable_package import make_callable

make_callable(__name__)
