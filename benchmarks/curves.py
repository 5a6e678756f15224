"""Training curves of the shipped weights, from the logs beside them: docs/images/training.svg.

PSNR at sigma 25 on held-out images of the training set, input and output clipped, over the steps. The sets differ: what
was trained without photographs is held against generated images too, and gray images are another task than colour.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

# So that `python benchmarks/curves.py` finds its neighbours as `python -m benchmarks.curves` does.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.console import leave, say
from benchmarks.sets import ROOT
from edgekit.errors import DataError
from edgekit.models.checkpoints import write_atomically
from edgekit.profile.chart import COLOURS

LOGS = ROOT / "edgekit" / "models" / "weights"
OUT = ROOT / "docs" / "images" / "training.svg"
_WIDTH, _HEIGHT, _LEFT, _RIGHT, _TOP, _BELOW = 760, 400, 48, 120, 16, 44
# Steps and dB.
Curve = list[tuple[int, float]]


def main(arguments: Sequence[str]) -> int:
    """Draw the chart, and print where each curve ends and how steep it is there."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.curves", description=__doc__)
    parser.add_argument("--logs", type=Path, default=LOGS, help="folder of *.log.jsonl")
    parser.add_argument("--out", type=Path, default=OUT)
    options = parser.parse_args(arguments)
    curves = read(options.logs)
    for name, curve in curves.items():
        (before, low), (last, high) = curve[-2:]
        say(f"{name}: {high:.2f} dB after {last:,} steps, {high - low:+.3f} dB since step {before:,}")
    options.out.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(options.out, draw(curves).encode())
    say(f"written to {options.out}")
    return 0


def read(folder: Path) -> dict[str, Curve]:
    """The curve of each log that has one, the highest end first. Raises: DataError: none has two points."""
    found = {}
    for path in sorted(folder.glob("*.log.jsonl")):
        curve, done, part, last = [], 0, None, 0
        for line in path.read_text().splitlines():
            record = json.loads(line)
            # Weights that went on from weights: each part counts its steps anew.
            if record.get("part") != part:
                done, part = done + last, record.get("part")
            last = record["step"]
            if "psnr_25" in record:
                curve.append((done + last, float(record["psnr_25"])))
        if len(curve) > 1:
            found[path.name.removesuffix(".log.jsonl")] = curve
    if not found:
        raise DataError(f"{folder} holds no *.log.jsonl with two validations at sigma 25")
    return dict(sorted(found.items(), key=lambda item: -item[1][-1][1]))


def draw(curves: Mapping[str, Curve]) -> str:
    """The chart as SVG; steps on a logarithmic axis."""
    steps = [step for curve in curves.values() for step, _ in curve]
    levels = [level for curve in curves.values() for _, level in curve]
    left, right = math.log(min(steps)), math.log(max(steps))
    low = math.floor(2 * min(levels)) / 2
    high = max(math.ceil(2 * max(levels)) / 2, low + 0.5)

    def place(step: float, level: float) -> tuple[float, float]:
        across = (math.log(step) - left) / max(right - left, 1e-9)
        up = (level - low) / (high - low)
        inner = _WIDTH - _LEFT - _RIGHT, _HEIGHT - _TOP - _BELOW
        return round(_LEFT + across * inner[0], 1), round(_TOP + (1 - up) * inner[1], 1)

    parts = []
    for k in range(round((high - low) * 2) + 1):
        (x0, y), (x1, _) = place(min(steps), low + k / 2), place(max(steps), low)
        parts.append(f'<line x1="{x0}" y1="{y}" x2="{x1}" y2="{y}" stroke="#e3e8ee"/>')
        parts.append(f'<text x="{x0 - 8}" y="{y + 4}" text-anchor="end">{low + k / 2:.1f}</text>')
    for step in (m * 10**e for e in range(2, 7) for m in (1, 2, 5)):
        if min(steps) <= step <= max(steps):
            x, y = place(step, low)
            parts.append(f'<text x="{x}" y="{y + 18}" text-anchor="middle">{step:,}</text>')
    parts.append(f'<text x="{_LEFT}" y="{_HEIGHT - 6}">steps of training; dB at sigma 25 on held-out images</text>')
    free = -math.inf
    for k, (name, curve) in enumerate(curves.items()):
        colour = COLOURS[k % len(COLOURS)]
        points = [place(*point) for point in curve]
        parts.append(f'<polyline points="{" ".join(f"{x},{y}" for x, y in points)}" fill="none" stroke="{colour}"/>')
        parts += [f'<circle cx="{x}" cy="{y}" r="2.4" fill="{colour}"/>' for x, y in points]
        # Names stand below each other, however close the curves end.
        free = max(free + 15, points[-1][1] + 4)
        parts.append(f'<text x="{_WIDTH - _RIGHT + 12}" y="{free}" fill="{colour}">{name}</text>')
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" width="{_WIDTH}" font-size="12" '
        f'fill="#5d6b7c" font-family="system-ui, sans-serif"><title>Training curves of the shipped weights</title>'
        f'<rect width="{_WIDTH}" height="{_HEIGHT}" fill="#ffffff"/>{"".join(parts)}</svg>\n'
    )


if __name__ == "__main__":
    leave(main)
