from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from golden_bundle import double_scale, edit_golden, edit_manifest, rehash, write_tiny

import edgekit.runtime.check as checking
from edgekit.bundle import reader, writer
from edgekit.bundle.manifest import LayerReport, Sensitivity, Thresholds
from edgekit.errors import BundleError, EngineError, MissingExtraError, UnknownNameError
from edgekit.runtime.check import judge, recorded
from edgekit.runtime.denoiser import Denoiser
from edgekit.runtime.engines import litert
from edgekit.runtime.verdict import Agreement, SigmaRow, Verdict

INT8 = "golden-tiny.int8.tflite"
# Layers of the tiny model, by the order of their weights in the file, and a channel of each that the tiles stir.
LIVE = [(0, 2), (1, 0), (2, 5), (3, 2), (5, 0), (6, 2)]


def check(path: Path, variant: str | None = None) -> Verdict:
    """One thread: more of them than free cores make a tiny model a hundred times slower."""
    return checking.check(path, variant=variant, threads=1)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny(tmp_path_factory.mktemp("check") / "golden-tiny-tflite.edgekit")


@pytest.fixture
def bundle(written: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(written, tmp_path / "a.edgekit"))


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checking, "_SECONDS", 0.05)


@pytest.fixture
def other_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    """A device whose interpreter has no XNNPACK, as tflite-runtime's: TFLite's own optimised kernels compute."""
    from ai_edge_litert import interpreter

    class WithoutDelegate(interpreter.Interpreter):  # type: ignore[misc]
        def __init__(self, **options: Any) -> None:
            kind = interpreter.OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES
            super().__init__(**{"experimental_op_resolver_type": kind, **options})

    WithoutDelegate.__module__ = interpreter.Interpreter.__module__
    monkeypatch.setattr(litert, "_library", lambda: (WithoutDelegate, "tflite-runtime 2.14.0", ""))


def test_a_whole_bundle_passes(written: Path) -> None:
    found = check(written)
    assert found.passed
    assert (found.exit_code, found.reasons, found.notes) == (0, (), ())
    assert found.agreement == Agreement("host", 1.0, 0, 110.0, True, 40.0, portable_required=True)
    assert [row.sigma for row in found.rows] == [5.0, 15.0, 25.0, 50.0]
    assert all(row.device > row.noisy for row in found.rows)
    assert (found.int8_share, found.int8_source) == (1.0, "counted in the model file")
    assert (found.engine, found.kernels) == ("litert", "xnnpack")
    assert found.library.startswith("ai-edge-litert")
    assert found.bytes == (written / INT8).stat().st_size
    assert found.speed is not None
    assert found.speed.ms_per_megapixel > 0
    assert (found.speed.threads, found.speed.baseline) == (1, "fp32")
    assert found.line().startswith("PASS  FP32 25.56 dB  INT8 25.66 dB (total +0.10, quantization +0.10)")


@pytest.mark.parametrize(
    ("variant", "agreement"),
    [
        ("int8-uint8io", Agreement("host", 1.0, 0, 110.0, True, 40.0, portable_required=True)),
        ("fp32", Agreement("fp32", 1.0, 0, 110.0, False, 50.0)),
    ],
)
def test_the_other_variants_pass(written: Path, variant: str, agreement: Agreement) -> None:
    found = check(written, variant=variant)
    assert found.passed
    assert found.variant == variant
    assert found.agreement == agreement


def test_a_zip_passes(bundle: Path) -> None:
    assert check(writer.zip_bundle(bundle)).passed


