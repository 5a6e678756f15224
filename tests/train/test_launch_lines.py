"""The command lines that docs and examples give for several machines are ones that torchrun and edgekit take."""

from __future__ import annotations

import re
import shlex
import subprocess
from pathlib import Path

import pytest
import typer
from torch.distributed.run import get_args_parser

from edgekit.cli.app import app

ROOT = Path(__file__).resolve().parents[2]
SLURM = ROOT / "examples" / "slurm" / "train.sbatch"


def torchrun_lines() -> list[str]:
    found = []
    for path in (ROOT / "docs" / "training.md", SLURM):
        text = path.read_text().replace("\\\n", " ")
        found += re.findall(r"^[^#`\n]*?\b(torchrun --.*-m edgekit train .*)$", text, re.M)
    return found


def test_there_are_lines_for_two_nodes_and_for_slurm() -> None:
    assert len(torchrun_lines()) == 3


@pytest.mark.parametrize("line", torchrun_lines(), ids=lambda line: line[-40:])
def test_torchrun_and_edgekit_take_the_line(line: str) -> None:
    words = shlex.split(re.sub(r"\$\w+", "2", line))[1:]
    taken = get_args_parser().parse_args(words)
    assert (taken.module, taken.training_script) == (True, "edgekit")
    assert taken.nnodes == "2"
    command, *flags = taken.training_script_args
    # Parses, and runs nothing.
    known = typer.main.get_command(app).commands[command]  # type: ignore[attr-defined]
    context = known.make_context(command, list(flags))
    assert context.params["model"] == "dsunet-s"
    assert context.params["resume"]


def test_the_job_file_is_bash() -> None:
    subprocess.run(["bash", "-n", str(SLURM)], check=True, timeout=30)
    assert re.search(r"#SBATCH --nodes=2\n", SLURM.read_text())
