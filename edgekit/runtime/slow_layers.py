"""Which layers are likely to make an int8 model file slower than the float one."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from edgekit.bundle.manifest import LayerReport
from edgekit.runtime.engines.base import OperatorCount
from edgekit.runtime.verdict import percent
from edgekit.shortened import shortened

# How many layers are named; the rest is counted.
_NAMED = 3
# The other names are those of OpenVINO and ONNX; a grouped convolution is a depthwise one in every model here.
_DEPTHWISE = ("DEPTHWISE", "GROUPCONV")


@dataclass(frozen=True)
class Blame:
    """The layers to blame, and how they were found.

    Attributes:
        found_by: "profile" (the engine timed each layer here) or "layer report" (nothing was timed: the exporter's
            report, and which operators the fast kernels took here).
        layers: what to blame, in words, the likeliest first; empty where nothing stands out.
    """

    found_by: str
    layers: tuple[str, ...]

    def told(self) -> str:
        """One sentence without its full stop."""
        way = (
            "timed layer by layer here"
            if self.found_by == "profile"
            else "from the layer report, for this engine times no layers"
        )
        return f"likely layers ({way}): {'; '.join(self.layers) or 'none stands out'}"


def by_profile(integer: Mapping[str, float], floating: Mapping[str, float] | None) -> Blame:
    """Blame the layers that took longer in int8 than in float.

    Args:
        integer: milliseconds by layer of the int8 file.
        floating: the same of the float file; None, or no name in common, and the longest layers are named.
    """
    if floating is None or not integer.keys() & floating.keys():
        longest = sorted(integer.items(), key=lambda item: -item[1])[:_NAMED]
        return Blame("profile", tuple(f"{name} takes {ms:.2f} ms" for name, ms in longest))
    # A layer that the float file has not, as a QUANTIZE, is lost whole.
    lost = {name: ms - floating.get(name, 0.0) for name, ms in integer.items()}
    worst = sorted((name for name, ms in lost.items() if ms > 0), key=lambda name: -lost[name])[:_NAMED]
    return Blame(
        "profile",
        tuple(f"{name} {integer[name]:.2f} ms, in float {floating.get(name, 0.0):.2f}" for name in worst),
    )


def by_report(layers: Sequence[LayerReport], kernels: str, operators: Mapping[str, OperatorCount]) -> Blame:
    """Blame what is known to be slow in int8: float layers, slow kernels, depthwise layers.

    Args:
        layers: the exporter's report of the int8 file; empty where there is none.
        kernels: of the open engine, `Engine.kernels`.
        operators: of the open engine, `Engine.operators`.
    """
    groups: list[str] = []
    if kernels == "reference":
        groups.append("all of them: no fast kernels take them here")
    elif kernels == "mixed":
        left = [
            f"{name} {n.total - n.delegated} of {n.total}" for name, n in operators.items() if n.delegated < n.total
        ]
        groups.append(f"not taken by the fast kernels here: {', '.join(left)}")
    total = sum(layer.macs for layer in layers)
    rest = [layer for layer in layers if layer.macs]
    # A layer is named once, for the gravest of its faults.
    rules: list[tuple[str, Callable[[LayerReport], bool]]] = [
        ("left in float, with conversions around them", lambda layer: layer.dtype != "int8"),
        ("not taken by the fast kernels when exported", lambda layer: not layer.delegated),
        ("depthwise, bound by memory and not by arithmetic", _depthwise),
    ]
    for fault, guilty in rules:
        found = sorted((layer for layer in rest if guilty(layer)), key=lambda layer: -layer.macs)
        rest = [layer for layer in rest if not guilty(layer)]
        if found:
            names = shortened([f"{layer.name} ({layer.op})" for layer in found], _NAMED)
            share = percent(sum(layer.macs for layer in found) / total)
            groups.append(f"{fault}, {share} of MACs: {names}")
    return Blame("layer report", tuple(groups))


def _depthwise(layer: LayerReport) -> bool:
    return any(word in layer.op.upper() for word in _DEPTHWISE)