def test_what_the_host_recorded_needs_no_engine(written: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = check(written)
    monkeypatch.setattr(litert, "_library", lambda: (None, "", ""))
    with reader.read(written) as bundle:
        found = recorded(bundle)
    assert found.passed
    assert found.rows == expected.rows
    assert found.speed is None
    with pytest.raises(MissingExtraError, match="pip install 'edgekit\\[litert\\]'"):
        check(written)


@pytest.mark.parametrize(("layer", "channel"), LIVE)
def test_a_doubled_weight_scale_is_found_with_every_hash_rewritten(bundle: Path, layer: int, channel: int) -> None:
    double_scale(bundle / INT8, layer, channel)
    with pytest.raises(BundleError, match="golden-tiny.int8.tflite was altered"):
        check(bundle)
    rehash(bundle)
    found = check(bundle)
    assert not found.passed
    assert found.exit_code == 1
    assert len(found.reasons) == 1
    assert "output differs from the host's" in found.reasons[0]
    assert "(identical bytes required)" in found.reasons[0]


@pytest.mark.parametrize(("layer", "channel"), LIVE)
def test_without_the_fast_kernels_it_is_found_by_the_portable_ones(
    bundle: Path, other_kernels: None, layer: int, channel: int
) -> None:
    double_scale(bundle / INT8, layer, channel)
    rehash(bundle)
    found = check(bundle)
    assert not found.passed
    assert found.agreement.portable is not None
    assert found.agreement.portable < 1
    assert "by portable kernels" in found.reasons[-1]


def test_a_device_without_the_fast_kernels_passes(written: Path, other_kernels: None) -> None:
    found = check(written)
    assert found.passed
    assert found.kernels == "reference"
    # Its own kernels do give other bytes: that is what the portable ones are for.
    assert found.agreement.identical < 1
    assert found.agreement.portable == 1.0
    assert "this device runs reference kernels, the host ran xnnpack" in found.notes[0]


def test_without_portable_tiles_nothing_would_tell_an_altered_file(bundle: Path, other_kernels: None) -> None:
    edit_golden(bundle, portable=None, portable_at=None)
    rehash(bundle)
    found = check(bundle)
    assert not found.passed
    assert found.agreement.portable is None
    assert "portable kernels, which would tell an altered file, are missing here" in found.reasons[-1]


def test_a_host_whose_portable_kernels_cannot_run_the_file_says_so(
    bundle: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(*arguments: Any, **settings: Any) -> None:
        raise EngineError("no kernel for DEPTH_TO_SPACE version 2\n(a second line)")

    monkeypatch.setattr(checking, "open_engine", refuse)
    with reader.read(bundle) as found:
        bare = replace(found.golden(), portable=None, portable_at=None)
        assert checking.with_portable(bare, found) is bare
    (told,) = caplog.messages
    assert "portable kernels cannot run golden-tiny.int8.tflite (no kernel for DEPTH_TO_SPACE version 2)" in told


def test_another_name_does_not_make_an_integer_file_a_float_one(bundle: Path) -> None:
    data = json.loads((bundle / "manifest.json").read_text())
    data["default_variant"] = "model"
    next(v for v in data["variants"] if v["name"] == "int8")["name"] = "model"
    (bundle / "manifest.json").write_text(json.dumps(data))
    found = check(bundle)
    assert found.agreement.bit_exact
    assert found.int8_source == "counted in the model file"
    assert found.thresholds.min_int8_share > 0


def test_a_weight_that_no_tile_stirs_is_found_by_the_sealed_hash(bundle: Path) -> None:
    """A channel behind a ReLU that is always 0: no output changes, so only the golden tiles' own hash can tell."""
    double_scale(bundle / INT8, layer=4, channel=2)
    data = json.loads((bundle / "manifest.json").read_text())
    data["files"][INT8] = reader.sha256(bundle / INT8)
    (bundle / "manifest.json").write_text(json.dumps(data))
    found = check(bundle)
    assert found.agreement.held
    assert [reason.split(":")[0] for reason in found.reasons] == ["model file edited"]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda d: d["thresholds"].update(max_drop=5.0), "manifest says 5.0 dB, sealed 0.5 dB, recipe 0.5 dB"),
        (lambda d: d["recipe"].update(max_drop=5), "manifest says 0.5 dB, sealed 0.5 dB, recipe 5 dB"),
        (lambda d: d["recipe"].pop("max_drop"), "manifest says 0.5 dB, sealed 0.5 dB, recipe none"),
        (lambda d: d["thresholds"].update(min_int8_share=0.0), "manifest says 0.0, sealed 1.0"),
    ],
)
def test_edited_thresholds_are_told(bundle: Path, change: Callable[[dict[str, Any]], object], said: str) -> None:
    edit_manifest(bundle, change)
    found = check(bundle)
    assert not found.passed
    assert len(found.reasons) == 1
    assert found.reasons[0].startswith(f"thresholds edited: {said}")


def test_thresholds_edited_in_the_golden_tiles_are_told(bundle: Path) -> None:
    edit_golden(bundle, thresholds=Thresholds(5.0, 1.0))
    edit_manifest(bundle, lambda data: data["thresholds"].update(max_drop=5.0))
    rehash(bundle)
    (reason,) = check(bundle).reasons
    assert reason.startswith("thresholds edited: manifest says 5.0 dB, sealed 5.0 dB, recipe 0.5 dB")


def test_loosened_thresholds_do_not_loosen_the_verdict(bundle: Path) -> None:
    edit_golden(bundle, fp32_original=reader.read(bundle).golden().clean.astype(np.uint16) * 257)
    edit_manifest(bundle, lambda data: data["thresholds"].update(max_drop=99.0))
    rehash(bundle)
    reasons = check(bundle).reasons
    assert any(reason.startswith("total drop") and "0.5 dB allowed" in reason for reason in reasons)
    assert any(reason.startswith("thresholds edited") for reason in reasons)


