from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from benchmarks import published, quality, results, tables
from benchmarks.contestants import ONLY, PEERS, STUDENT, TEACHER
from benchmarks.sets import SETS, SIGMAS
from edgekit.bundle.reader import sha256
from edgekit.errors import DataError, UnknownNameError
from edgekit.models import checkpoints


def test_tables_are_what_the_results_say(capsys: pytest.CaptureFixture[str]) -> None:
    assert tables.main(["--check"]) == 0, capsys.readouterr().out


def test_the_recorded_quality_is_of_whole_sets_and_the_shipped_weights() -> None:
    found = results.load(results.FOLDER / "quality.json")
    assert found["settings"]["limit"] is None
    assert {row["images"] for row in found["rows"] if row["set"] == "CBSD68"} == {68}
    assert {row["images"] for row in found["rows"] if row["set"] == "McMaster"} == {18}
    rows = {(row["model"], row["set"], row["sigma"]): row["figures"] for row in found["rows"]}
    colour = [name for name, channels in SETS.items() if channels == 3]
    for name in colour:
        for sigma in SIGMAS:
            assert {"original", "fp32", "int8", "unclipped"} <= rows[(STUDENT, name, sigma)].keys()
            assert {"original", "unclipped"} <= rows[(TEACHER, name, sigma)].keys()
    student, teacher = (rows[(name, "CBSD68", 25)]["unclipped"]["psnr"] for name in (STUDENT, TEACHER))
    assert student >= 30.9
    assert teacher > student
    for key in published.FIGURES:
        assert published.wrong(*key, rows[key]["unclipped"]["psnr"]) == ""
    stated = {model["name"]: model["sha256"] for model in found["models"]}
    for name in stated.keys() & checkpoints.shipped().keys():
        assert stated[name] == sha256(checkpoints.shipped()[name]), f"{name} was trained again: measure it again"
    assert all(f["sha256"] for figures in rows.values() for name, f in figures.items() if name != "noisy")


