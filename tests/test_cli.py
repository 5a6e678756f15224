"""The command line: exit codes, one line for whatever is wrong, nothing half-written."""

from __future__ import annotations

import errno
import json
import shutil
import subprocess
import sys
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NoReturn

import numpy as np
import pytest
from golden_bundle import double_scale, edit_manifest, rehash, scenes, write_tiny
from PIL import Image
from rich.console import Console
from rich.text import Text

from edgekit import api, pipeline
from edgekit.bundle.reader import read
from edgekit.cli import bench, show
from edgekit.cli.outcome import run
from edgekit.recipe import Recipe
from edgekit.runtime.bench import Timed
from edgekit.runtime.check import check
from edgekit.runtime.deep_color import write_png
from edgekit.runtime.denoiser import Denoiser
from edgekit.runtime.denoiser import open as open_bundle
from edgekit.runtime.images import load

COMMANDS = (
    "compress", "train", "lint", "finetune", "search", "profile",
    "check", "bench", "evaluate", "denoise", "inspect", "models", "doctor",
)  # fmt: skip


@dataclass(frozen=True)
class Said:
    """Exit code, stdout and stderr of a command."""

    code: int
    out: str
    err: str

    def error(self) -> str:
        """The one line on stderr of a command that refused."""
        assert self.code == 2
        assert self.out == ""
        assert self.err.startswith("error: ")
        assert self.err.count("\n") == 1
        return self.err.removeprefix("error: ").rstrip("\n")