def test_no_figure_comes_from_the_manifest(bundle: Path) -> None:
    expected = check(bundle)

    def boast(data: dict[str, Any]) -> None:
        for stage in data["stages"]:
            stage["db_after"] = dict.fromkeys(stage["db_after"], 99.0)

    edit_manifest(bundle, boast)
    assert check(bundle).rows == expected.rows


@pytest.mark.parametrize("layers", [[], None])
def test_an_edited_layer_report_is_told(bundle: Path, layers: list[Any] | None) -> None:
    def edit(data: dict[str, Any]) -> None:
        if layers is None:
            data["layers"][0]["dtype"] = "float32"
        else:
            data["layers"] = layers

    edit_manifest(bundle, edit)
    found = check(bundle)
    assert found.int8_share == 1.0
    assert len(found.reasons) == 1
    assert found.reasons[0].startswith("layers edited: the manifest says ")


def test_one_edited_layer_is_told_however_small(bundle: Path) -> None:
    def edit(data: dict[str, Any]) -> None:
        min(data["layers"], key=lambda layer: layer["macs"])["dtype"] = "float32"

    edit_manifest(bundle, edit)
    (reason,) = check(bundle).reasons
    assert reason.startswith("layers edited: the manifest says 99.9% of MACs in int8, the model file holds 100%")


def test_a_float_file_in_place_of_the_int8_one_is_not_int8(bundle: Path) -> None:
    """What the manifest calls int8 and is not must show in the share of MACs."""

    def swap(data: dict[str, Any]) -> None:
        integer, _, floating = data["variants"]
        data["variants"][0] = {**floating, "name": "int8"}
        data["variants"][2] = {**integer, "name": "fp32"}

    edit_manifest(bundle, swap)
    rehash(bundle)
    found = check(bundle)
    assert found.int8_share == 0.0
    assert any("0% of MACs in int8, 100% required" in reason for reason in found.reasons)


@pytest.mark.parametrize(("device", "noted"), [(24.04, True), (24.2, False), (23.0, False)])
def test_what_removes_no_noise_is_noted(bundle: Path, device: float, noted: bool) -> None:
    # What is worse than the noisy image is no note: it fails.
    total = SigmaRow(25.0, 24.0, 24.04, 24.04, device)
    with reader.read(bundle) as read:
        notes = checking._doubts(read, read.manifest.variants[0], total)
    assert [note for note in notes if "removes next to no noise: 0.04 dB better" in note] == list(notes[: int(noted)])


def test_integers_that_take_more_room_are_noted(bundle: Path) -> None:
    def fewer(manifest: dict[str, Any]) -> None:
        manifest["model"]["original_bytes"] = 1000

    edit_manifest(bundle, fewer)
    rehash(bundle)
    assert any("is larger than the original's float32 weights" in note for note in check(bundle).notes)


def test_files_that_are_not_listed_are_noted(bundle: Path) -> None:
    (bundle / "notes.txt").write_text("mine")
    found = check(bundle)
    assert found.passed
    assert found.notes == ("files that the manifest does not list, and nothing reads: notes.txt",)


def test_an_unknown_variant_is_named(written: Path) -> None:
    with pytest.raises(UnknownNameError, match="unknown variant 'int4': expected one of fp32, int8, int8-uint8io"):
        check(written, variant="int4")


ROWS = (SigmaRow(5.0, 34.0, 38.0, 37.9, 37.4), SigmaRow(50.0, 14.0, 26.0, 25.9, 25.6))
EXACT = Agreement("host", 1.0, 0, 110.0, True, 40.0, portable_required=True)
LAYERS = (
    LayerReport("head", "CONV_2D", 900, "int8", True),
    LayerReport("tail", "CONV_2D", 100, "float32", False),
)


def test_the_rule_judges_the_mean_over_the_levels() -> None:
    # 0.6 dB at sigma 5 and 0.4 at sigma 50: half a dB on average, to the last bit that floats leave.
    assert judge(ROWS, EXACT, 1.0, Thresholds(0.5 + 1e-9), ()) == ()
    (reason,) = judge(ROWS, EXACT, 1.0, Thresholds(0.49), ())
    assert reason.startswith("total drop 0.500 dB, 0.49 dB allowed (0.60 at sigma 5, 0.40 at sigma 50): ")


def test_of_many_levels_the_worst_are_named() -> None:
    table = [replace(ROWS[0], sigma=float(s), device=37.0 + 0.01 * s) for s in range(10, 30)]
    (reason,) = judge(table, EXACT, 1.0, Thresholds(0.5), ())
    expected = "(of 20 levels most at 3: 0.90 at sigma 10, 0.89 at sigma 11, 0.88 at sigma 12): "
    assert expected in reason


