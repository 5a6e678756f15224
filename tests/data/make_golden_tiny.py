"""Makes golden-tiny.*.tflite and golden-tiny.json: a denoiser just large enough to try a bundle's check on.

    python tests/data/make_golden_tiny.py

Needs the extras train and tflite, takes five minutes. The weights are drawn and trained from a fixed seed, on images
made here; another machine's arithmetic may give other bytes, so the files are committed.
"""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from golden_bundle import TILE, scenes

from edgekit.compress.batches import Batch
from edgekit.compress.quantize import quantize
from edgekit.models import registry
from edgekit.models.base import DenoiserModel
from edgekit.recipe import QuantizeSettings
from edgekit.targets.tflite import TFLite

HERE = Path(__file__).parent
STEPS = 2500


def train() -> DenoiserModel:
    torch.manual_seed(0)
    torch.set_num_threads(1)
    model = registry.create("dsunet-n", widths=[8, 16], encoder=[[]], middle=[24], decoder=[[]])
    images = torch.from_numpy(scenes(48, 96, seed=1)).permute(0, 3, 1, 2).float() / 255
    optimizer = torch.optim.AdamW(model.parameters(), 4e-3, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, STEPS)
    random = torch.Generator().manual_seed(2)
    for step in range(STEPS):
        pick = torch.randint(len(images), (8,), generator=random)
        y, x = (int(v) for v in torch.randint(0, 96 - 48 + 1, (2,), generator=random))
        clean = images[pick, :, y : y + 48, x : x + 48]
        sigma = torch.rand(8, generator=random) * 55 / 255
        noisy = clean + sigma[:, None, None, None] * torch.randn(clean.shape, generator=random)
        noisy = (noisy.clamp(0, 1) * 255).round() / 255
        loss = ((model(noisy, sigma) - clean).abs().mean((1, 2, 3)) / (sigma + 5 / 255)).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if step % 250 == 0:
            print(step, f"{loss.item():.4f}", flush=True)
    return model.eval()


def export(model: DenoiserModel) -> None:
    def batch(step: int) -> Batch:
        random = torch.Generator().manual_seed(1000 + step)
        clean = torch.from_numpy(scenes(8, 48, seed=1000 + step)).permute(0, 3, 1, 2).float() / 255
        sigma = torch.rand(8, generator=random) * 55 / 255
        noisy = clean + sigma[:, None, None, None] * torch.randn(clean.shape, generator=random)
        return Batch(clean, (noisy.clamp(0, 1) * 255).round() / 255, sigma)

    target = TFLite()
    settings = QuantizeSettings(steps=600)
    program, record = quantize(
        model,
        target.scheme(),
        settings,
        batch,
        scenes(8, TILE, seed=4),
        sigma_range=(0.0, 55 / 255),
        progress=print_progress,
    )
    print(record.db_before, record.db_after)
    with tempfile.TemporaryDirectory() as folder:
        lowered = target.lower(model, program, Path(folder), name="golden-tiny", tile=TILE, precision="int8")
        kept = [v for v in lowered.variants if v.name != "fp16"]
        for variant in kept:
            shutil.copyfile(Path(folder) / variant.file, HERE / variant.file)
    facts = {"variants": [asdict(v) for v in kept], "layers": [asdict(layer) for layer in lowered.layers]}
    (HERE / "golden-tiny.json").write_text(json.dumps(facts, indent=1) + "\n")


def print_progress(done: int, total: int, text: str = "") -> None:
    if done % 100 == 0:
        print(done, total, text, flush=True)


if __name__ == "__main__":
    export(train())
