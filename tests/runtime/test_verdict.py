from __future__ import annotations

import json
import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from edgekit.bundle.golden import Golden
from edgekit.bundle.manifest import LayerReport, Sensitivity, Thresholds
from edgekit.runtime import verdict
from edgekit.runtime.verdict import Agreement, SigmaRow, Speed, Verdict


def found(**changes: Any) -> Verdict:
    rows = (SigmaRow(5.0, 34.0, 38.0, 37.97, 37.8), SigmaRow(50.0, 14.0, 23.42, 23.39, 23.44))
    plain = Verdict(
        passed=True,
        reasons=(),
        notes=("a note",),
        name="dsunet-s",
        target="tflite",
        variant="int8",
        rows=rows,
        total=verdict.mean(rows),
        agreement=Agreement("host", 1.0, 0, 110.0, True, 40.0),
        int8_share=1.0,
        int8_source="as exported",
        guilty=(Sensitivity("head", "activations", {"5": 0.3, "50": 0.1}),),
        speed=Speed(55.4, 2, "fp32", 2.34),
        bytes=210_000,
        original_bytes=807_692,
        engine="litert",
        library="ai-edge-litert 2.3.0",
        kernels="xnnpack",
        thresholds=Thresholds(0.5, 1.0),
    )
    return replace(plain, **changes)


def test_the_line() -> None:
    assert found().line() == (
        "PASS  FP32 30.71 dB  INT8 30.62 dB (total -0.09, quantization -0.06)  0.21 MB (-74%)  55 ms/MP (2.3x FP32)  "
        "100% of MACs in int8"
    )


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"passed": False}, "FAIL  FP32"),
        ({"speed": None}, "0.21 MB (-74%)  100% of MACs"),
        ({"speed": Speed(55.4, 2)}, "  55 ms/MP  100%"),
        ({"variant": "int8-uint8io"}, "  INT8 30.62 dB"),
        ({"variant": "fp16", "int8_share": 0.0, "thresholds": Thresholds(0.5)}, "  FP16 30.62 dB"),
        ({"variant": "fp32"}, "  FP32 on device 30.62 dB"),
        ({"int8_share": 0.99999}, "99.9% of MACs in int8"),
        ({"int8_share": 0.0}, "0% of MACs in int8"),
    ],
)
def test_the_line_of_other_bundles(changes: dict[str, Any], text: str) -> None:
    assert text in found(**changes).line()


def test_a_float_bundle_does_not_speak_of_int8() -> None:
    assert "int8" not in found(variant="fp16", int8_share=0.0, thresholds=Thresholds(0.5)).line()


def test_json_holds_everything_and_what_follows_from_it() -> None:
    data = json.loads(json.dumps(found().to_dict(), allow_nan=False))
    assert data["line"] == found().line()
    assert data["exit_code"] == 0
    assert data["worst_sigma"] == 5.0
    assert data["rows"][0]["total_drop"] == pytest.approx(0.2)
    assert data["rows"][1]["quantization_drop"] == pytest.approx(-0.05)
    assert data["total"]["sigma"] is None
    assert data["agreement"]["held"] is True
    assert data["guilty"][0]["name"] == "head"
    assert data["thresholds"] == {"max_drop": 0.5, "min_int8_share": 1.0}
    assert json.dumps(found(guilty=(), speed=None).to_dict())


def test_the_exit_code() -> None:
    assert found().exit_code == 0
    assert found(passed=False).exit_code == 1


def tiles(noise: list[float], levels: list[float]) -> tuple[Golden, Any]:
    """Golden tiles of gray 100 whose device output is off by `noise` everywhere, so that every dB is known."""
    count = len(levels)
    clean = np.full((count, 4, 4, 3), 100, np.uint8)
    device = np.stack([np.full((4, 4, 3), 100 + n, np.uint8) for n in noise])
    packed = (clean + 2).astype(np.uint16) * 257
    golden = Golden(
        clean + 20, clean, np.array(levels, np.float32), packed, packed + 257, device, Thresholds(0.5), "xnnpack"
    )
    return golden, device