def test_the_recorded_latency_has_every_contestant() -> None:
    found = results.load(results.FOLDER / "latency.json")
    assert found["settings"]["rounds"] >= 7
    timed = {(row["model"], row["figure"], row["threads"]) for row in found["rows"] if row["through"] == "engine"}
    for threads in (1, 2):
        ours = {(STUDENT, figure, threads) for figure in ("original", "fp32", "int8")}
        assert timed >= ours | {("ffdnet-color", figure, threads) for figure in ("original", "calibrated")}
    files = {
        row["sha256"]
        for row in results.load(results.FOLDER / "quality.json")["rows"][0]["figures"].values()
        if "sha256" in row
    }
    bundle = {row["sha256"] for row in found["rows"] if row["model"] == STUDENT and row["figure"] in ("fp32", "int8")}
    assert bundle <= files, "quality and latency were measured with different bundles: measure both again"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Results of a small, invented run."""

    def figures(base: float) -> dict[str, Any]:
        names = ["noisy", "unclipped", "original", "calibrated", "fp32", "int8"]
        return {n: {"psnr": base + k, "ssim": 0.5, "sha256": "0"} for k, n in enumerate(names)}

    about = {"versions": {"edgekit": "9.9", "ai-edge-litert": "2.3"}, "machine": {"processor": "P", "cores": 2}}
    rows = [
        {"model": STUDENT, "set": name, "sigma": sigma, "images": 2, "figures": figures(base)}
        for name, sigma, base in (("CBSD68", 5, 38.123), ("CBSD68", 25, 30.0), ("McMaster", 25, 31.0))
    ]
    rows.append(
        {"model": "ffdnet-color", "set": "CBSD68", "sigma": 25, "images": 2, "figures": {"unclipped": {"psnr": 31.217}}}
    )
    models = [{"name": STUDENT, "macs_per_pixel": 8613.0, "compressed_macs_per_pixel": 6401.0}]
    models.append({"name": "ffdnet-color", "macs_per_pixel": 2e5})
    results.save(tmp_path / "quality.json", {"settings": {"limit": None}, **about, "models": models, "rows": rows})
    size = {"through": "engine", "tile": 512, "macs_per_pixel": 9e3, "bytes": 210_000}
    timed = [
        {"model": STUDENT, "figure": "int8", "threads": 1, "ms_per_megapixel": 90.2, **size},
        {"model": STUDENT, "figure": "int8", "threads": 2, "ms_per_megapixel": 50.4, **size},
        {"model": "ffdnet-color", "figure": "original", "threads": 1, "ms_per_megapixel": 4010.0, **size},
    ]
    ratios = [{"model": "ffdnet-color", "figure": "original", "threads": 1, "through": "engine", "times": 44.46}]
    settings = {"rounds": 7, "threads": [1, 2]}
    results.save(tmp_path / "latency.json", {"settings": settings, **about, "rows": timed, "ratios": ratios})
    picture = {
        "psnr": {"noisy": 20.2, "fp32": 31.74, "int8": 31.7},
        "amplified": 8,
        "sigma": 25,
        "what": "a cat",
        "file": "c.png",
    }
    results.save(tmp_path / "picture.json", picture)
    return tmp_path


def test_quality_table(folder: Path) -> None:
    lines = tables.quality(folder).splitlines()
    assert lines[0] == "|  | kMAC/px | CBSD68: 5 | 25 | McMaster: 25 |"
    assert lines[1] == "| --- | ---: | ---: | ---: | ---: |"
    assert lines[2] == "| noisy input |  | 38.12 | 30.00 | 31.00 |"
    assert "| dsunet-s, FP32 | 8.6 | 40.12 | 32.00 | 33.00 |" in lines
    assert "| dsunet-s compressed, **INT8** | 6.4 | 43.12 | 35.00 | 36.00 |" in lines
    assert "| its difference to dsunet-s, FP32 |  | +3.00 | +3.00 | +3.00 |" in lines
    assert lines[-1].endswith("Run by LiteRT (ai-edge-litert 2.3), edgekit 9.9, P, 2 cores.")
    assert not any("ffdnet" in line for line in lines), "it has no figure of the runtime"


def test_published_table(folder: Path) -> None:
    assert "| ffdnet-color | CBSD68 | 25 | 2 | 31.217 | 31.22 | -0.003 |" in tables.as_published(folder)


def test_latency_table(folder: Path) -> None:
    lines = tables.latency(folder).splitlines()
    assert lines[0] == "|  | kMAC/px | MB | ms/MP, 1 thread | ms/MP, 2 threads | times, 1 thread | times, 2 threads |"
    assert lines[2] == "| dsunet-s compressed, **INT8** | 9.0 | 0.21 | 90 | 50 |  |  |"
    assert lines[3] == "| ffdnet-color, FP32 | 9.0 | 0.21 | 4010 |  | 44 |  |"


def test_speed_and_large_tables(folder: Path) -> None:
    found = results.load(folder / "latency.json")
    size = {"through": "engine", "threads": 1}
    for name, shift in (("latency", 0.0), ("latency-openvino", 10.0)):
        timed = [
            {"model": model, "figure": figure, "ms_per_megapixel": ms + shift, **size}
            for model, figure, ms in (
                (STUDENT, "fp32", 200.0), (STUDENT, "int8", 80.0), ("ffdnet-color", "calibrated", 1200.0)
            )
        ]  # fmt: skip
        timed.append({**timed[0], "threads": 2, "ms_per_megapixel": 1.0})
        results.save(folder / f"{name}.json", {**found, "rows": timed})
    lines = tables.speed(folder).splitlines()
    assert lines[2] == "| LiteRT | 200 | 80 | 2.50 times | 1200: 15 times as long |"
    assert lines[3] == "| OpenVINO | 210 | 90 | 2.33 times | 1210: 13 times as long |"
    other = results.load(folder / "latency-openvino.json")
    results.save(folder / "latency-openvino.json", {**other, "machine": {"processor": "Q", "cores": 4}})
    assert "; LiteRT on P, 2 cores; OpenVINO on Q, 4 cores. " in tables.speed(folder)
    row = {"library": "openvino 2026 (CPU, f32)", "image_ms": 940.0, "over_halo": 0.056, "memory": 117_000_000}
    settings = {"rounds": 15, "threads": 1, "image": [3000, 4000]}
    results.save(folder / "large.json", {"settings": settings, "machine": {"processor": "P"}, "rows": [row]})
    lines = tables.large(folder).splitlines()
    assert lines[2] == "| openvino 2026 | 0.94 | 5.6% | 117 |"
    assert lines[-1].startswith("A photo of 4000x3000, ")


def test_a_quick_look_says_so(folder: Path) -> None:
    found = results.load(folder / "quality.json")
    results.save(folder / "quality.json", {**found, "settings": {"limit": 2}})
    assert "**Only the first 2 images of each set.**" in tables.quality(folder)


def test_what_stands_between_markers_is_replaced_and_nothing_else(folder: Path) -> None:
    before, after = "before\n<!-- generated:picture -->\n", "<!-- /generated:picture -->\nafter"
    text = tables.fill(before + "old\n" + after, ["picture"], "x.md", folder)
    assert text == before + tables.picture(folder) + "\n" + after
    assert tables.fill(text, ["picture"], "x.md", folder) == text


@pytest.mark.parametrize(
    ("text", "error", "message"),
    [
        ("none", DataError, "x.md lacks <!-- generated:picture -->"),
        ("<!-- generated:picture -->\n", DataError, "the marker of 'picture' has no partner"),
        ("<!-- generated:picture -->\n<!-- /generated:ssim -->", DataError, "in turns"),
        ("<!-- generated:speeds -->\n<!-- /generated:speeds -->", UnknownNameError, "unknown table 'speeds'"),
    ],
)
def test_markers_that_do_not_fit(folder: Path, text: str, error: type[Exception], message: str) -> None:
    needed = ["speeds"] if "speeds" in text else ["picture"]
    with pytest.raises(error, match=message):
        tables.fill(text, needed, "x.md", folder)


def test_check_writes_nothing_and_shows_the_difference(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = folder / "README.md"
    file.write_text("<!-- generated:picture -->\nold\n<!-- /generated:picture -->\n")
    monkeypatch.setattr(tables, "ROOT", folder)
    monkeypatch.setattr(tables, "FILES", {file: ("picture",)})
    assert tables.main(["--check", "--results", str(folder)]) == 1
    assert "-old\n" in capsys.readouterr().out
    assert "old" in file.read_text()
    assert tables.main(["--results", str(folder)]) == 0
    assert "old" not in file.read_text()
    assert tables.main(["--check", "--results", str(folder)]) == 0
    missing = folder / "none"
    with pytest.raises(DataError, match="no results at .*picture.json: run `python -m benchmarks.picture`"):
        tables.main(["--check", "--results", str(missing)])


def test_every_figure_has_its_words() -> None:
    assert tables._QUALITY.keys() | {"noisy"} == quality.FIGURES.keys()
    assert set(ONLY) <= set(PEERS)