class Terminal:
    """Types commands."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self._capsys = capsys

    def __call__(self, *words: object) -> Said:
        code = run([str(word) for word in words])
        said = self._capsys.readouterr()
        return Said(code, said.out, said.err)


@pytest.fixture
def edgekit(capsys: pytest.CaptureFixture[str]) -> Terminal:
    return Terminal(capsys)


@pytest.fixture(scope="session")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny(tmp_path_factory.mktemp("cli") / "tiny.edgekit")


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    path = tmp_path / "photo.png"
    Image.fromarray(scenes(1, 80, seed=5)[0]).save(path)
    return path


def files(folder: Path) -> set[str]:
    return {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()}


# --- the program itself


def test_no_command_prints_help(edgekit: Terminal) -> None:
    said = edgekit()
    assert said.code == 0
    assert all(name in said.out for name in COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(edgekit: Terminal, command: str) -> None:
    assert edgekit(command, "--help").code == 0


def test_help_of_compress_states_the_recipes_defaults(edgekit: Terminal, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    text = edgekit("compress", "--help").out
    for name in ("model", "teacher", "precision", "max_drop", "tile", "seed"):
        flag = f"--{name.replace('_', '-')} "
        line = next(line for line in text.splitlines() if flag in line)
        assert f"[default: ({Recipe.model_fields[name].default})]" in line


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["compres"], "No such command 'compres'"),
        (["check"], "Missing argument 'BUNDLE'; see edgekit check --help"),
        (["check", "a", "b"], "unexpected extra argument"),
        (["compress", "--targt", "tflite"], "No such option: --targt"),
        (["compress", "--tile"], "Option '--tile' requires an argument"),
        (["denoise", "a.png", "-o", "b.png"], "Missing option '--model'"),
    ],
)
def test_usage_error_is_one_line_and_says_where_help_is(edgekit: Terminal, words: list[str], message: str) -> None:
    line = edgekit(*words).error()
    assert message in line
    assert line.endswith("--help")


def test_version_and_exit_codes_of_the_real_process(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "edgekit"]
    done = subprocess.run([*command, "--version"], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout, done.stderr) == (0, "edgekit 0.1.0\n", "")
    done = subprocess.run([*command, "check", str(tmp_path / "none")], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: no bundle at ")
    assert done.stderr.count("\n") == 1


# --- check and inspect


def test_check_ends_in_the_verdict(edgekit: Terminal, bundle: Path) -> None:
    said = edgekit("check", bundle)
    assert said.code == 0
    assert said.out.splitlines()[-1].startswith("PASS  FP32 ")
    rows = [line.split()[0] for line in said.out.splitlines() if line.strip()]
    assert rows[rows.index("5") :][:5] == ["5", "15", "25", "50", "mean"]


def test_check_as_json_is_the_verdict(edgekit: Terminal, bundle: Path) -> None:
    said = edgekit("check", bundle, "--json")
    found = json.loads(said.out)
    assert (said.code, found["passed"], found["name"]) == (0, True, "golden-tiny")
    assert [row["sigma"] for row in found["rows"]] == [5, 15, 25, 50]
    assert found["rows"] == check(bundle).to_dict()["rows"]


def test_check_of_an_altered_model_exits_1_and_says_why(edgekit: Terminal, bundle: Path, tmp_path: Path) -> None:
    copy = tmp_path / "altered.edgekit"
    shutil.copytree(bundle, copy)
    double_scale(next(copy.rglob("*.int8.tflite")), layer=0, channel=0)
    rehash(copy)
    said = edgekit("check", copy)
    assert said.code == 1
    assert said.out.splitlines()[-1].startswith("FAIL")
    assert "output differs from the host" in said.out
    assert edgekit("check", copy, "--json").code == 1


def test_check_refuses_a_changed_byte(edgekit: Terminal, bundle: Path, tmp_path: Path) -> None:
    copy = tmp_path / "damaged.edgekit"
    shutil.copytree(bundle, copy)
    model = next(copy.rglob("*.int8.tflite"))
    content = bytearray(model.read_bytes())
    content[-1] ^= 1
    model.write_bytes(content)
    assert "was altered or damaged" in edgekit("check", copy).error()
    assert "was altered or damaged" in edgekit("check", copy, "--json").error()
    assert "was altered or damaged" in edgekit("inspect", copy).error()


def test_inspect_shows_files_stages_layers_and_licences(edgekit: Terminal, bundle: Path) -> None:
    said = edgekit("inspect", bundle)
    assert said.code == 0
    facts = [v.file for v in read(bundle).manifest.variants]
    facts += ["prune: removed 29% of MACs", "made by the tests", "CONV_2D", "sigma 0 to 55", "int8 (default)"]
    assert [fact for fact in facts if fact not in said.out] == []


def test_inspect_shows_the_noise_and_the_iso_table(edgekit: Terminal, bundle: Path, tmp_path: Path) -> None:
    assert "ISO table" not in edgekit("inspect", bundle).out
    copy = tmp_path / "camera.edgekit"
    shutil.copytree(bundle, copy)
    noise = {"model": "poisson-gaussian", "sigma": [0.0, 55.0], "shot": [0.0001, 0.012], "read": [0.5, 4.0]}

    def change(data: dict[str, Any]) -> None:
        data["iso_sigma"] = {"1600": 8.125, "100": 2.0}
        data["recipe"]["noise"] = {**noise, "stratified": True, "level": "rms"}

    edit_manifest(copy, change)
    facts = [" ".join(line.split()) for line in edgekit("inspect", copy).out.splitlines()]
    assert "noise model poisson-gaussian, shot 0.0001:0.012, read 0.5:4" in facts
    assert "ISO table ISO 100: sigma 2, ISO 1600: sigma 8.12" in facts
    edit_manifest(copy, lambda data: data["recipe"].update(finetune={"noises": ["the pairs' own", "gaussian"]}))
    assert "noise model the pairs' own; replayed: gaussian" in " ".join(edgekit("inspect", copy).out.split())


# --- denoise


def test_denoise_a_file(edgekit: Terminal, bundle: Path, photo: Path, tmp_path: Path) -> None:
    out = tmp_path / "clean.png"
    said = edgekit("denoise", photo, "-o", out, "--model", bundle, "--sigma", "25")
    assert (said.code, said.err) == (0, "")
    with open_bundle(bundle) as denoiser:
        expected = denoiser(load(photo).pixels, sigma=25)
    assert np.array_equal(load(out).pixels, expected)


def test_denoise_doubts_a_level_in_0_to_1(edgekit: Terminal, bundle: Path, photo: Path, tmp_path: Path) -> None:
    for sigma, doubted in (("0.098", True), ("0", False), ("25", False)):
        said = edgekit("denoise", photo, "-o", tmp_path / f"{sigma}.png", "--model", bundle, "--sigma", sigma)
        assert said.code == 0
        assert ("levels are in 8-bit units, 0 to 255" in said.err) == doubted


def test_denoise_a_folder_into_a_folder(edgekit: Terminal, bundle: Path, photo: Path, tmp_path: Path) -> None:
    source = tmp_path / "in"
    source.mkdir()
    shutil.copy(photo, source / "a.png")
    Image.fromarray(scenes(1, 80, seed=6)[0, :, :, 0]).save(source / "b.tif")
    (source / "notes.txt").write_text("not an image")
    (source / "more").mkdir()
    (source / "raw").mkdir()
    shutil.copy(photo, source / "raw")
    said = edgekit("denoise", source, "-o", tmp_path / "out", "--model", bundle)
    assert said.code == 0
    assert f"note: folders in {source} are not searched: more, raw\n" in said.err
    assert f"note: left out of {source}: notes.txt; only files that end in .png, " in said.err
    assert files(tmp_path / "out") == {"a.png", "b.tif"}
    assert load(tmp_path / "out" / "b.tif").pixels.shape == (80, 80)


def test_several_images_do_not_become_a_folder_that_is_called_like_a_file(
    edgekit: Terminal, bundle: Path, photo: Path, tmp_path: Path
) -> None:
    second = shutil.copy(photo, tmp_path / "second.png")
    out = tmp_path / "out.png"
    said = edgekit("denoise", photo, second, "-o", out, "--model", bundle)
    assert f"-o {out} is named like a file: expected a folder for 2 images" in said.error()
    assert not out.exists()


def test_denoise_gives_deep_images_to_the_float_model_and_says_so(
    edgekit: Terminal, bundle: Path, photo: Path, tmp_path: Path
) -> None:
    source, out = tmp_path / "in", tmp_path / "out"
    source.mkdir()
    shutil.copy(photo, source / "bytes.png")
    ramp = np.tile(np.linspace(4000, 60000, 80).astype(np.uint16)[None, :, None], (40, 1, 3))
    with (source / "deep.png").open("wb") as stream:
        write_png(stream, ramp, None, None)
    words = ["denoise", source, "-o", out, "--model", bundle, "--sigma", "5"]
    said = edgekit(*words)
    assert said.code == 0
    assert "note: deep.png: more than 8 bits, denoised by fp32" in said.err
    for name, variant in (("bytes", "int8"), ("deep", "fp32")):
        with open_bundle(bundle, variant=variant) as denoiser:
            expected = denoiser(load(source / f"{name}.png").pixels, sigma=5)
        np.testing.assert_array_equal(load(out / f"{name}.png").pixels, expected)
    assert "note" not in edgekit(*words, "--force", "--variant", "int8").err
    with open_bundle(bundle, variant="int8") as denoiser:
        np.testing.assert_array_equal(load(out / "deep.png").pixels, denoiser(ramp, sigma=5))


def test_denoise_never_overwrites_unless_forced(edgekit: Terminal, bundle: Path, photo: Path, tmp_path: Path) -> None:
    out = tmp_path / "clean.png"
    out.write_bytes(b"precious")
    words = ["denoise", photo, "-o", out, "--model", bundle, "--sigma", "25"]
    assert edgekit(*words).error() == f"{out} exists: use --force to replace it, or choose another -o"
    assert out.read_bytes() == b"precious"
    assert edgekit(*words, "--force").code == 0
    assert load(out).pixels.shape == (80, 80, 3)


def test_denoise_never_replaces_an_input(edgekit: Terminal, bundle: Path, photo: Path, tmp_path: Path) -> None:
    for out in (photo, tmp_path):
        line = edgekit("denoise", photo, "-o", out, "--model", bundle, "--force").error()
        assert line == f"{photo} is one of the inputs: choose another -o"


def test_denoise_refuses_two_inputs_of_one_name(edgekit: Terminal, bundle: Path, photo: Path, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    other = shutil.copy(photo, tmp_path / "other")
    line = edgekit("denoise", photo, other, "-o", tmp_path / "out", "--model", bundle).error()
    assert "would both become" in line
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("sigma", "message"),
    [("much", "--sigma 'much': expected a number in 8-bit units, 0 to 255, or auto"), ("90", "90"), ("nan", "nan")],
)
def test_denoise_refuses_a_wrong_sigma(
    edgekit: Terminal, bundle: Path, photo: Path, tmp_path: Path, sigma: str, message: str
) -> None:
    assert message in edgekit("denoise", photo, "-o", tmp_path / "o.png", "--model", bundle, "--sigma", sigma).error()
    assert not (tmp_path / "o.png").exists()


def test_denoise_goes_on_after_an_unreadable_image_and_says_so(
    edgekit: Terminal, bundle: Path, photo: Path, tmp_path: Path
) -> None:
    source = tmp_path / "in"
    source.mkdir()
    (source / "a.png").write_bytes(b"no image")
    shutil.copy(photo, source / "b.png")
    said = edgekit("denoise", source, "-o", tmp_path / "out", "--model", bundle, "--sigma", "10")
    assert said.code == 2
    skipped, summary = said.err.splitlines()
    assert skipped.startswith(f"skipped: {source / 'a.png'} cannot be read")
    assert summary.startswith("error: skipped 1 of 2 images, the first: ")
    assert files(tmp_path / "out") == {"b.png"}


def test_denoise_says_that_a_blind_bundle_ignores_a_level(
    edgekit: Terminal, bundle: Path, photo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Denoiser, "sigma_range", None)
    monkeypatch.setattr(Denoiser, "many", lambda self, jobs: (image for image, _ in jobs))
    words = ["denoise", photo, "--model", bundle, "-o", tmp_path / "o.png"]
    assert edgekit(*words).err == ""
    told = "is ignored: golden-tiny is blind, it takes no noise level"
    assert edgekit(*words, "--force", "--sigma", "40").err == f"note: --sigma 40 {told}\n"
    line = edgekit(*words, "--force", "--iso", "1600").error()
    assert line == "iso is 1600, but golden-tiny has no table of ISO and sigma, and is blind: leave it out"
    table = tmp_path / "table.edgekit"
    shutil.copytree(bundle, table)
    edit_manifest(table, lambda data: data.update(iso_sigma={"100": 2.0, "1600": 8.0}))
    words[3] = table
    assert edgekit(*words, "--force", "--iso", "1600").err == f"note: --iso 1600 {told}\n"
    assert "table reaches from 100 to 1600" in edgekit(*words, "--force", "--iso", "3200").error()


@pytest.mark.parametrize(
    ("source", "out", "message"),
    [
        ("none.png", "o.png", "no image at"),
        ("photo.png", "o.xyz", "has the suffix '.xyz': expected one of .png"),
        ("empty", "o", "no images in"),
        ("photo.png", "photo.png/o.png", "photo.png, which is a file"),
    ],
)
def test_denoise_with_wrong_paths(
    edgekit: Terminal, bundle: Path, photo: Path, tmp_path: Path, source: str, out: str, message: str
) -> None:
    (tmp_path / "empty").mkdir()
    before = files(tmp_path)
    line = edgekit("denoise", tmp_path / source, "-o", tmp_path / out, "--model", bundle, "--sigma", 20).error()
    assert message in line
    assert files(tmp_path) == before


def test_denoise_without_a_bundle(edgekit: Terminal, photo: Path, tmp_path: Path) -> None:
    line = edgekit("denoise", photo, "-o", tmp_path / "o.png", "--model", tmp_path / "none").error()
    assert line == f"no bundle at {tmp_path / 'none'}: expected a folder or zip that `edgekit compress` wrote"


# --- compress and train


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "target is missing: give it in the recipe or with --target TARGET"),
        (
            ["--target", "tflit"],
            "unknown target 'tflit': expected one of all, openvino, tensorrt, tflite (did you mean 'tflite'?)",
        ),
        (["--tile", "big"], "tile is 'big': expected a whole number"),
        (["--prune", "0.95"], "prune is '0.95': expected a number from 0 to 0.9"),
        (["--prune", "-1"], "prune is '-1': expected a number from 0 to 0.9"),
        (["--sigma", "0-55"], "sigma is '0-55': expected LOW:HIGH in 8-bit units, 0 to 255, e.g. 0:55"),
        (["--precision", "int4"], "precision is 'int4': expected 'int8', 'fp16' or 'fp32'"),
        (["--max-drop", "none"], "max_drop is 'none': expected a number"),
        (["--steps", "-5"], "steps is '-5': expected a whole number at least 0"),
        (["--seed", "x"], "seed is 'x': expected a whole number"),
        (["--model", "unett"], "unknown model 'unett'"),
        (["--model", "unett", "--dry-run"], "unknown model 'unett'"),
        (["--model", "dncnn-25"], "model 'dncnn-25' comes without weights"),
        (["--teacher", "unett"], "unknown teacher 'unett'"),
        (["--weights", "none.safetensors"], "weights 'none.safetensors': no such file"),
        (["--recipe", "none.yaml"], "cannot read the recipe 'none.yaml': No such file or directory"),
        (["--data", "nowhere"], "nowhere"),
    ],
)
def test_compress_refuses_wrong_flags(edgekit: Terminal, tmp_path: Path, words: list[str], message: str) -> None:
    target = [] if not words or "--target" in words else ["--target", "tflite"]
    line = edgekit("compress", *target, *words, "--out", tmp_path / "build").error()
    assert message in line
    assert not (tmp_path / "build").exists()


def test_compress_never_overwrites_unless_forced(edgekit: Terminal, tmp_path: Path) -> None:
    (tmp_path / "dsunet-s-tflite.edgekit").mkdir()
    line = edgekit("compress", "--target", "tflite", "--out", tmp_path).error()
    assert "dsunet-s-tflite.edgekit exists: give --force to replace it" in line
    assert files(tmp_path) == set()


def test_dry_run_shows_stages_settings_and_time_and_writes_nothing(
    edgekit: Terminal, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    said = edgekit("compress", "--target", "tflite", "--prune", "0.3", "--steps", "30", "--dry-run")
    assert said.code == 0
    stages = [line.split()[0] for line in said.out.splitlines() if line.strip()]
    assert [s for s in stages if s in ("prune", "distill", "quantize", "export")] == [
        "prune",
        "distill",
        "quantize",
        "export",
    ]
    assert "ratio 0.3" in said.out
    assert "min on two cores; nothing was written" in said.out
    assert list(tmp_path.iterdir()) == []


def test_compress_ends_in_the_stages_and_the_verdict(
    edgekit: Terminal, bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: dict[str, Any] = {}

    def compress(recipe: Recipe, **options: object) -> object:
        seen.update(recipe=recipe, **options)
        seen["on_verdict"](check(bundle))
        return [read(bundle)]

    monkeypatch.setattr(pipeline, "compress", compress)
    said = edgekit(
        "compress", "--target", "tflite", "--sigma", "5:50", "--max-drop", "0.3", "--out", tmp_path, "--resume"
    )
    assert said.code == 0
    assert (seen["recipe"].sigma, seen["recipe"].max_drop) == ((5, 50), 0.3)
    assert (seen["out"], seen["force"], seen["resume"]) == (tmp_path, False, True)
    assert "removed 29% of MACs" in said.out
    assert said.out.splitlines()[-1].startswith("PASS  FP32 ")
    assert said.out.endswith(f"  -> {bundle}\n")


def _raise(error: BaseException) -> object:
    def stage(*_: object, **__: object) -> NoReturn:
        raise error

    return stage


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (KeyboardInterrupt(), 130, "interrupted: add --resume to go on from the last checkpoint, if there was one"),
        (OSError(errno.ENOSPC, "No space left on device", "build/x"), 2, "error: disk full while writing build/x"),
        (PermissionError(errno.EACCES, "Permission denied", "build"), 2, "error: build: Permission denied"),
        (MemoryError(), 2, "error: out of memory"),
        (ModuleNotFoundError("No module named 'torchao.x'", name="torchao.x"), 2, "error: compress needs torchao"),
    ],
)
def test_what_goes_wrong_outside_is_one_line_too(
    edgekit: Terminal, monkeypatch: pytest.MonkeyPatch, error: BaseException, code: int, line: str
) -> None:
    monkeypatch.setattr(pipeline, "compress", _raise(error))
    said = edgekit("compress", "--target", "tflite")
    assert said.code == code
    assert said.err.startswith(line)
    assert said.err.count("\n") == 1


_WAITING = """
import sys, time
from edgekit import pipeline
from edgekit.cli.outcome import run

