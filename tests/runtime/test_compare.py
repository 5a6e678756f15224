from __future__ import annotations

import json
import math
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from golden_bundle import double_scale, edit_golden, edit_manifest, rehash, write_tiny
from numpy.typing import NDArray

from edgekit.bundle import reader, writer
from edgekit.bundle.golden import Golden
from edgekit.bundle.manifest import Thresholds
from edgekit.bundle.reader import Bundle
from edgekit.cli.outcome import run
from edgekit.errors import BundleError, RecipeError, ShapeError
from edgekit.runtime import compare as comparing
from edgekit.runtime.compare import Allowance, CompareRow, Comparison, Side, agreement_table
from edgekit.runtime.denoiser import Denoiser
from edgekit.runtime.quality import psnr
from edgekit.runtime.verdict import EQUAL_DB

INT8 = "golden-tiny.int8.tflite"


def compare(a: Path, b: Path, allow: float | None = None) -> Comparison:
    """One thread: more of them than free cores make a tiny model a hundred times slower."""
    return comparing.compare(a, b, allow=allow, threads=1)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny(tmp_path_factory.mktemp("compare") / "a.edgekit")


@pytest.fixture
def other(written: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(written, tmp_path / "b.edgekit"))


@pytest.fixture
def altered(other: Path) -> Path:
    """The same model with one channel's weights doubled: some tenths of a dB away."""
    double_scale(other / INT8, layer=0, channel=2)
    rehash(other)
    return other


def keep_tiles(folder: Path, low: float, high: float) -> None:
    """Leave only the golden tiles of some noise levels in a bundle."""
    tiles = reader.read(folder).golden()
    at = (tiles.sigma >= low) & (tiles.sigma <= high)
    names = ("noisy", "clean", "sigma", "fp32_original", "fp32_compressed", "host")
    edit_golden(folder, portable=None, portable_at=None, **{name: getattr(tiles, name)[at] for name in names})
    rehash(folder)


def test_a_bundle_agrees_with_itself(written: Path) -> None:
    found = compare(written, written)
    assert (found.agree, found.exit_code, found.guilty) == (True, 0, ())
    assert [row.sigma for row in found.rows] == [5.0, 15.0, 25.0, 50.0]
    assert [row.judged for row in found.rows] == [False, True, True, True]
    assert all((row.agreement, row.between) == (0.0, EQUAL_DB) for row in (*found.rows, found.total))
    assert found.allowed == 0.05
    assert (found.a.target, found.a.variant, found.a.integer, found.a.engine) == ("tflite", "int8", True, "litert")


def test_a_zip_is_compared_too(written: Path, other: Path) -> None:
    assert compare(written, writer.zip_bundle(other)).agree


def test_every_figure_is_that_of_the_outputs(written: Path, altered: Path) -> None:
    found = compare(written, altered)
    opened = reader.read(written)
    golden = opened.golden()
    outputs = []
    for path in (written, altered):
        with Denoiser.from_bundle(reader.read(path), threads=1) as denoiser:
            outputs.append([denoiser(t, sigma=float(s)) for t, s in zip(golden.noisy, golden.sigma, strict=True)])
    original = Golden.to_uint8(golden.fp32_original)
    for row in found.rows:
        at = np.flatnonzero(golden.sigma == row.sigma)
        assert row.a == pytest.approx(np.mean([psnr(outputs[0][k], golden.clean[k]) for k in at]))
        assert row.b == pytest.approx(np.mean([psnr(outputs[1][k], golden.clean[k]) for k in at]))
        assert row.fp32 == pytest.approx(np.mean([psnr(original[k], golden.clean[k]) for k in at]))
        assert row.between == pytest.approx(np.mean([psnr(outputs[0][k], outputs[1][k]) for k in at]))
        assert row.agreement == pytest.approx(abs(row.a - row.b))
    assert found.total.sigma is None
    assert found.total.b == pytest.approx(np.mean([row.b for row in found.rows]))
    assert found.total.between == pytest.approx(np.mean([row.between for row in found.rows]))


