"""check and inspect: a bundle, looked at."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer
from rich.text import Text

from edgekit.bundle.manifest import Manifest
from edgekit.cli import show
from edgekit.errors import RecipeError

# The range of levels has a row of its own; the others say how noise is drawn, not which.
_NOT_OF_THE_NOISE = {"model", "sigma", "stratified", "level", "device_share"}

if TYPE_CHECKING:
    from rich.table import Table

    from edgekit.runtime.compare import Comparison


def check(
    bundle: Annotated[Path, typer.Argument(metavar="BUNDLE", help="Folder or zip that `edgekit compress` wrote.")],
    against: Annotated[
        Path | None,
        typer.Option(metavar="BUNDLE", help="Compare with this one instead, on the golden tiles of the first."),
    ] = None,
    allow: Annotated[
        float | None,
        typer.Option(metavar="DB", help="With --against: dB apart at sigma 15 and up; else 0.05 or 0.15 by target."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the verdict as JSON and nothing else.")] = False,
) -> None:
    """Run a bundle's golden tiles here: exit 0 if it PASSes (or AGREEs with another bundle), 1 if not."""
    if against is not None:
        _compare(bundle, against, allow, as_json=as_json)
    if allow is not None:
        raise RecipeError(f"--allow {allow:g} is about two bundles: give the other one with --against BUNDLE")
    from edgekit.runtime.check import check as judge

    found = judge(bundle)
    if as_json:
        print(json.dumps(found.to_dict(), indent=2))
    else:
        screen = show.console()
        show.put(screen, show.levels(found))
        show.verdict(screen, found)
    raise typer.Exit(found.exit_code)


def _compare(bundle: Path, against: Path, allow: float | None, *, as_json: bool) -> NoReturn:
    from edgekit.runtime.compare import compare

    found = compare(bundle, against, allow=allow)
    if as_json:
        print(json.dumps(found.to_dict(), indent=2))
    else:
        screen = show.console()
        wide = _side_by_side(found, found.labels)
        if show.fits(screen, wide):
            show.put(screen, wide)
        else:
            # Paths of any length: as headings they would leave the figures no room.
            for letter, label in zip("AB", found.labels, strict=True):
                show.line(screen, f"{letter}: {label}")
            show.put(screen, _side_by_side(found, ("A", "B")))
        line = Text(found.line())
        line.stylize("bold green" if found.agree else "bold red", 0, len(found.line().split()[0]))
        show.line(screen, line)
    raise typer.Exit(found.exit_code)


def _side_by_side(found: Comparison, names: tuple[str, str]) -> Table:
    columns = ["sigma", "FP32 original", *names, "apart", "one against the other", "judged"]
    rows = [
        [
            "mean" if row.sigma is None else f"{row.sigma:g}",
            *(f"{value:.2f}" for value in (row.fp32, row.a, row.b)),
            f"{row.agreement:.3f}",
            f"{row.between:.2f}",
            f"at most {found.allowed:g}" if row.judged else "no",
        ]
        for row in (*found.rows, found.total)
    ]
    title = f"dB against the clean golden tiles of {found.a.bundle}, both on this device"
    return show.table(columns, rows, title=title, right=",".join(columns[:-1]))


def inspect(
    bundle: Annotated[Path, typer.Argument(metavar="BUNDLE", help="Folder or zip that `edgekit compress` wrote.")],
) -> None:
    """Show what is in a bundle and how it was made."""
    from edgekit.bundle.reader import read

    with read(bundle) as opened:
        manifest = opened.manifest
        sizes = {v.file: sum(opened.path(name).stat().st_size for name in v.files) for v in manifest.variants}
    screen = show.console()
    show.put(screen, show.table(["", ""], _facts(manifest), title=f"{manifest.name} for {manifest.target}"))
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
    show.put(screen, show.table(["variant", "file", "MB", "engine", "tensors"], rows, title="Model files", right="MB"))
    if manifest.stages:
        show.stages(screen, manifest)
    if manifest.layers:
        show.put(screen, _layers(manifest))


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
        *_noise_model(manifest.recipe),
        *_iso_table(manifest.iso_sigma),
        [
            "held to",
            f"at most {limits.max_drop:g} dB lost, the mean over noise levels; "
            f"at least {limits.min_int8_share:.0%} of MACs in int8",
        ],
    ]
    rows += [["use" if name == "use" else f"licence of {name}", text] for name, text in manifest.licences.items()]
    rows += [["made with", ", ".join(f"{name} {version}" for name, version in manifest.versions.items())]]
    # The stages' own settings are long, and in manifest.json.
    plain = {name: value for name, value in manifest.recipe.items() if not isinstance(value, dict)}
    rows += [["recipe", ", ".join(f"{name} {_short(value)}" for name, value in plain.items() if value is not None)]]
    return rows


def _noise_model(recipe: Mapping[str, Any]) -> list[list[object]]:
    """The noise that the stages saw, with its settings; none of a bundle that does not say."""
    noise, tuned = recipe.get("noise", {}), recipe.get("finetune", {}).get("noises", [])
    first, *replayed = tuned or [noise.get("model", "")]
    # A fine-tuned bundle that learned from pairs has not seen its recipe's own noise.
    drawn = noise if first == noise.get("model") else {}
    settings = [f"{name} {_short(value)}" for name, value in drawn.items() if name not in _NOT_OF_THE_NOISE]
    text = ", ".join([first, *settings]) + (f"; replayed: {', '.join(replayed)}" if replayed else "")
    return [["noise model", text]] if text else []


def _iso_table(table: Mapping[str, float]) -> list[list[object]]:
    """The levels of `denoise --iso`; none of a bundle without them."""
    text = ", ".join(f"ISO {iso}: sigma {table[iso]:.3g}" for iso in sorted(table, key=int))
    return [["ISO table", text]] if text else []


def _short(value: object) -> str:
    return ":".join(f"{v:g}" for v in value) if isinstance(value, list | tuple) else str(value)


def _layers(manifest: Manifest) -> Table:
    total = sum(layer.macs for layer in manifest.layers) or 1
    names = {layer.name for layer in manifest.layers}
    costs = {name: [i.mean for i in manifest.sensitivity if i.name == name] for name in names}
    rows = [
        [
            layer.name,
            layer.op,
            f"{layer.macs / 1e6:,.1f}",
            f"{layer.macs / total:.0%}",
            Text(
                layer.computes,
                style="" if layer.dtype == "int8" or manifest.precision != "int8" else "red",
            ),
            "yes" if layer.delegated else "no",
            f"{sum(costs[layer.name]):.3f}" if costs[layer.name] else "",
        ]
        for layer in manifest.layers
    ]
    columns = ["layer", "operator", "MMAC", "share", "computes in", "fast kernels", "dB its integers cost"]
    title = (
        "Layers, for one tile; what the integers of weights and output cost alone, before QAT, mean over noise levels"
    )
    return show.table(columns, rows, title=title, right="MMAC,share,dB its integers cost")