def wait(*_, **__):
    print("waiting", flush=True)
    time.sleep(600)

pipeline.compress = wait
sys.exit(run(["compress", "--target", "tflite"]))
"""


def test_sigterm_is_answered_by_a_line() -> None:
    with subprocess.Popen(
        [sys.executable, "-c", _WAITING], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "waiting\n"
        process.terminate()
        _, said = process.communicate(timeout=60)
    assert process.returncode == 143
    assert said.splitlines()[-1] == "terminated: add --resume to go on from the last checkpoint, if there was one"
    assert "Traceback" not in said


def test_a_defect_keeps_its_traceback(edgekit: Terminal, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipeline, "compress", _raise(ZeroDivisionError("a defect")))
    with pytest.raises(ZeroDivisionError):
        edgekit("compress", "--target", "tflite")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "which model? Name one"),
        (["dsunet-x"], "unknown model 'dsunet-x'"),
        (["dsunet-s", "--steps", "0"], "train.steps is '0': expected a whole number above 0"),
        (["dsunet-s", "--channels", "2"], "channels is 2: expected 1 or 3"),
        (["dsunet-s", "--sigma", "a:b"], "train.noise.sigma is 'a:b': expected LOW:HIGH"),
        (["dsunet-s", "--data", "nowhere"], "data folder 'nowhere' does not exist"),
        (["dsunet-s", "--weights", "nothing"], "unknown weights 'nothing'"),
    ],
)
def test_train_refuses_wrong_flags(edgekit: Terminal, tmp_path: Path, words: list[str], message: str) -> None:
    assert message in edgekit("train", *words, "--out", tmp_path / "run").error()
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("words", [["compress", "--target", "tflite"], ["train", "dsunet-n"], ["finetune", "x"]])
def test_resume_and_force_contradict_each_other(edgekit: Terminal, words: list[str]) -> None:
    line = edgekit(*words, "--resume", "--force").error()
    assert line == "--resume goes on with what is there, --force starts over: give one of them"


def test_train_ends_in_a_row_a_noise_level(edgekit: Terminal, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scores = {"psnr_5": 38.123, "ssim_5": 0.95, "psnr_25": 30.9, "ssim_25": 0.87654}
    done = SimpleNamespace(first=True, scores=scores, steps=2, seconds=60.0, path=tmp_path / "model.safetensors")
    monkeypatch.setattr(api, "train", lambda *_, **__: done)
    lines = [line.split() for line in edgekit("train", "dsunet-n").out.splitlines()]
    assert ["sigma", "PSNR", "SSIM"] in lines
    assert ["5", "38.12", "0.9500"] in lines
    assert ["25", "30.90", "0.8765"] in lines


def test_train_refuses_a_level_for_pairs(edgekit: Terminal, tmp_path: Path) -> None:
    (tmp_path / "pairs" / "noisy").mkdir(parents=True)
    said = edgekit("train", "dsunet-s", "--data", tmp_path / "pairs", "--sigma", "0:20", "--out", tmp_path / "run")
    assert "pairs: its pairs bring their own noise; leave it out" in said.error()
    assert not (tmp_path / "run").exists()


def test_train_writes_weights_and_a_recipe_that_trains_them_again(edgekit: Terminal, tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    for i, image in enumerate(scenes(3, 48, seed=1)):
        Image.fromarray(image).save(data / f"{i}.png")
    flags = [
        "--steps",
        2,
        "--batch",
        1,
        "--patch",
        16,
        "--precision",
        "32-true",
        "--accelerator",
        "cpu",
        "--sigma",
        "5:50",
    ]
    said = edgekit("train", "dsunet-n", "--data", data, "--out", tmp_path / "a", *flags)
    assert (said.code, said.err) == (0, "")
    assert said.out.rstrip().endswith(f"-> {tmp_path / 'a' / 'model.safetensors'}")
    assert edgekit("train", "--recipe", tmp_path / "a" / "recipe.yaml", "--out", tmp_path / "b").code == 0
    again = (tmp_path / "b" / "model.safetensors").read_bytes()
    assert again == (tmp_path / "a" / "model.safetensors").read_bytes()
    assert (
        "already holds a training run" in edgekit("train", "dsunet-n", "--data", data, "--out", tmp_path / "a").error()
    )


# --- lint, models and doctor


def test_lint_passes_or_names_what_is_refused(edgekit: Terminal, monkeypatch: pytest.MonkeyPatch) -> None:
    from edgekit.targets import gpu_delegate
    from edgekit.targets.gpu_delegate import Refusal

    monkeypatch.setattr(gpu_delegate, "refusals", lambda model: ())
    said = edgekit("lint", "dsunet-gpu-s")
    assert said.code == 0
    assert said.out.strip() == "PASS  dsunet-gpu-s: every operator is on the list of LiteRT's GPU delegate"
    refusal = Refusal("DEPTH_TO_SPACE", "tail", "is not on its list", "a transposed convolution")
    monkeypatch.setattr(gpu_delegate, "refusals", lambda model: (refusal, refusal))
    # Weights with a name of their own are those of a model.
    said = edgekit("lint", "dsunet-s-free", "--delegate", "gpu")
    assert said.code == 1
    assert all(word in said.out for word in ("DEPTH_TO_SPACE", "tail", "a transposed convolution"))
    assert "FAIL  dsunet-s-free: 2 operators that LiteRT's GPU delegate leaves to the CPU" in said.out


def test_lint_names_what_it_does_not_know(edgekit: Terminal) -> None:
    assert "unknown delegate 'npu': expected one of gpu" in edgekit("lint", "dsunet-s", "--delegate", "npu").error()
    assert "unknown model 'dsunet-x': expected one of" in edgekit("lint", "dsunet-x").error()


@pytest.mark.parametrize("name", ["bundle", "none.tflite"])
def test_lint_of_what_is_exported_says_where_to_look(edgekit: Terminal, bundle: Path, name: str) -> None:
    line = edgekit("lint", bundle if name == "bundle" else name).error()
    assert "lint takes models and networks of your own, before training; `edgekit inspect BUNDLE` shows" in line


@pytest.mark.parametrize("width", [40, 60, 80])
def test_a_narrow_table_keeps_names_and_numbers_whole(width: int) -> None:
    rows = [["dsunet-s-camera", "1,287,180", "a few words that may be wrapped where there is no room for them"]]
    screen = Console(width=width, record=True, file=StringIO())
    show.put(screen, show.table(["model", "parameters", "what"], rows, right="parameters"))
    assert any(line.split()[:2] == ["dsunet-s-camera", "1,287,180"] for line in screen.export_text().splitlines())


def test_a_narrow_table_keeps_its_last_column() -> None:
    columns = ["layer", "operator", "computes in", "dB its integers cost"]
    rows = [["middle.0.depthwise", "DEPTHWISE_CONV_2D", "int8", "0.079"]]
    screen = Console(width=50, record=True, file=StringIO())
    show.put(screen, show.table(columns, rows, right="dB its integers cost"))
    told = screen.export_text()
    assert {"dB", "its", "integers", "cost", "0.079"} <= set(told.split())
    assert max(map(len, told.splitlines())) <= 50


def test_a_title_keeps_its_path_over_a_narrow_table() -> None:
    place = "/data/of/somebody/with/deep/folders/" + "photographs/" * 8
    for out in (screen(40), Console(width=40, file=StringIO())):
        show.put(out, show.table(["", "dB"], [["a", "31.10"]], title=f"dB, means over 2 images of {place}", right="dB"))
        told = shown(out)
        assert any(line.endswith(place) for line in told)
        assert any(line.split() == ["a", "31.10"] for line in told)
    # In a file the title is one line.
    assert told[0] == f"dB, means over 2 images of {place}"


class Screen(StringIO):
    """What a terminal is written."""

    def isatty(self) -> bool:
        return True


def screen(width: int) -> Console:
    return Console(width=width, file=Screen(), color_system=None, highlight=False)


def shown(console: Console) -> list[str]:
    assert isinstance(console.file, StringIO)
    return console.file.getvalue().splitlines()


def test_a_line_is_wrapped_between_words_on_a_terminal_alone() -> None:
    text, place = "PASS  FP32 30.71 dB  INT8 30.62 dB (total -0.09)", "/builds/of today/dsunet-s-tflite.edgekit"
    narrow, file = screen(24), Console(width=24, file=StringIO())
    show.line(narrow, text, place)
    show.line(file, text, place)
    assert shown(narrow) == ["PASS  FP32 30.71 dB", "INT8 30.62 dB (total", "-0.09)", f"-> {place}"]
    assert shown(file) == [f"{text}  -> {place}"]
    wide = screen(200)
    show.line(wide, text, place)
    show.line(wide, "", place)
    assert shown(wide) == [f"{text}  -> {place}", f"-> {place}"]


def test_a_wrapped_line_keeps_its_colours() -> None:
    text = Text("FAIL  a reason of some words")
    text.stylize("red", 0, 4)
    first, *rest = show._wrapped(text, 12)
    assert (first.plain, [(s.start, s.end) for s in first.spans]) == ("FAIL  a", [(0, 4)])
    assert [(part.plain, part.spans) for part in rest] == [("reason of", []), ("some words", [])]


def timed(bundle: str, name: str, target: str, variant: str) -> Timed:
    return Timed(
        bundle, name, target, variant, "litert", "ai-edge-litert 2.3.0", "xnnpack", 2, 30, 1234.56, 1334.56, 1434.56,
        216225, 5709.6, 5601.2, 0.18, "fp32", 12.34, 123_400_000, 1.0, None,
    )  # fmt: skip


@pytest.mark.parametrize("width", [80, 200])
def test_bench_keeps_every_figure_whole(width: int) -> None:
    paths = [f"build/dsunet-s-camera-{target}.edgekit" for target in ("tflite", "openvino")]
    entries = [
        timed(path, "dsunet-s-camera", path.split("-")[-1].removesuffix(".edgekit"), variant)
        for path in paths
        for variant in ("int8", "fp32")
    ]
    console = screen(width)
    bench._show(console, entries)
    lines = shown(console)
    assert max(map(len, lines)) <= width
    for entry in entries:
        told = " ".join(" ".join(line for line in lines if entry.variant in line).split())
        assert all(word in told for word in ("1234.56", "1334.56", "1434.56", "5709.6", "12.34x fp32", "123.4"))
    said = " ".join(" ".join(lines).split())
    words = ["tflite", "openvino", "ai-edge-litert 2.3.0 (xnnpack)", "0.18", "5601.2", "100%"]
    assert [word for word in words if word not in said] == []
    assert said.count("1234.56") == 4


def test_bench_numbers_two_builds_of_one_model() -> None:
    console = screen(80)
    bench._show(console, [timed(f"{folder}/n.edgekit", "n", "tflite", "int8") for folder in "ab"])
    lines = shown(console)
    assert [line.split()[:3] for line in lines if "1234.56" in line] == [[f"{n}:", "int8", "1234.56"] for n in (1, 2)]
    assert any(line.startswith("2: int8: b/n.edgekit, tflite, ") for line in lines)


def test_training_weights_by_their_name_says_how(edgekit: Terminal, tmp_path: Path) -> None:
    said = edgekit("train", "dsunet-s-free", "--out", tmp_path / "run")
    assert "dsunet-s-free is a set of weights of the model dsunet-s: edgekit train dsunet-s --weights" in said.error()
    assert not (tmp_path / "run").exists()


def test_compress_without_a_target_names_one(edgekit: Terminal) -> None:
    assert "with --target TARGET, e.g. --target tflite" in edgekit("compress").error()


def test_models_lists_every_model_with_its_cost(edgekit: Terminal) -> None:
    from edgekit.models import create, names

    said = edgekit("models")
    assert said.code == 0
    first, second = said.out.split("Weights that ship")
    rows = {line.split()[0]: line for line in first.splitlines() if line.strip()}
    assert set(names()) <= set(rows)
    assert "dsunet-s-free" not in rows
    assert ("RGB, blind" in rows["edsr-s"], "and all" in rows["nafnet-width8"]) == (True, True)
    # No name is broken over two lines, and every licence is told.
    terms = {line.split()[0]: line for line in second.splitlines() if line.strip()}
    assert {"dsunet-s", "dsunet-s-free"} <= set(terms)
    assert terms["dsunet-s-free"].split()[1] == "dsunet-s"
    assert "non-commercial" in terms["dsunet-s"]
    assert " any " in terms["dsunet-s-free"]
    assert f"{create('dsunet-n').parameter_count():,}" in rows["dsunet-n"]


def test_doctor_names_the_engine_in_use(edgekit: Terminal) -> None:
    from edgekit.runtime.engines.registry import available

    said = edgekit("doctor")
    assert said.code == 0
    assert str(available()["litert"].library) in said.out
