"""What it costs an OpenVINO file to be safe without VNNI, and what it saves: dB on processors with VNNI and without.

x86 processors without VNNI add two products of 8 by 8 bits in 16 bits, which saturates. Here the same network is
exported with weights of 8 bits, of 7 bits, and of 8 bits whose pairs cannot saturate, as the target has them. Golden
tiles are run as oneDNN runs them when it is told to use older instructions: what such a processor gives.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

# So that `python benchmarks/isa.py` finds its neighbours as `python -m benchmarks.isa` does.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks import contestants, results
from benchmarks.console import leave, say, show
from benchmarks.contestants import STUDENT
from benchmarks.exports import export
from edgekit.recipe import QuantizeSettings

ISAS = ("", "AVX512_CORE", "AVX2", "SSE41")
# Weights, by what is changed of the target's scheme.
WEIGHTS: dict[str, dict[str, Any]] = {
    "8 bits": {"paired": False},
    "7 bits": {"paired": False, "weight_bits": 7},
    "8 bits, limited pairs": {},
}
# Of the golden tiles of a bundle: eight of each noise level.
_ALL = 64


def main(arguments: Sequence[str]) -> int:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.isa", description=__doc__)
    parser.add_argument("--steps", type=int, default=QuantizeSettings().steps, help="of QAT; 0 is calibration alone")
    parser.add_argument("--tile", type=int, default=512)
    parser.add_argument("--out", type=Path, default=results.FOLDER / "isa.json")
    options = parser.parse_args(arguments)
    contestant = contestants.load(STUDENT, weights={})
    rows: list[dict[str, Any]] = []
    for kind, changes in WEIGHTS.items():
        say(f"weights of {kind}: {options.steps} steps of QAT, or an earlier export")
        bundle = export(contestant, options.tile, target="openvino", steps=options.steps, changes=changes, tiles=_ALL)
        with bundle:
            for isa in ISAS:
                rows.append({"weights": kind, "isa": isa or "default", "psnr": _run(bundle.folder, isa)})
    found = {"settings": vars(options) | {"out": str(options.out.name)}, "machine": results.machine()}
    results.save(options.out, {**found, "versions": results.versions(), "rows": rows})
    levels = list(rows[0]["psnr"])
    lines = [[r["weights"], r["isa"], *(f"{r['psnr'][s]:.2f}" for s in levels)] for r in rows]
    show("dB against clean, by processor", ["weights", "as", *(f"sigma {s}" for s in levels)], lines, texts=2)
    return 0


def _run(folder: Path, isa: str) -> dict[str, float]:
    """dB by noise level. oneDNN reads the variable once, when it is loaded: a process each."""
    environment = {**os.environ, **({"ONEDNN_MAX_CPU_ISA": isa} if isa else {})}
    command = [sys.executable, "-m", "edgekit", "check", str(folder), "--json"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    return {f"{row['sigma']:g}": round(row["device"], 4) for row in json.loads(done.stdout)["rows"]}


if __name__ == "__main__":
    leave(main)
