"""Long lists in messages."""

from __future__ import annotations

from collections.abc import Sequence


def shortened(items: Sequence[str], limit: int = 3) -> str:
    """The first of them, and how many more there are: "a, b, c and 4 more"."""
    more = f" and {len(items) - limit} more" if len(items) > limit else ""
    return ", ".join(items[:limit]) + more
