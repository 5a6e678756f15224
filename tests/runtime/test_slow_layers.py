from __future__ import annotations

from edgekit.bundle.manifest import LayerReport
from edgekit.runtime.engines.base import OperatorCount
from edgekit.runtime.slow_layers import Blame, by_profile, by_report


def layer(name: str, macs: int, op: str = "CONV_2D", dtype: str = "int8", delegated: bool = True) -> LayerReport:
    return LayerReport(name, op, macs, dtype, delegated)


def test_a_profile_names_the_layers_that_lost_most() -> None:
    integer = {"head": 1.0, "dw1": 3.0, "QUANTIZE": 0.5, "up": 1.5, "tail": 0.25, "even": 1.0}
    floating = {"head": 2.0, "dw1": 1.0, "up": 1.0, "tail": 0.125, "even": 1.0, "gone": 9.0}
    found = by_profile(integer, floating)
    # What the float file has not is lost whole; head is faster, and the fourth is not named.
    assert found.layers == (
        "dw1 3.00 ms, in float 1.00",
        "QUANTIZE 0.50 ms, in float 0.00",
        "up 1.50 ms, in float 1.00",
    )
    assert found.told().startswith("likely layers (timed layer by layer here): dw1 3.00 ms, in float 1.00; QUANTIZE")


def test_a_profile_without_the_float_files_names_the_longest_layers() -> None:
    expected = Blame("profile", ("b takes 3.00 ms", "d takes 2.50 ms", "a takes 1.00 ms"))
    integer = {"a": 1.0, "b": 3.0, "c": 0.5, "d": 2.5}
    assert by_profile(integer, None) == expected
    assert by_profile(integer, {"other": 1.0}) == expected


def test_the_report_blames_float_layers_slow_kernels_and_depthwise_layers_each_once() -> None:
    layers = [
        layer("plain", 500),
        layer("dw.small", 50, "DEPTHWISE_CONV_2D"),
        layer("dw.large", 100, "DEPTHWISE_CONV_2D"),
        layer("alone", 150, delegated=False),
        layer("wide", 200, "DEPTHWISE_CONV_2D", dtype="float32", delegated=False),
        layer("copy", 0, "CONCATENATION", dtype="float32", delegated=False),
    ]
    found = by_report(layers, "xnnpack", {})
    assert found == Blame(
        "layer report",
        (
            "left in float, with conversions around them, 20% of MACs: wide (DEPTHWISE_CONV_2D)",
            "not taken by the fast kernels when exported, 15% of MACs: alone (CONV_2D)",
            "depthwise, bound by memory and not by arithmetic, 15% of MACs: dw.large (DEPTHWISE_CONV_2D), "
            "dw.small (DEPTHWISE_CONV_2D)",
        ),
    )
    assert "from the layer report, for this engine times no layers" in found.told()


def test_the_report_counts_what_it_does_not_name() -> None:
    (line,) = by_report([layer(f"dw{i}", 10, "GroupConvolution") for i in range(5)], "unknown", {}).layers
    assert line.endswith(
        "100% of MACs: dw0 (GroupConvolution), dw1 (GroupConvolution), dw2 (GroupConvolution) and 2 more"
    )


def test_slow_kernels_here_come_before_what_the_exporter_saw() -> None:
    layers = [layer("dw", 10, "DEPTHWISE_CONV_2D")]
    operators = {"CONV_2D": OperatorCount(26, 23), "ADD": OperatorCount(4, 4)}
    assert by_report(layers, "reference", {}).layers[0] == "all of them: no fast kernels take them here"
    assert by_report(layers, "mixed", operators).layers[0] == "not taken by the fast kernels here: CONV_2D 3 of 26"
    assert len(by_report(layers, "mixed", operators).layers) == 2


def test_nothing_to_blame_is_said() -> None:
    for layers in ([], [layer("plain", 500)]):
        found = by_report(layers, "xnnpack", {})
        assert found.layers == ()
        assert found.told().endswith(": none stands out")