def test_an_altered_bundle_disagrees_and_the_guilty_level_is_named(written: Path, altered: Path) -> None:
    found = compare(written, altered)
    assert (found.agree, found.exit_code) == (False, 1)
    worst = max((row for row in found.rows if row.judged), key=lambda row: row.agreement)
    assert found.guilty[0] == worst
    assert worst.agreement > 0.05
    assert found.line().startswith("DISAGREE  ")
    assert f" dB at sigma {worst.sigma:g}" in found.line()


def test_allow_overrides(written: Path, altered: Path) -> None:
    most = max(row.agreement for row in compare(written, altered).rows if row.judged)
    assert compare(written, altered, allow=most).agree
    assert not compare(written, altered, allow=most - 1e-6).agree
    assert compare(written, written, allow=0.0).allowed == 0.0


@pytest.mark.parametrize("allow", [-0.01, math.nan, math.inf])
def test_allow_out_of_range(written: Path, allow: float) -> None:
    with pytest.raises(RecipeError, match="allow is .*: expected a number of dB, 0 or more"):
        compare(written, written, allow=allow)


def side(target: str = "tflite", variant: str = "int8", engine: str = "litert", **changes: Any) -> Side:
    plain = Side("a.edgekit", "dsunet-s", target, variant, variant == "int8", engine, "library 1", "xnnpack")
    return replace(plain, **changes)


@pytest.mark.parametrize(
    ("a", "b", "allowed"),
    [
        (side(), side(), 0.05),
        (side(), side("openvino", engine="openvino"), 0.05),
        (side("openvino", engine="openvino"), side("openvino", engine="openvino"), 0.05),
        (side(), side("tensorrt", engine="onnxruntime"), 0.15),
        (side("tensorrt", engine="tensorrt"), side(), 0.15),
        (side("tensorrt", engine="tensorrt"), side("tensorrt", engine="tensorrt"), 0.15),
        (side(), side("openvino", engine="onnxruntime"), 0.15),
        (side(), side("somewhere", engine="else"), 0.15),
        (side(), side(variant="fp32"), 0.15),
        (side(variant="fp16"), side("openvino", engine="openvino"), 0.15),
        (side(variant="fp32"), side(variant="fp32"), 0.15),
    ],
)
def test_how_far_apart_two_bundles_may_be(a: Side, b: Side, allowed: float) -> None:
    assert Allowance().between(a, b) == allowed
    assert Allowance().between(b, a) == allowed


def test_a_float_file_is_given_more_room(written: Path, other: Path) -> None:
    edit_manifest(other, lambda data: data.update(default_variant="fp32"))
    found = compare(written, other)
    assert (found.b.variant, found.b.integer, found.allowed) == ("fp32", False, 0.15)
    assert found.labels == ("tflite int8", "tflite fp32")


def row(sigma: float, a: float, b: float) -> CompareRow:
    return CompareRow(sigma, 31.0, a, b, 50.0, judged=sigma >= 15)


def comparison(*rows: CompareRow, a: Side | None = None, b: Side | None = None) -> Comparison:
    other = side("openvino", engine="openvino")
    return Comparison(a or side(), b or other, rows, CompareRow(None, 31.0, 30.0, 30.0, 50.0, False), 0.05)


def test_the_line_of_two_that_agree() -> None:
    # Sigma 5 is far beyond what is allowed, reported, and not judged.
    found = comparison(row(5, 38.0, 37.0), row(15, 33.0, 33.03), row(25, 30.0, 29.99))
    assert found.agree
    assert found.line() == (
        "AGREE  tflite int8 against openvino int8: at most 0.03 dB apart at sigma 15 and up (0.05 allowed)"
    )


def test_the_line_of_two_that_disagree_names_the_worst_level_first() -> None:
    found = comparison(row(5, 38.0, 37.0), row(15, 33.0, 33.0502), row(25, 30.0, 30.0499), row(50, 27.0, 26.69))
    assert [r.sigma for r in found.guilty] == [50.0, 15.0]
    # 0.0502 does not read as the 0.05 that is allowed.
    assert found.line() == (
        "DISAGREE  tflite int8 against openvino int8: apart by 0.31 dB at sigma 50, 0.051 dB at sigma 15 (0.05 allowed)"
    )


def test_what_is_no_number_does_not_agree() -> None:
    assert not comparison(row(15, math.nan, 33.0)).agree


