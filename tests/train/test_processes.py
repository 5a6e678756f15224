"""Several processes: they take the steps of one, a run changes hands between them, and who is gone is named."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from killing import Killed, kill_at
from PIL import Image

from edgekit import api
from edgekit.errors import RecipeError
from edgekit.recipe import TrainRecipe, TrainSettings
from edgekit.train import processes
from edgekit.train.dead_leaves import dead_leaves
from edgekit.train.journal import read_log
from edgekit.train.processes import as_launched
from edgekit.train.run import train
from edgekit.train.sampling import batches

# A launch imports torch in every process, which takes many seconds where two cores are shared.
pytestmark = pytest.mark.timeout(300)
_LIMIT = 120
_BATCH = 6
_STEPS = 8

# `edgekit train` of which one rank comes to harm before step 5.
_HARMED = """
import os, signal, time
from edgekit.cli import main
from edgekit.train import loop

real = loop._Run.one_step

def one_step(run, parts):
    if run.step == 5 and run.fabric.global_rank == 1:
        {harm}
    return real(run, parts)

loop._Run.one_step = one_step
main()
"""

_DIGESTS = """
import sys, edgekit
from edgekit.train.state import weights_digest

trained = edgekit.train(recipe="recipe.yaml", settings={"batch": 3}, out="run", resume=True)
print("weights", weights_digest(trained.model), trained.first)
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with images, a recipe, and what one process makes of it."""
    folder = tmp_path_factory.mktemp("processes")
    (folder / "data").mkdir()
    for k in range(4):
        leaves = dead_leaves(48, np.random.default_rng(k), smallest=4)
        Image.fromarray(leaves).save(folder / "data" / f"{k}.png")
    settings = {
        "steps": _STEPS, "batch": _BATCH, "patch": 32, "warmup": 1, "precision": "32-true", "accelerator": "cpu",
        # Muon, clipped at every step, two parts a step, and an average that moves: all of it must survive the split.
        "optimizer": "muon", "clip_norm": 1e-3, "accumulate": 2, "ema": 0.9, "save_every": 2, "validate_every": 8,
    }  # fmt: skip
    recipe = {"model": "dsunet-n", "data": str(folder / "data"), "train": settings}
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    alone(folder, folder / "whole")
    return folder


def alone(place: Path, out: Path, **options: Any) -> None:
    recipe = TrainRecipe.model_validate(yaml.safe_load((place / "recipe.yaml").read_text()))
    train(recipe.model, recipe.data, recipe.train, out, **options)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture
def torchrun(place: Path) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Starts torchrun beside the recipe; what still runs at the end is ended."""
    started: list[subprocess.Popen[str]] = []

    def start(*words: object) -> subprocess.Popen[str]:
        clean = {k: v for k, v in os.environ.items() if k not in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR")}
        started.append(
            subprocess.Popen(
                [sys.executable, "-m", "torch.distributed.run", *map(str, words)],
                cwd=place,
                env={**clean, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"},
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
        )
        return started[-1]

    yield start
    for process in started:
        if process.poll() is None:
            process.terminate()
            try:
                process.wait(35)
            except subprocess.TimeoutExpired:
                process.kill()


def state(run: Path) -> dict[str, Any]:
    loaded: dict[str, Any] = torch.load(run / "last.ckpt", weights_only=True)
    return loaded


def assert_same_run(run: Path, whole: Path) -> None:
    """The same loss curve and weights, but for the order in which float32 gradients are summed (1e-7 a step)."""
    for record, expected in zip(read_log(run / "log.jsonl"), read_log(whole / "log.jsonl"), strict=True):
        assert record["step"] == expected["step"]
        assert record["loss"] == pytest.approx(expected["loss"], rel=1e-5)
        assert record.get("psnr_25") == pytest.approx(expected.get("psnr_25"), abs=2e-3)
    for part in ("model", "ema"):
        for name, value in state(run)[part].items():
            # A Newton-Schulz step makes small singular values large, and so their rounding.
            torch.testing.assert_close(value, state(whole)[part][name], rtol=1e-3, atol=2e-5, msg=f"{part} {name}")


def test_two_nodes_have_the_loss_curve_of_one_process(place: Path, torchrun: Callable[..., Any]) -> None:
    # As docs/training.md has it, both nodes being this machine.
    nodes = [
        torchrun(
            *("--nnodes", 2, "--nproc-per-node", 1, "--node-rank", rank, "--master-addr", "127.0.0.1"),
            *("--master-port", port, "-m", "edgekit", "train", "--recipe", "recipe.yaml", "--batch", 3),
            *("--out", "two", "--resume"),
        )
        for port in [free_port()]
        for rank in (0, 1)
    ]
    said = [node.communicate(timeout=_LIMIT)[0] for node in nodes]
    assert [node.returncode for node in nodes] == [0, 0], said
    assert_same_run(place / "two", place / "whole")
    # One of them reports.
    assert [text.count("model.safetensors") for text in said] == [1, 0]
    recipe = yaml.safe_load((place / "two" / "recipe.yaml").read_text())
    assert (recipe["train"]["batch"], recipe["train"]["num_nodes"]) == (3, 2)


def test_parts_on_two_processes_are_those_of_one(place: Path, torchrun: Callable[..., Any]) -> None:
    recipe = yaml.safe_load((place / "recipe.yaml").read_text())
    recipe["train"]["batch"] = 3
    (place / "parts.yaml").write_text(yaml.safe_dump({**recipe, "parts": [{"steps": 2}, {"steps": 4, "seed": 5}]}))
    api.train(recipe=place / "parts.yaml", settings={"batch": 6}, out=place / "parts-one")
    job = torchrun(
        *("--standalone", "--nproc-per-node", 2, "-m", "edgekit", "train", "--recipe", "parts.yaml"),
        *("--out", "parts-two"),
    )
    said, _ = job.communicate(timeout=_LIMIT)
    assert job.returncode == 0, said
    assert said.count("6 steps in") == 1, said
    for part in ("part-1", "part-2"):
        assert_same_run(place / "parts-two" / part, place / "parts-one" / part)


def test_a_killed_rank_ends_the_job_and_one_process_goes_on(place: Path, torchrun: Callable[..., Any]) -> None:
    (place / "killed.py").write_text(_HARMED.format(harm="os.kill(os.getpid(), signal.SIGKILL)"))
    job = torchrun(
        *("--standalone", "--nproc-per-node", 3, "killed.py", "train", "--recipe", "recipe.yaml", "--batch", 2),
        *("--out", "killed"),
    )
    said, _ = job.communicate(timeout=_LIMIT)
    assert job.returncode != 0
    for rank in (0, 2):
        lines = [line for line in said.splitlines() if line.startswith(f"error: rank {rank} of 3 stopped")]
        assert len(lines) == 1, said
        line = lines[0]
        assert "because rank 1 is gone without a word: killed, out of memory" in line
        assert "the last checkpoint is killed/last.ckpt: start the same command with --resume" in line
    assert state(place / "killed")["step"] == 4
    alone(place, place / "killed", resume=True)
    assert_same_run(place / "killed", place / "whole")


def test_a_rank_that_no_longer_answers_ends_the_job(place: Path, torchrun: Callable[..., Any]) -> None:
    (place / "frozen.py").write_text(
        _HARMED.format(harm="signal.signal(signal.SIGTERM, signal.SIG_DFL); time.sleep(600)")
    )
    recipe = yaml.safe_load((place / "recipe.yaml").read_text())
    recipe["train"] |= {"process_timeout": 6, "batch": 3}
    (place / "frozen.yaml").write_text(yaml.safe_dump(recipe))
    job = torchrun(
        "--standalone", "--nproc-per-node", 2, "frozen.py", "train", "--recipe", "frozen.yaml", "--out", "frozen"
    )
    said, _ = job.communicate(timeout=_LIMIT)
    assert job.returncode != 0
    assert re.search(r"^error: rank 0 of 2 stopped, because rank 1 is gone without a word.*--resume", said, re.M), said


def test_two_processes_go_on_where_one_was_killed(place: Path, torchrun: Callable[..., Any]) -> None:
    with pytest.raises(Killed):
        alone(place, place / "run", progress=kill_at(5))
    (place / "digests.py").write_text(_DIGESTS)
    job = torchrun("--standalone", "--nproc-per-node", 2, "digests.py")
    said, _ = job.communicate(timeout=_LIMIT)
    assert job.returncode == 0, said
    assert_same_run(place / "run", place / "whole")
    # Every process makes the same step of the same gradients: their weights never part.
    digests = re.findall(r"weights (\w+) (True|False)", said)
    assert len(digests) == 2
    assert len({digest for digest, _ in digests}) == 1
    assert {first for _, first in digests} == {"True", "False"}


@pytest.mark.parametrize("noise", ["gaussian", "poisson-gaussian"])
def test_parts_of_a_batch_make_the_batch_of_one_process(place: Path, noise: str) -> None:
    from edgekit.train.images import open_images

    source = open_images(place / "data", patch=16)
    settings = TrainSettings.model_validate({"batch": 2, "patch": 16, "noise": {"model": noise}})
    whole = batches(source, settings.model_copy(update={"batch": 6}))(4)
    parts = [batches(source, settings, rank=rank, world=3)(4) for rank in range(3)]
    for field, value in whole._asdict().items():
        assert torch.equal(torch.cat([getattr(part, field) for part in parts]), value)


def test_another_global_batch_is_not_resumed(place: Path) -> None:
    recipe = TrainRecipe.model_validate(yaml.safe_load((place / "recipe.yaml").read_text()))
    with pytest.raises(RecipeError, match="holds a run with another global batch: 6, now 4; resume it with"):
        train(recipe.model, recipe.data, recipe.train.model_copy(update={"batch": 4}), place / "whole", resume=True)


@pytest.fixture
def launched(monkeypatch: pytest.MonkeyPatch) -> Callable[[int, int], None]:
    def pretend(world: int, here: int) -> None:
        for name, value in (("WORLD_SIZE", world), ("LOCAL_WORLD_SIZE", here), ("TORCHELASTIC_RUN_ID", "test")):
            monkeypatch.setenv(name, str(value))

    return pretend


def test_torchrun_decides_how_many(launched: Callable[[int, int], None]) -> None:
    launched(8, 4)
    found = as_launched(TrainSettings())
    assert (found.devices, found.num_nodes) == (4, 2)
    assert as_launched(TrainSettings(devices=4, num_nodes=2)) == found
    with pytest.raises(RecipeError, match="devices is 2, but torchrun started processes for 4: leave it out"):
        as_launched(TrainSettings(devices=2))
    launched(5, 3)
    with pytest.raises(RecipeError, match="3 processes on this node and 5 in all: expected as many on every node"):
        as_launched(TrainSettings())


def test_several_nodes_need_a_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in processes._LAUNCHED:
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(RecipeError, match="num_nodes is 2, but this process was started alone: start it by torchrun"):
        as_launched(TrainSettings(num_nodes=2))
