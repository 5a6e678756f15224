from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from golden_bundle import TILE, edit_manifest, write_tiny
from numpy.typing import NDArray

import edgekit.runtime.bench as benching
from edgekit.bundle import reader
from edgekit.cli.outcome import run
from edgekit.errors import BundleError, RecipeError, UnknownNameError
from edgekit.runtime.bench import Bench, Timed
from edgekit.runtime.denoiser import Denoiser
from edgekit.runtime.engines.litert import LiteRTEngine
from edgekit.runtime.one_tile import fill_one_tile

# A tile of the tiny model less its halo of 15, on top and left rounded up to the stride of 4.
SIDE = TILE - 16 - 15


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny(tmp_path_factory.mktemp("bench") / "tiny.edgekit")


@pytest.fixture
def bundle(written: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(written, tmp_path / "b.edgekit"))


@pytest.fixture
def no_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Spares the processes that measure memory: test_memory.py has them."""
    monkeypatch.setattr(benching, "peak_memory", lambda *_: (1_000_000, ""))


@pytest.fixture
def slow_int8(monkeypatch: pytest.MonkeyPatch) -> None:
    """A device where what comes first takes twice the time of what comes second."""

    def times(
        functions: Sequence[Callable[[], object]], runs: int, seconds: float, warm_up: int
    ) -> list[NDArray[np.float64]]:
        return [np.full(3, 0.002 if i % 2 == 0 else 0.001) for i, _ in enumerate(functions)]

    monkeypatch.setattr(benching, "in_turns", times)
    monkeypatch.setattr(benching, "peak_memory", lambda *_: (1_000_000, ""))


def bench(*paths: Path, **options: Any) -> Bench:
    """One thread, few runs."""
    return benching.bench(paths, **{"threads": 1, "runs": 5, "seconds": 5.0, **options})


def test_a_bundle_and_its_float_file_are_timed(written: Path) -> None:
    found = bench(written)
    assert [(t.variant, t.baseline) for t in found.timed] == [("int8", "fp32"), ("fp32", None)]
    for entry in found.timed:
        assert (entry.bundle, entry.name, entry.target) == (str(written), "golden-tiny", "tflite")
        assert (entry.engine, entry.kernels, entry.threads) == ("litert", "xnnpack", 1)
        assert entry.library.startswith("ai-edge-litert ")
        assert entry.useful_pixels == SIDE * SIDE
        # No figure of a shared machine is held to more than this.
        figures = (entry.p50_ms, entry.fastest_ms_per_megapixel, entry.megapixels_per_second)
        assert all(math.isfinite(value) and value > 0 for value in figures)
        assert entry.p50_ms <= entry.p90_ms <= entry.p99_ms
        assert entry.fastest_ms_per_megapixel <= entry.ms_per_megapixel
        assert entry.ms_per_megapixel * entry.megapixels_per_second == pytest.approx(1e3)
        assert entry.peak_memory is None or entry.peak_memory > 0
        assert 3 <= entry.runs <= 5
    integer, floating = found.timed
    assert (integer.int8_share, floating.int8_share) == (1.0, 0.0)
    assert integer.ratio == pytest.approx(floating.p50_ms / integer.p50_ms)
    assert floating.ratio is None
    assert floating.slow is None
    assert {"edgekit", "python", "numpy", "ai-edge-litert"} == set(found.versions)


def test_json_holds_everything(written: Path, slow_int8: None) -> None:
    found = bench(written)
    data = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert data["line"] == found.line()
    assert [t["variant"] for t in data["timed"]] == ["int8", "fp32"]
    assert data["timed"][0]["slow"]["found_by"] == "layer report"
    assert data["notes"] == list(found.notes)


def test_percentiles_and_what_follows_from_them(
    written: Path, no_memory: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    ramp = np.arange(1, 102) / 1e3
    monkeypatch.setattr(benching, "in_turns", lambda functions, runs, seconds, warm_up: [ramp, ramp * 3])
    entry = bench(written).timed[0]
    assert (entry.runs, entry.p50_ms, entry.p90_ms, entry.p99_ms) == (101, *map(pytest.approx, (51, 91, 100)))
    assert entry.ms_per_megapixel == pytest.approx(51 / (SIDE * SIDE / 1e6))
    assert entry.fastest_ms_per_megapixel == pytest.approx(1 / (SIDE * SIDE / 1e6))
    assert entry.megapixels_per_second == pytest.approx(SIDE * SIDE / 1e6 / 0.051)
    assert entry.ratio == pytest.approx(3)


def test_an_int8_file_slower_than_float_is_said_with_the_layers_and_the_way(written: Path, slow_int8: None) -> None:
    found = bench(written)
    entry = found.timed[0]
    assert entry.ratio == pytest.approx(0.5)
    assert entry.slow is not None
    assert entry.slow.found_by == "layer report"
    depthwise = [layer.name for layer in reader.read(written).manifest.layers if "DEPTHWISE" in layer.op]
    assert depthwise
    (line,) = entry.slow.layers
    assert line.startswith("depthwise, bound by memory")
    assert any(name in line for name in depthwise)
    note = next(note for note in found.notes if "slower" in note)
    assert note.startswith(f"{written} int8 is slower than its fp32 here: ")
    assert "(0.50x); likely layers (from the layer report, for this engine times no layers): depthwise" in note


def test_an_engine_that_times_its_layers_is_asked(
    written: Path, slow_int8: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def profile(self: LiteRTEngine, inputs: Mapping[str, NDArray[Any]]) -> Mapping[str, float]:
        assert self.run(inputs).shape == (1, TILE, TILE, 3)  # the inputs are those of a run
        return {"head": 2.0, "tail": 1.0} if self.macs.get("int8") else {"head": 0.5, "tail": 2.0}

    monkeypatch.setattr(LiteRTEngine, "profile", profile, raising=False)
    found = bench(written)
    slow = found.timed[0].slow
    assert slow is not None
    assert (slow.found_by, slow.layers) == ("profile", ("head 2.00 ms, in float 0.50",))
    assert any("likely layers (timed layer by layer here): head" in note for note in found.notes)


def test_a_float_file_slower_than_another_blames_nothing(written: Path, slow_int8: None) -> None:
    found = bench(written, variant="fp32", baseline="int8")
    assert found.timed[0].ratio == pytest.approx(0.5)
    assert all(entry.slow is None for entry in found.timed)
    # And an int8 file held against another int8 file is no matter of quantization.
    found = bench(written, variant="int8-uint8io", baseline="int8")
    assert found.timed[0].ratio == pytest.approx(0.5)
    assert all(entry.slow is None for entry in found.timed)


def test_a_float_bundles_report_blames_no_int8_file_beside_it(bundle: Path, slow_int8: None) -> None:
    edit_manifest(bundle, lambda data: data.update(default_variant="fp32"))
    slow = bench(bundle, variant="int8").timed[0].slow
    assert slow is not None
    assert slow.layers == ()


@pytest.mark.parametrize(
    ("options", "variants"),
    [
        ({"baseline": "none"}, ["int8"]),
        ({"variant": "fp32"}, ["fp32"]),
        ({"variant": "int8-uint8io"}, ["int8-uint8io", "fp32"]),
        ({"baseline": "int8-uint8io"}, ["int8", "int8-uint8io"]),
        ({"baseline": "int8"}, ["int8"]),
    ],
)
def test_which_files_take_part(written: Path, no_memory: None, options: dict[str, Any], variants: list[str]) -> None:
    found = bench(written, **options)
    assert [entry.variant for entry in found.timed] == variants
    assert (found.timed[0].ratio is None) == (len(variants) == 1)


def test_each_bundle_brings_its_own_baseline(written: Path, bundle: Path, no_memory: None) -> None:
    found = bench(written, bundle)
    assert [(Path(t.bundle).name, t.variant) for t in found.timed] == [
        ("tiny.edgekit", "int8"),
        ("tiny.edgekit", "fp32"),
        ("b.edgekit", "int8"),
        ("b.edgekit", "fp32"),
    ]
    for integer, floating in (found.timed[:2], found.timed[2:]):
        assert integer.ratio == pytest.approx(floating.p50_ms / integer.p50_ms)
    assert len({entry.runs for entry in found.timed}) == 1


def test_a_bundle_without_fp32_has_no_baseline_unless_one_is_asked_for(bundle: Path, no_memory: None) -> None:
    edit_manifest(bundle, lambda data: data["variants"].pop())
    assert [entry.variant for entry in bench(bundle).timed] == ["int8"]
    with pytest.raises(
        UnknownNameError, match="unknown variant of golden-tiny 'fp32': expected one of int8, int8-uint"
    ):
        bench(bundle, baseline="fp32")


def test_all_run_on_the_same_threads(written: Path, no_memory: None, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int | None] = []
    real = Denoiser.from_bundle

    def record(opened: Any, variant: str | None = None, threads: int | None = None) -> Denoiser:
        asked.append(threads)
        return real(opened, variant, 1)

    monkeypatch.setattr(Denoiser, "from_bundle", record)
    assert {entry.threads for entry in bench(written, written, threads=None).timed} == {1}
    # The engine's default once, and then whatever that was.
    assert asked == [None, 1, 1, 1]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"runs": 2}, "runs is 2: expected a whole number of at least 3"),
        ({"runs": True}, "runs is True: expected a whole number of at least 3"),
        ({"seconds": 0.0}, "seconds is 0.0: expected a number above 0"),
        ({"seconds": math.nan}, "seconds is nan: expected a number above 0"),
        ({"threads": 0}, "threads is 0: expected a whole number of at least 1"),
    ],
)
def test_settings_out_of_range(written: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        bench(written, **options)


def test_wrong_bundles(written: Path, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="no bundle to time: give at least one"):
        bench()
    with pytest.raises(BundleError, match="no bundle at .*none"):
        bench(written, tmp_path / "none")
    with pytest.raises(UnknownNameError, match="unknown variant of golden-tiny 'int4': expected one of fp32, int8, "):
        bench(written, variant="int4")


def entry(**changes: Any) -> Timed:
    plain = Timed(
        bundle="build/a.edgekit",
        name="a",
        target="tflite",
        variant="int8",
        engine="litert",
        library="ai-edge-litert 2.3.0",
        kernels="xnnpack",
        threads=2,
        runs=30,
        p50_ms=1.0,
        p90_ms=1.0,
        p99_ms=1.0,
        useful_pixels=18_051,
        ms_per_megapixel=55.4,
        fastest_ms_per_megapixel=50.0,
        megapixels_per_second=18.05,
        baseline="fp32",
        ratio=2.341,
        peak_memory=None,
        int8_share=1.0,
        slow=None,
    )
    return replace(plain, **changes)


def test_the_line() -> None:
    slower = entry(variant="fp32", ms_per_megapixel=130.0, baseline=None, ratio=None)
    assert Bench((slower, entry()), (), {}, {}).line() == (
        "fastest: build/a.edgekit int8, 55.4 ms/MP (18.1 MP/s), 2.34x its fp32, 2 threads"
    )
    assert Bench((slower,), (), {}, {}).line().endswith("fp32, 130 ms/MP (18.1 MP/s), 2 threads")


def test_the_time_of_a_stand_in_is_not_that_of_the_library() -> None:
    stand_in = entry(bundle="t.edgekit", ms_per_megapixel=1.0, made_for="TensorRT", library="onnxruntime 1.23.0")
    assert Bench((stand_in, entry()), (), {}, {}).fastest == entry()
    (note,) = benching._notes([stand_in, entry()], None, [])
    assert note == (
        "t.edgekit int8 was not run on TensorRT: onnxruntime 1.23.0 computed it in its place; nothing is known of its "
        "speed there"
    )


def test_notes_on_a_busy_machine_and_on_missing_memory() -> None:
    assert benching._notes([entry()], 0.3, []) == ()
    (busy, missing) = benching._notes([entry()], 2.06, ["peak memory of a: not measured"] * 2)
    assert busy.startswith("the machine was busy (load 2.1 when it began)")
    assert missing == "peak memory of a: not measured"


def test_missing_memory_costs_no_other_figure(written: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(benching, "peak_memory", lambda *_: (None, "not measured: broken"))
    found = bench(written)
    assert [entry.peak_memory for entry in found.timed] == [None, None]
    assert f"peak memory of {written} fp32: not measured: broken" in found.notes


def test_the_image_fills_one_run_of_the_model(written: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runs: list[int] = []
    real = LiteRTEngine.run
    monkeypatch.setattr(LiteRTEngine, "run", lambda self, inputs: runs.append(1) or real(self, inputs))
    with reader.read(written) as opened, Denoiser.from_bundle(opened, threads=1) as denoiser:
        image, sigma = fill_one_tile(opened)
        assert (image.shape, sigma) == ((SIDE, SIDE, 3), 5.0)
        denoiser(image, sigma=sigma)
        assert len(runs) == 1
        denoiser(np.pad(image, ((0, 1), (0, 0), (0, 0))), sigma=sigma)
        assert len(runs) == 3


# --- the command


def test_the_command_prints_a_table_and_the_line(
    written: Path, slow_int8: None, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["bench", str(written), "--threads", "1"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1].startswith(f"fastest: {written} fp32, ")
    assert [line.split()[2] for line in lines if line.strip().startswith("golden-tiny ")] == ["int8", "fp32"]
    assert any("0.50x fp32" in line for line in lines)
    assert any(line.startswith(f"note: {written} int8 is slower than its fp32 here") for line in lines)


def test_two_builds_of_one_model_are_told_apart(
    written: Path, bundle: Path, slow_int8: None, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["bench", str(written), str(bundle), "--baseline", "none", "--threads", "1"]) == 0
    out = capsys.readouterr().out
    assert "golden-tiny" not in out


def test_the_command_prints_json_only(written: Path, no_memory: None, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["bench", str(written), "--threads", "1", "--runs", "3", "--baseline", "none", "--json"]
    assert run(words) == 0
    data = json.loads(capsys.readouterr().out)
    assert [(t["variant"], t["runs"], t["ratio"]) for t in data["timed"]] == [("int8", 3, None)]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["none.edgekit"], "no bundle at none.edgekit"),
        (["BUNDLE", "--variant", "int4"], "unknown variant of golden-tiny 'int4'"),
        (["BUNDLE", "--runs", "1"], "runs is 1: expected a whole number of at least 3"),
        (["BUNDLE", "--threads", "0"], "threads is 0"),
        ([], "Missing argument 'BUNDLE...'"),
    ],
)
def test_the_command_refuses(written: Path, capsys: pytest.CaptureFixture[str], words: list[str], message: str) -> None:
    assert run(["bench", *(word.replace("BUNDLE", str(written)) for word in words)]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith("error: ")
    assert message in said.err
    assert said.err.count("\n") == 1