def test_a_stand_in_is_said() -> None:
    stand_in = side("tensorrt", engine="onnxruntime", made_for="TensorRT")
    assert comparison(row(15, 33.0, 33.0), b=stand_in).line().endswith("(0.05 allowed)  (not run on TensorRT)")
    assert comparison(row(15, 33.0, 34.0), b=stand_in).line().endswith("(0.05 allowed)  (not run on TensorRT)")


@pytest.mark.parametrize(
    ("other", "labels"),
    [
        (side("openvino"), ("tflite int8", "openvino int8")),
        (side(name="unet"), ("dsunet-s tflite int8", "unet tflite int8")),
        (side(bundle="b.edgekit"), ("a.edgekit tflite int8", "b.edgekit tflite int8")),
    ],
)
def test_the_two_are_told_apart(other: Side, labels: tuple[str, str]) -> None:
    assert comparison(row(15, 33.0, 33.0), b=other).labels == labels


def test_other_channels_are_refused(written: Path) -> None:
    color = reader.read(written)
    gray = Bundle(
        replace(color.manifest, model=replace(color.manifest.model, channels=1)), color.folder, Path("g.edgekit")
    )
    with pytest.raises(
        RecipeError,
        match=r"g.edgekit takes images of 1 channel, the golden tiles of .*a.edgekit have 3: compare bundles of models",
    ):
        comparing._fit(color.golden(), color, gray)


def test_noise_that_the_other_does_not_take_is_refused(written: Path, other: Path) -> None:
    keep_tiles(other, 0, 20)
    edit_manifest(other, lambda data: data.update(sigma=[0.0, 20.0]))
    with pytest.raises(
        RecipeError, match=r"b.edgekit takes sigma 0 to 20, the golden tiles of .*a.edgekit have sigma 25, 50: compare"
    ):
        compare(written, other)
    # The other way round the tiles are those of the narrower one.
    found = compare(other, written)
    assert ([r.sigma for r in found.rows], found.agree) == ([5.0, 15.0], True)


def test_a_blind_model_takes_any_noise(written: Path) -> None:
    opened = reader.read(written)
    model = replace(opened.manifest.model, blind=True)
    blind = Bundle(replace(opened.manifest, model=model, sigma=(20.0, 20.0)), opened.folder, opened.source)
    comparing._fit(opened.golden(), opened, blind)


def test_tiles_without_a_level_to_judge_are_refused(written: Path, other: Path) -> None:
    keep_tiles(other, 0, 14)
    with pytest.raises(RecipeError, match=r"b.edgekit have sigma 5: agreement is judged at sigma 15 and up"):
        compare(other, written)


def test_json_holds_everything(written: Path, altered: Path) -> None:
    found = compare(written, altered)
    data = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert (data["line"], data["agree"], data["exit_code"]) == (found.line(), False, 1)
    assert [r["agreement"] for r in data["rows"]] == [r.agreement for r in found.rows]
    assert (data["total"]["sigma"], data["allowed"], data["judged_from"]) == (None, 0.05, 15.0)
    assert (data["a"]["target"], data["b"]["bundle"]) == ("tflite", str(altered))


# --- the table of several targets


def tiles(levels: list[float]) -> Golden:
    """Golden tiles of gray 100 whose original FP32 output is off by 2 everywhere."""
    clean = np.full((len(levels), 4, 4, 3), 100, np.uint8)
    packed = (clean + 2).astype(np.uint16) * 257
    return Golden(
        clean + 20, clean, np.array(levels, np.float32), packed, packed + 257, clean, Thresholds(0.5), "xnnpack"
    )


def off(golden: Golden, *errors: int) -> NDArray[np.uint8]:
    """An output that is off by `errors`, one a tile."""
    return golden.clean + np.array(errors, np.uint8)[:, None, None, None]


def decibels(error: float) -> float:
    return 20 * math.log10(255 / error)


