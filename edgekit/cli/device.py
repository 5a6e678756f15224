"""check and inspect: a bundle, looked at."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.text import Text

from edgekit.bundle.manifest import Manifest
from edgekit.cli import show


def check(
    bundle: Annotated[Path, typer.Argument(metavar="BUNDLE", help="Folder or zip that `edgekit compress` wrote.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print the verdict as JSON and nothing else.")] = False,
) -> None:
    """Run a bundle's golden tiles here: exit 0 if it PASSes, 1 if it FAILs."""
    from edgekit.runtime.check import check as judge

    found = judge(bundle)
    if as_json:
        print(json.dumps(found.to_dict(), indent=2))
    else:
        screen = show.console()
        screen.print(show.levels(found))
        show.verdict(screen, found)
    raise typer.Exit(found.exit_code)


def inspect(
    bundle: Annotated[Path, typer.Argument(metavar="BUNDLE", help="Folder or zip that `edgekit compress` wrote.")],
) -> None:
    """Show what is in a bundle and how it was made."""
    from edgekit.bundle.reader import read

    with read(bundle) as opened:
        manifest = opened.manifest
        sizes = {v.file: opened.path(v.file).stat().st_size for v in manifest.variants}
    screen = show.console()
    screen.print(show.table(["", ""], _facts(manifest), title=f"{manifest.name} for {manifest.target}"))
    rows = [
        [
            variant.name + (" (default)" if variant.name == manifest.default_variant else ""),
            variant.file,
            f"{sizes[variant.file] / 1e6:.2f}",
            variant.engine,
            ", ".join(f"{t.role} {t.dtype} {list(t.shape)}" for t in (*variant.inputs, *variant.outputs)),
        ]
        for variant in manifest.variants
    ]
    screen.print(show.table(["variant", "file", "MB", "engine", "tensors"], rows, title="Model files", right="MB"))
    if manifest.stages:
        screen.print(show.stages(manifest))
    if manifest.layers:
        screen.print(_layers(manifest))


def _facts(manifest: Manifest) -> list[list[object]]:
    model, limits = manifest.model, manifest.thresholds
    images = "gray" if model.channels == 1 else "RGB"
    size = f"{model.macs_per_pixel / 1e3:.2f} kMAC/px (was {model.original_macs_per_pixel / 1e3:.2f})"
    parameters = f"{model.parameters:,} parameters (was {model.original_parameters:,})"
    rows: list[list[object]] = [
        ["model", f"{model.arch}, {images}, {size}, {parameters}"],
        ["source", model.source or "not stated"],
        ["tiles", f"{manifest.tile} px, halo {model.halo} px, stride {model.stride} px"],
        ["noise", "blind" if model.blind else f"sigma {manifest.sigma[0]:g} to {manifest.sigma[1]:g} (8-bit units)"],
        ["held to", f"at most {limits.max_drop:g} dB lost, at least {limits.min_int8_share:.0%} of MACs in int8"],
    ]
    rows += [[f"licence of {name}", text] for name, text in manifest.licences.items()]
    rows += [["made with", ", ".join(f"{name} {version}" for name, version in manifest.versions.items())]]
    # The stages' own settings are long, and in manifest.json.
    plain = {name: value for name, value in manifest.recipe.items() if not isinstance(value, dict)}
    rows += [["recipe", ", ".join(f"{name} {_short(value)}" for name, value in plain.items() if value is not None)]]
    return rows


def _short(value: object) -> str:
    return ":".join(f"{v:g}" for v in value) if isinstance(value, list | tuple) else str(value)


def _layers(manifest: Manifest) -> object:
    total = sum(layer.macs for layer in manifest.layers) or 1
    rows = [
        [
            layer.name,
            layer.op,
            f"{layer.macs / 1e6:,.1f}",
            f"{layer.macs / total:.0%}",
            Text(layer.dtype, style="" if layer.dtype == "int8" or manifest.precision != "int8" else "red"),
            "yes" if layer.delegated else "no",
            "" if layer.sqnr is None else f"{layer.sqnr:.1f}",
        ]
        for layer in manifest.layers
    ]
    columns = ["layer", "operator", "MMAC", "share", "computes in", "fast kernels", "SQNR dB"]
    return show.table(columns, rows, title="Layers, for one tile", right="MMAC,share,SQNR dB")