def test_a_drop_by_quantization_names_what_is_to_blame_the_cause_and_the_fix() -> None:
    few = Sensitivity("up.0", "activations", {"5": 0.2, "50": 0.1}, "its range is set by 2 of 24 channels")
    low = Sensitivity("tail", "activations", {"5": 0.3, "15": 0.03, "25": 0.0, "50": 0.0})
    (reason,) = judge(ROWS, EXACT, 1.0, Thresholds(0.1), LAYERS, (low, few))
    assert reason.endswith(
        "quantization loses 0.400 of it, most by up.0 (activations, 0.15 dB alone; its range is set by 2 of 24 "
        "channels); tail (activations, 0.08 dB alone): quantize longer (--steps), or for a narrower range of noise "
        "(--sigma; sigma 5 loses most), or export --precision fp16"
    )
    (reason,) = judge(ROWS, EXACT, 1.0, Thresholds(0.1), LAYERS)
    assert reason.endswith("loses 0.400 of it: quantize longer (--steps), or export --precision fp16")
    # Where --steps would be the training's.
    (reason,) = judge(ROWS, EXACT, 1.0, Thresholds(0.1), LAYERS, (low, few), tuned=True)
    assert "quantize longer (quantization.steps in a recipe), or export the tuned model.safetensors in float" in reason
    assert "--sigma" not in reason


def test_a_drop_by_pruning_names_pruning() -> None:
    rows = tuple(replace(row, fp32_compressed=row.device + 0.1) for row in ROWS)
    (reason,) = judge(rows, EXACT, 1.0, Thresholds(0.1), LAYERS)
    assert "pruning and distillation lose 0.400 of it; prune less (--prune)" in reason


def test_a_layer_left_in_float_is_named() -> None:
    (reason,) = judge(ROWS, EXACT, 0.9, Thresholds(1.0, 0.95), LAYERS)
    assert reason.startswith("90% of MACs in int8, 95% required: left in float: tail (CONV_2D, float32): an operator")


def test_a_figure_that_is_no_number_fails() -> None:
    rows = (replace(ROWS[0], device=float("nan")),)
    assert len(judge(rows, EXACT, 1.0, Thresholds(0.5), ())) == 1


def test_every_reason_is_one_line() -> None:
    bad = Agreement("host", 0.4, 30, 30.0, False, 40.0, portable=0.5)
    reasons = judge(ROWS, bad, 0.5, Thresholds(0.1, 0.9), LAYERS)
    assert len(reasons) == 3
    assert all("\n" not in reason for reason in reasons)
    assert "40% of bytes identical, up to 30 LSB apart, 30.0 dB (40 dB required)" in reasons[1]


def test_the_engine_counts_the_macs_that_the_exporter_counted(written: Path) -> None:
    with reader.read(written) as bundle:
        stated = sum(layer.macs for layer in bundle.manifest.layers)
        for name, expected in (("int8", {"int8": stated}), ("fp32", {"float32": stated})):
            with Denoiser.from_bundle(bundle, name, 1) as denoiser:
                assert denoiser.engine.macs == expected


def test_what_is_worse_than_the_noise_fails_whatever_it_came_from() -> None:
    table = (SigmaRow(5.0, 34.0, 30.0, 30.0, 30.5),)
    (reason,) = judge(table, EXACT, 1.0, Thresholds(0.5), ())
    assert reason.startswith("output is worse than the noisy input (30.50 dB against 34.00 dB): train the model before")
    table = (SigmaRow(5.0, 34.0, 38.0, 37.9, 30.5),)
    (_, reason) = judge(table, EXACT, 1.0, Thresholds(0.5), ())
    assert reason.startswith("output is worse than the noisy input (30.50 dB against 34.00 dB): FP32 is not (37.90 dB)")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda d: d["model"].update(halo=4), "halo is 4, it was "),
        (lambda d: d.update(sigma=[0.0, 255.0]), "sigma is [0.0, 255.0], it was [0.0, 55.0]"),
        (lambda d: d.update(iso_sigma={"100": 50.0}), 'iso_sigma is {"100": 50.0}, it was {}'),
    ],
)
def test_edited_facts_are_told(bundle: Path, change: Callable[[dict[str, Any]], object], said: str) -> None:
    edit_manifest(bundle, change)
    found = check(bundle)
    assert not found.passed
    assert any(reason.startswith(f"manifest edited: {said}") for reason in found.reasons)


def test_a_bundle_from_before_facts_were_sealed_still_passes(bundle: Path) -> None:
    edit_golden(bundle, facts={})
    rehash(bundle)
    assert check(bundle).passed
