"""How far a list of operators looks, and what its sizes divide by: halo and stride of a network read from a file."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import Any, NamedTuple

from edgekit.errors import ShapeError


class _Reach(NamedTuple):
    """Cell i of a tensor depends on the input's pixels from i*step - before to (i + 1)*step - 1 + after."""

    step: Fraction
    before: Fraction
    after: Fraction


_PIXEL = _Reach(Fraction(1), Fraction(0), Fraction(0))


def reach(nodes: Sequence[Mapping[str, Any]], *, mapped: bool = False) -> tuple[int, int]:
    """Stride and halo in pixels, the larger of both axes.

    Args:
        nodes: as `GraphModel` takes them.
        mapped: whether the noise level is a map, which is looked at as the image is.
    Raises: ShapeError: sizes that cannot be added, or an output of another size than the image.
    """
    strides, halos = zip(*(_axis(nodes, mapped, axis) for axis in (0, 1)), strict=True)
    return math.lcm(*strides), max(halos)


def _axis(nodes: Sequence[Mapping[str, Any]], mapped: bool, axis: int) -> tuple[int, int]:
    """The same along one axis: 0 is height."""
    # A constant or a scalar level has no place: it fits any step.
    found: dict[str, _Reach | None] = {"noisy": _PIXEL, "sigma": _PIXEL if mapped else None}
    last: _Reach | None = _PIXEL
    for node in nodes:
        sources = [r for r in (found[name] for name in node["inputs"]) if r is not None]
        if len({r.step for r in sources}) > 1:
            sizes = ", ".join(str(1 / r.step) for r in sources)
            raise ShapeError(
                f"operator {node['name']} ({node['op']}) joins tensors of {sizes} times the image's size: expected one "
                "size"
            )
        joined = None
        if node["op"] == "expand":
            # What is written over the map looks nowhere; the map's size is the other's.
            joined = _Reach(sources[-1].step, Fraction(0), Fraction(0))
        elif sources:
            joined = _Reach(sources[0].step, max(r.before for r in sources), max(r.after for r in sources))
            joined = _through(node, joined, axis)
        found[node["name"]] = last = joined
    if last is None or last.step != 1:
        found_size = "a constant" if last is None else f"{1 / last.step} times the image"
        raise ShapeError(
            f"the network's output is {found_size}: a denoiser gives an image of the size that it was given"
        )
    steps = [r.step for r in found.values() if r is not None]
    # Halves of pixels (an upsampling first) ask nothing of the image's size.
    stride = math.lcm(*(s.numerator for s in steps))
    return stride, max(0, math.ceil(max(last.before, last.after)))


def _through(node: Mapping[str, Any], source: _Reach, axis: int) -> _Reach:
    op = node["op"]
    if op == "conv_transpose":
        return _spread(node, source, axis)
    if op in ("conv", "max_pool", "avg_pool"):
        return _window(node, source, axis)
    if op == "pad":
        begin = node["pad"][2 * (1 - axis)]
        return _Reach(source.step, source.before + begin * source.step, source.after - begin * source.step)
    if op == "space_to_depth":
        return source._replace(step=source.step * node["block"])
    if op == "depth_to_space":
        return _finer(source, Fraction(node["block"]), 0)
    if op == "upsample":
        return _finer(source, Fraction(node["factor"][axis]), 1 if node["mode"] == "bilinear" else 0)
    return source


def _window(node: Mapping[str, Any], source: _Reach, axis: int) -> _Reach:
    stride, begin = node["stride"][axis], node["pad"][2 * (1 - axis)]
    span = (node["kernel"][axis] - 1) * node.get("dilation", (1, 1))[axis]
    return _Reach(
        source.step * stride,
        source.before + begin * source.step,
        source.after + (span + 1 - begin - stride) * source.step,
    )


def _spread(node: Mapping[str, Any], source: _Reach, axis: int) -> _Reach:
    stride, trimmed = node["stride"][axis], node["pad"][2 * (1 - axis)]
    if node.get("trim"):
        trimmed += node["trim"][2 * (1 - axis)]
    span = (node["kernel"][axis] - 1) * node["dilation"][axis]
    step = source.step / stride
    return _Reach(step, source.before + (span - trimmed) * step, source.after + source.step + (trimmed - 1) * step)


def _finer(source: _Reach, factor: Fraction, neighbours: int) -> _Reach:
    step = source.step / factor
    more = source.step - step + neighbours * source.step
    return _Reach(step, source.before + more, source.after + more)
