"""Which architecture exports to which target, in float and in INT8, and which operators stand in the way.

    python -m benchmarks.exports

Every architecture is lowered for every target with random weights, and the file is run on one tile beside the network
in torch. Operators do not depend on widths, so the smallest preset of each is taken, with every width and number of
blocks cut to 8. INT8 has its ranges from that tile: this is about operators, not about quality.
"""

from __future__ import annotations

import argparse
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks import results
from benchmarks.console import say, show
from benchmarks.tables import export_verdict
from edgekit.bundle.manifest import Variant
from edgekit.compress.program import QuantizedProgram
from edgekit.errors import first_line
from edgekit.models import DenoiserModel, create, names, shipped
from edgekit.runtime import pixels
from edgekit.runtime.engines.registry import open_engine
from edgekit.targets import gpu_delegate, registry
from edgekit.targets.base import Target

PRECISIONS = ("fp32", "int8")
_CUT = 8
_STRIDES = 4
_LEAST_SIDE = 64
# Noise level of the tile, in 8-bit units.
_SIGMA = 25.0


def main(arguments: Sequence[str]) -> int:
    """Run the survey."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.exports", description=__doc__)
    parser.add_argument("--models", nargs="*", default=[], help="architectures to survey anew; else those not done yet")
    parser.add_argument("--out", type=Path, default=results.default("exports", quick=False), help="the JSON file")
    options = parser.parse_args(arguments)
    settings = {"cut": _CUT, "sigma": _SIGMA}
    done = results.kept(options.out, settings).get("rows", [])
    rows = [row for row in done if row["arch"] not in options.models]

    def keep() -> None:
        results.save(options.out, {**results.about(settings), "models": [facts(n) for n in names()], "rows": rows})

    for arch, name in smallest().items():
        if any(row["arch"] == arch for row in rows) or (options.models and arch not in options.models):
            continue
        say(f"{arch}, as {name}")
        rows += exports(arch, cut(name))
        rows.sort(key=lambda row: (row["arch"], row["target"], row["precision"]))
        # Kept after each, so that the same command goes on from there.
        keep()
    # Sizes may be others where no architecture is new.
    keep()
    lines = [[r["arch"], r["target"], r["precision"], export_verdict(r), r["blocks"]] for r in rows]
    show("Exports", ["architecture", "target", "precision", "exports", "what stands in the way"], lines, texts=5)
    return 0


def smallest() -> dict[str, str]:
    """The preset of fewest parameters of each architecture."""
    models = {name: create(name) for name in names()}
    found: dict[str, str] = {}
    for name, model in sorted(models.items(), key=lambda item: item[1].parameter_count()):
        found.setdefault(model.arch, name)
    return dict(sorted(found.items()))


def cut(name: str) -> DenoiserModel:
    """A preset with every number of its configuration cut, and random weights: zeros would be optimised away."""

    def narrow(value: Any) -> Any:
        return [narrow(v) for v in value] if isinstance(value, list) else min(value, _CUT)

    model = create(name, **{key: narrow(value) for key, value in create(name).config().items()}).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in model.parameters():
            spread = (1 / p[0].numel()) ** 0.5 if p.dim() > 1 else 0.1
            p.copy_(spread * torch.randn(p.shape, generator=generator))
    return model


def facts(name: str) -> dict[str, Any]:
    """What docs/models.md says of a model as it is registered."""
    model = create(name)
    return {
        "name": name,
        "arch": model.arch,
        "source": model.source,
        "parameters": model.parameter_count(),
        "macs_per_pixel": round(model.macs_per_pixel(), 1),
        "halo": model.halo,
        "stride": model.stride,
        "channels": model.channels,
        "blind": model.blind,
        "pools_globally": model.pools_globally,
        "weights": name in shipped(),
    }


def exports(arch: str, model: DenoiserModel) -> Iterator[dict[str, Any]]:
    """A row for each target and precision, and one for the GPU delegate."""
    side = max(_STRIDES * model.stride, _LEAST_SIDE // model.stride * model.stride)
    rng = np.random.default_rng(0)
    # Smooth, as images are, and noisy.
    waves = np.sin(np.arange(side) / 9)[:, None, None] + np.sin(np.arange(side) / 7)[None, :, None]
    tile = 0.5 + 0.2 * waves + rng.normal(0, _SIGMA / 255, (side, side, model.channels))
    noisy = np.rint(255 * np.clip(tile, 0, 1)).astype(np.uint8)
    for target in (registry.get(name) for name in registry.names()):
        for precision in PRECISIONS:
            about = {"arch": arch, "target": target.name, "precision": precision}
            yield {**about, **_export(model, target, precision, noisy)}
    try:
        refused = Counter(item.operator for item in gpu_delegate.refusals(model, side))
        found = {"exports": not refused, "blocks": _counted(refused)}
    except Exception as error:  # noqa: BLE001 - as below
        found = {"exports": False, "blocks": first_line(error)}
    yield {"arch": arch, "target": "gpu delegate", "precision": "fp16", **found}


def _export(model: DenoiserModel, target: Target, precision: str, noisy: NDArray[np.uint8]) -> dict[str, Any]:
    try:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            program = None if precision == "fp32" else _observed(model, target, noisy)
            lowered = target.lower(model, program, folder, name="tile", tile=noisy.shape[0], precision=precision)
            variant = lowered.variants[0]
            clean, operators = _run(folder, variant, noisy)
    except Exception as error:  # noqa: BLE001 - every library raises its own: what it says is the finding
        return {"exports": False, "blocks": first_line(error)}
    error_in_levels = float(np.abs(clean.astype(float) - 255 * _in_torch(model, noisy).clip(0, 1)).max())
    whole = sum(layer.macs for layer in lowered.layers)
    floats = Counter(layer.op for layer in lowered.layers if layer.dtype != "int8")
    share = sum(layer.macs for layer in lowered.layers if layer.dtype == "int8") / whole
    left = {op: count.total - count.delegated for op, count in operators.items() if count.total > count.delegated}
    blocks = [f"float: {_counted(floats)}"] if precision == "int8" and floats else []
    blocks += [f"not by XNNPACK: {_counted(left)}"] if left and target.name == "tflite" else []
    return {
        "exports": True,
        "blocks": "; ".join(blocks),
        "int8_share": round(share, 4) if precision == "int8" else None,
        "largest_error": round(error_in_levels, 3),
    }


def _observed(model: DenoiserModel, target: Target, noisy: NDArray[np.uint8]) -> QuantizedProgram:
    program = QuantizedProgram(model, target.scheme(), (0.0, 55 / 255))
    with program.in_float(), torch.no_grad():
        program(_tensor(noisy), torch.tensor([_SIGMA / 255]))
    for bounds in program.ranges:
        bounds.learn()
    return program


def _run(folder: Path, variant: Variant, noisy: NDArray[np.uint8]) -> tuple[NDArray[np.uint8], Mapping[str, Any]]:
    """The tile through the file, and the census of its operators."""
    engine = open_engine(variant, folder / variant.file, 1)
    try:
        feed = {
            spec.name: pixels.encode(noisy, spec) if spec.role == "image" else pixels.encode_sigma(_SIGMA, spec)
            for spec in variant.inputs
        }
        return pixels.decode(engine.run(feed), variant.outputs[0], noisy), engine.operators
    finally:
        engine.close()


def _tensor(noisy: NDArray[np.uint8]) -> torch.Tensor:
    return torch.from_numpy(noisy.astype(np.float32) / 255).permute(2, 0, 1)[None].contiguous()


def _in_torch(model: DenoiserModel, noisy: NDArray[np.uint8]) -> NDArray[np.float64]:
    with torch.no_grad():
        clean = model(_tensor(noisy), torch.tensor([_SIGMA / 255]))[0]
    return clean.permute(1, 2, 0).double().numpy()


def _counted(kinds: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {kind}" for kind, count in sorted(kinds.items()))
