"""The noise level of an ISO setting, from the table that a bundle carries."""

from __future__ import annotations

import math
from collections.abc import Mapping

from edgekit.errors import RecipeError


def sigma_of_iso(table: Mapping[str, float], iso: float) -> float:
    """Look an ISO up, between two entries by interpolation: both scales logarithmic, as noise grows with gain.

    Args:
        table: ISO -> standard deviation of the noise in 8-bit units, as the manifest holds it.
        iso: within the table.
    Returns: the level in 8-bit units.
    Raises: RecipeError: the bundle has no table, or the ISO lies outside it.
    """
    if not table:
        raise RecipeError(
            f"iso is {iso:g}, but the bundle has no table of ISO and sigma: give sigma, or make the bundle with the "
            "recipe that `edgekit profile` writes"
        )
    points = sorted((int(key), level) for key, level in table.items())
    if not points[0][0] <= iso <= points[-1][0]:
        raise RecipeError(
            f"iso is {iso:g}: this bundle's table reaches from {points[0][0]} to {points[-1][0]}; give sigma instead"
        )
    for low, high in zip(points, points[1:], strict=False):
        if low[0] <= iso <= high[0]:
            share = math.log(iso / low[0]) / math.log(high[0] / low[0])
            if min(low[1], high[1]) <= 0:
                return low[1] + share * (high[1] - low[1])
            return float(low[1] * (high[1] / low[1]) ** share)
    return points[0][1]
