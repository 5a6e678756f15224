"""docs/images/compare.png: noisy, FP32 and INT8 side by side, and the difference of the two, amplified.

The image is Chelsea, a photograph in the scikit-image wheel (CC0 by Stefan van der Walt), which no stage is trained on.
"""

from __future__ import annotations

import argparse
import importlib.util
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

# So that `python benchmarks/picture.py` finds its neighbours as `python -m benchmarks.picture` does.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks import results, sets
from benchmarks.console import leave, say
from benchmarks.contestants import STUDENT
from benchmarks.sets import ROOT, Image
from edgekit.errors import MissingExtraError
from edgekit.runtime import denoiser, images
from edgekit.runtime.quality import psnr

SIGMA, AMPLIFIED = 25, 8
FILE = ROOT / "docs" / "images" / "compare.png"
_WHAT = "Chelsea (CC0, from scikit-image; not trained on)"
# Top, left and side of the part that is shown: eyes and fur, edges and texture. Larger ones make a heavy PNG.
_PART = (50, 128, 208)
_GAP, _LABEL = 6, 24


def main(arguments: Sequence[str]) -> int:
    """Make the picture."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.picture", description=__doc__)
    parser.add_argument("--bundle", type=Path, default=ROOT / "build" / f"{STUDENT}-tflite.edgekit")
    parser.add_argument("--out", type=Path, default=FILE)
    parser.add_argument("--results", type=Path, default=results.FOLDER, help="folder that picture.json goes to")
    options = parser.parse_args(arguments)
    clean = _chelsea()
    noisy = sets.to_bytes(sets.noisy(clean, SIGMA, 0))
    shown = {"noisy": noisy}
    found: dict[str, Any] = {"sha256": {}}
    for variant in ("fp32", "int8"):
        with denoiser.open(options.bundle, variant=variant) as opened:
            shown[variant] = opened(noisy, sigma=SIGMA)
            found["sha256"][variant] = opened.manifest.files[opened.variant.file]
    figures = {name: round(psnr(image, clean), 4) for name, image in shown.items()}
    labels = {name: f"{name if name == 'noisy' else name.upper()}  {db:.2f} dB" for name, db in figures.items()}
    panels = [(labels[name], part(image)) for name, image in shown.items()]
    panels.append((f"FP32 - INT8, {AMPLIFIED}x", part(difference(shown["fp32"], shown["int8"], AMPLIFIED))))
    save(compose(panels), options.out)
    file = options.out.relative_to(ROOT).as_posix() if options.out.is_relative_to(ROOT) else str(options.out)
    results.save(
        options.results / "picture.json",
        {
            "what": _WHAT,
            "sigma": SIGMA,
            "amplified": AMPLIFIED,
            "file": file,
            "psnr": figures,
            **found,
            "versions": results.versions(),
        },
    )
    say(f"{options.out}: {options.out.stat().st_size / 1e3:.0f} kB")
    return 0


def _chelsea() -> Image:
    spec = importlib.util.find_spec("skimage")
    if spec is None or spec.origin is None:
        raise MissingExtraError.needs("the picture", "scikit-image", "train")
    return np.asarray(images.load(Path(spec.origin).parent / "data" / "chelsea.png").pixels[..., :3], np.uint8)


def part(image: Image) -> Image:
    """What of an image is shown."""
    top, left, side = _PART
    return image[top : top + side, left : left + side]


def difference(a: Image, b: Image, times: int) -> Image:
    """a - b, amplified, around middle gray; uint8."""
    return sets.to_bytes(128 + times * (a.astype(np.float64) - b))


def compose(panels: Sequence[tuple[str, Image]]) -> Any:
    """Put panels of one size side by side, a label above each, on white. Returns a Pillow image."""
    from PIL import Image as pillow
    from PIL import ImageDraw, ImageFont

    height, width = panels[0][1].shape[:2]
    size = (len(panels) * (width + _GAP) - _GAP, height + _LABEL)
    sheet = pillow.new("RGB", size, "white")
    draw = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(15)
    for place, (label, image) in enumerate(panels):
        left = place * (width + _GAP)
        draw.text((left + width / 2, _LABEL / 2), label, fill="black", font=font, anchor="mm")
        sheet.paste(pillow.fromarray(image), (left, _LABEL))
    return sheet


def save(sheet: Any, path: Path) -> None:
    """Write the picture, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}")
    sheet.save(partial, "PNG", optimize=True)
    partial.replace(path)


if __name__ == "__main__":
    leave(main)
