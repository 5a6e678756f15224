"""Width search. Called, as `edgekit.search(...)`, it is a whole search (`edgekit.api`)."""

from __future__ import annotations

from edgekit.callable_package import make_callable

make_callable(__name__)