def decibels(error: float) -> float:
    return 20 * math.log10(255 / error)


def test_rows_are_measured_on_eight_bits_and_averaged_over_tiles() -> None:
    golden, device = tiles([4, 8, 10], [5, 5, 50])
    low, high = verdict.rows(golden, device)
    assert (low.sigma, high.sigma) == (5.0, 50.0)
    assert low.device == pytest.approx((decibels(4) + decibels(8)) / 2)
    assert high.device == pytest.approx(decibels(10))
    assert low.noisy == pytest.approx(decibels(20))
    assert low.fp32_original == pytest.approx(decibels(2))
    assert low.fp32_compressed == pytest.approx(decibels(3))
    assert high.total_drop == pytest.approx(decibels(2) - decibels(10))
    assert high.quantization_drop == pytest.approx(decibels(3) - decibels(10))


def test_every_level_counts_alike() -> None:
    golden, device = tiles([4, 4, 4, 10], [5, 5, 5, 50])
    assert verdict.mean(verdict.rows(golden, device)).device == pytest.approx((decibels(4) + decibels(10)) / 2)


def test_equal_images_have_a_finite_figure() -> None:
    golden, device = tiles([0], [0])
    assert verdict.rows(golden, device)[0].device == verdict.EQUAL_DB


def layer(macs: int, dtype: str = "int8") -> LayerReport:
    return LayerReport("x", "CONV_2D", macs, dtype, True)


def test_the_share_of_int8() -> None:
    assert verdict.int8_share([layer(30), layer(10, "float32")]) == 0.75
    assert verdict.int8_share([layer(1 << 40), layer(1, "float32")]) < 1
    assert verdict.int8_share([]) == 0


LOSSES = (("a", 0.1), ("b", -1.0), ("c", 0.4), ("d", 0.2), ("e", 0.3))


def test_the_guilty_are_those_that_cost_most() -> None:
    items = [Sensitivity(name, "weights", {"5": db, "25": 0.0}) for name, db in LOSSES]
    assert [item.name for item in verdict.guilty(items)] == ["c", "e", "d"]
    # Nothing that costs nothing is blamed.
    assert [item.name for item in verdict.guilty(items[:2])] == ["a"]
    assert verdict.guilty([]) == ()


@pytest.mark.parametrize(
    ("share", "text"), [(1.0, "100%"), (0.999999, "99.9%"), (0.9512, "95.1%"), (0.5, "50%"), (0.0, "0%")]
)
def test_a_share_is_never_rounded_up_to_the_whole(share: float, text: str) -> None:
    assert verdict.percent(share) == text


@pytest.mark.parametrize(("change", "text"), [(0.001, "+0.00"), (-0.001, "+0.00"), (-0.1, "-0.10"), (0.126, "+0.13")])
def test_a_change_has_its_sign(change: float, text: str) -> None:
    assert verdict.signed(change) == text


@pytest.mark.parametrize(
    ("agreement", "held"),
    [
        (Agreement("host", 1.0, 0, 110.0, True, 40.0), True),
        (Agreement("host", 0.999, 1, 80.0, True, 40.0), False),
        (Agreement("host", 0.4, 8, 46.6, False, 40.0), True),
        (Agreement("host", 0.4, 8, 39.9, False, 40.0), False),
        (Agreement("host", 0.4, 8, 46.6, False, 40.0, portable=1.0), True),
        (Agreement("host", 0.4, 8, 46.6, False, 40.0, portable=0.9999), False),
        (Agreement("fp32", 0.9, 1, 58.0, False, 50.0), True),
        (Agreement("host", 0.9, 1, float("nan"), False, 40.0), False),
    ],
)
def test_agreement(agreement: Agreement, held: bool) -> None:
    assert agreement.held is held