def test_the_table_of_several_targets() -> None:
    golden = tiles([50, 15])
    outputs = {"tflite": off(golden, 8, 4), "openvino": off(golden, 10, 3), "tensorrt": off(golden, 10, 3)}
    table = agreement_table(golden, outputs)
    assert [(r.target, r.sigma) for r in table] == [
        (target, sigma) for target in outputs for sigma in (15.0, 50.0, None)
    ]
    low, high, mean = table[3:6]
    assert (low.int8, high.int8) == (pytest.approx(decibels(3)), pytest.approx(decibels(10)))
    assert all(r.fp32 == pytest.approx(decibels(2)) for r in table)
    assert low.drop == pytest.approx(decibels(2) - decibels(3))
    assert low.agreement == pytest.approx(decibels(3) - decibels(4))
    assert high.agreement == pytest.approx(decibels(8) - decibels(10))
    assert mean.int8 == pytest.approx((decibels(3) + decibels(10)) / 2)
    assert mean.agreement == pytest.approx(abs(mean.int8 - table[2].int8))
    # The first is what the others are held against, the third as much as the second.
    assert [r.agreement for r in table[6:]] == [r.agreement for r in table[3:6]]
    assert [r.agreement for r in table[:3]] == [None, None, None]


def test_the_table_of_no_target_is_empty() -> None:
    assert agreement_table(tiles([15]), {}) == ()


@pytest.mark.parametrize(
    ("wrong", "said"),
    [(lambda o: o[:1], r"uint8 \[1, 4, 4, 3\]"), (lambda o: o.astype(np.float32), r"float32 \[2, 4, 4, 3\]")],
)
def test_the_table_refuses_outputs_of_other_tiles(wrong: Any, said: str) -> None:
    golden = tiles([15, 50])
    with pytest.raises(
        ShapeError, match=rf"output of b is {said}: expected that of the golden tiles, uint8 \[2, 4, 4, 3\]"
    ):
        agreement_table(golden, {"a": golden.clean, "b": wrong(golden.clean)})


# --- the command


def test_the_command_agrees(written: Path, other: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["check", str(written), "--against", str(other)]) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if line.strip()]
    assert lines[-1].startswith("AGREE  ")
    assert [line.split()[0] for line in lines[-6:-1]] == ["5", "15", "25", "50", "mean"]
    # A comparison is no verdict.
    assert not any("PASS" in line for line in lines)


@pytest.mark.parametrize("depth", [0, 1, 8])
def test_the_table_is_whole_however_long_the_paths(
    written: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], depth: int
) -> None:
    folder = tmp_path.joinpath(*["a-folder-of-somebody"] * depth)
    copy = Path(shutil.copytree(written, folder / "b.edgekit"))
    assert run(["check", str(written), "--against", str(copy)]) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if line.strip()]
    cells = [line.split() for line in lines[-6:-1]]
    assert [row[0] for row in cells] == ["5", "15", "25", "50", "mean"]
    assert {len(row) for row in cells if row[-1] == "no"} == {7}
    assert cells[1][3:] == [*cells[1][3:6], "at", "most", "0.05"]
    if depth == 8:
        assert f"A: {written} tflite int8" in lines
        assert f"B: {copy} tflite int8" in lines


def test_the_command_disagrees_and_exits_1(written: Path, altered: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["check", str(written), "--against", str(altered)]) == 1
    assert capsys.readouterr().out.splitlines()[-1].startswith("DISAGREE  ")
    assert run(["check", str(written), "--against", str(altered), "--json"]) == 1
    data = json.loads(capsys.readouterr().out)
    assert data["agree"] is False
    assert run(["check", str(written), "--against", str(altered), "--allow", "99"]) == 0
    assert "(99 allowed)" in capsys.readouterr().out.splitlines()[-1]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--against", "none.edgekit"], "no bundle at none.edgekit"),
        (["--against", "BUNDLE", "--allow", "-1"], "allow is -1.0: expected a number of dB, 0 or more"),
        (["--allow", "0.1"], "--allow 0.1 is about two bundles: give the other one with --against BUNDLE"),
    ],
)
def test_the_command_refuses(written: Path, capsys: pytest.CaptureFixture[str], words: list[str], message: str) -> None:
    assert run(["check", str(written), *(word.replace("BUNDLE", str(written)) for word in words)]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith("error: ")
    assert message in said.err
    assert said.err.count("\n") == 1


def test_a_damaged_bundle_is_refused(written: Path, other: Path) -> None:
    double_scale(other / INT8, layer=0, channel=2)
    with pytest.raises(BundleError, match="golden-tiny.int8.tflite was altered"):
        compare(written, other)
