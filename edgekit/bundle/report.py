"""report.html: a bundle at a glance, in one file that needs no network."""

from __future__ import annotations

import base64
import html
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from edgekit.bundle.golden import Golden
from edgekit.bundle.manifest import LayerReport, Manifest, Sensitivity
from edgekit.bundle.report_style import STYLE

if TYPE_CHECKING:
    from edgekit.runtime.verdict import Verdict

# Side of the pictures in pixels, and how many tiles are shown: together about a megabyte.
_SIDE, _STRIPS = 160, 4
# The difference is drawn around middle gray, this many times enlarged.
_GAIN = 16


def render(
    manifest: Manifest,
    golden: Golden,
    verdict: Verdict,
    compared: Mapping[str, NDArray[np.uint8]] = MappingProxyType({}),
) -> str:
    """The whole report as HTML.

    Args:
        manifest: the bundle's.
        golden: its golden tiles; some are shown.
        verdict: the host's.
        compared: by label, outputs for the golden tiles, uint8 [K, H, W, C], the bundle's own first; fewer than two are
            not shown.
    """
    sections = [
        _header(manifest, verdict),
        _tiles(manifest, verdict),
        _section(
            "Quality",
            _quality(verdict),
            "PSNR in dB on golden tiles that no stage saw: clipped 8-bit input, rounded 8-bit output.",
        ),
        _section(
            "Targets and quantizers",
            _compared(golden, compared),
            "The same golden tiles by other integers of the same network; agreement: how far from the first, in dB.",
        ),
        _section(
            "Pictures",
            _pictures(golden, verdict),
            f"Golden tiles. The last picture is {_escape(_label(verdict))} less the original FP32 model, "
            f"{_GAIN} times enlarged: flat gray means no loss.",
        ),
    ]
    if manifest.stages:
        sections.append(_section("Stages", _stages(manifest), "What each did to the model; dB on held-out tiles."))
    if manifest.layers:
        sections.append(_section("Layers", _layers(manifest.layers), "Read from the exported file."))
    if manifest.sensitivity:
        note = (
            "dB lost on held-out tiles when one tensor alone is rounded to integers and the others stay float, before "
            "anything was learned; the first to blame stand first. A few thousandths, of either sign, are chance. Such "
            "losses do not add up: together they may be more, or less."
        )
        sections.append(_section("What each tensor's integers cost", _sensitivity(manifest.sensitivity), note))
    sections.append(_section("Terms", _pairs(manifest.licences)))
    sections.append(_section("Made by", _pairs(manifest.versions) + _recipe(manifest)))
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{_escape(manifest.name)} for {_escape(manifest.target)}</title><style>{STYLE}</style></head>"
        f"<body><main>{''.join(sections)}</main></body></html>\n"
    )


def _escape(text: object) -> str:
    return html.escape(str(text))


def _section(title: str, body: str, note: str = "") -> str:
    lead = f'<p class="note">{note}</p>' if note else ""
    return f"<section><h2>{title}</h2>{lead}{body}</section>" if body else ""


def _label(verdict: Verdict) -> str:
    return verdict.variant.split("-")[0].upper()


def _header(manifest: Manifest, verdict: Verdict) -> str:
    mark, word = ("pass", "PASS") if verdict.passed else ("fail", "FAIL")
    line = _escape(verdict.line().removeprefix(word).strip())
    low, high = manifest.sigma
    facts = f"{manifest.model.arch}, {manifest.precision}, tile {manifest.tile}, sigma {low:g} to {high:g}"
    items = "".join(f"<li>{_escape(text)}</li>" for text in (*verdict.reasons, *verdict.notes))
    told = f"<ul>{items}</ul>" if items else ""
    return (
        f"<header><h1>{_escape(manifest.name)} <span>for {_escape(manifest.target)}</span></h1><p>{_escape(facts)}</p>"
        f'<div class="verdict {mark}"><b>{word}</b><code>{line}</code></div>{told}</header>'
    )


def _tiles(manifest: Manifest, verdict: Verdict) -> str:
    """The figures in large."""
    from edgekit.runtime.verdict import percent, signed

    total, model, worst = verdict.total, manifest.model, verdict.worst
    shrunk = 1 - model.macs_per_pixel / model.original_macs_per_pixel if model.original_macs_per_pixel else 0.0
    smaller = f"{verdict.bytes / verdict.original_bytes - 1:+.0%} against float32" if verdict.original_bytes else ""
    allowed = f"{verdict.thresholds.max_drop:g}"
    figures = [
        (
            "total",
            f"{signed(-total.total_drop)} dB",
            f"worst {signed(-worst.total_drop)} at sigma {worst.sigma:g}; {allowed} allowed on the mean",
        ),
        ("quantization", f"{signed(-total.quantization_drop)} dB", "against the compressed FP32 model"),
        ("size", f"{verdict.bytes / 1e6:.2f} MB", smaller),
        (
            "work",
            f"{model.macs_per_pixel / 1e3:.1f} kMAC/px",
            f"{shrunk:.0%} fewer than before" if shrunk > 0 else "as before",
        ),
        ("MACs in int8", percent(verdict.int8_share), verdict.int8_source),
    ]
    if verdict.speed is not None:
        ratio = f"{verdict.speed.ratio:.1f} times {verdict.speed.baseline}, " if verdict.speed.ratio else ""
        figures.append(("speed", f"{verdict.speed.ms_per_megapixel:.0f} ms/MP", f"{ratio}on the host"))
    cells = []
    for title, figure, told in figures:
        number, _, unit = figure.partition(" ")
        large = f"<b>{_escape(number)} <em>{_escape(unit)}</em></b>"
        cells.append(f"<div><small>{title}</small>{large}<span>{_escape(told)}</span></div>")
    return f'<div class="figures">{"".join(cells)}</div>'


def _table(head: Sequence[str], rows: Iterable[Sequence[str]], text_columns: int = 1) -> str:
    """A table whose first columns hold text and the others numbers; cells are HTML already."""

    def row(tag: str, cells: Sequence[str]) -> str:
        kinds = ("" if i < text_columns else ' class="n"' for i in range(len(cells)))
        return "<tr>" + "".join(f"<{tag}{k}>{c}</{tag}>" for k, c in zip(kinds, cells, strict=True)) + "</tr>"

    body = "".join(row("td", cells) for cells in rows)
    return f'<div class="scroll"><table><thead>{row("th", head)}</thead><tbody>{body}</tbody></table></div>'


def _quality(verdict: Verdict) -> str:
    from edgekit.runtime.verdict import signed

    allowed = verdict.thresholds.max_drop

    def change(drop: float) -> str:
        return f'<span class="{"bad" if drop > allowed else "good" if drop <= 0 else "fair"}">{signed(-drop)}</span>'

    rows = []
    for item in (*verdict.rows, verdict.total):
        name = "<b>mean</b>" if item.sigma is None else f"{item.sigma:g}"
        values = (item.noisy, item.fp32_original, item.fp32_compressed, item.device)
        rows.append([name, *(f"{v:.2f}" for v in values), change(item.total_drop), change(item.quantization_drop)])
    head = ["sigma", "noisy", "FP32 original", "FP32 compressed", f"{_label(verdict)}, host", "total", "quantization"]
    return _table(head, rows)


def _compared(golden: Golden, outputs: Mapping[str, NDArray[np.uint8]]) -> str:
    from edgekit.runtime.compare import agreement_table
    from edgekit.runtime.verdict import signed

    if len(outputs) < 2:
        return ""
    rows = []
    for item in agreement_table(golden, outputs):
        level = "<b>mean</b>" if item.sigma is None else f"{item.sigma:g}"
        agreement = "" if item.agreement is None else f"{item.agreement:.2f}"
        figures = (f"{item.fp32:.2f}", f"{item.int8:.2f}", signed(-item.drop), agreement)
        rows.append([_escape(item.target), level, *figures])
    return _table(["target", "sigma", "FP32 original", "INT8", "drop", "agreement"], rows, text_columns=2)


def _pictures(golden: Golden, verdict: Verdict) -> str:
    from edgekit.runtime.verdict import decibels

    label = _label(verdict)
    levels = golden.levels()
    # Spread over the levels when there are more than are shown.
    count = min(_STRIPS, len(levels))
    shown = [levels[round(i * (len(levels) - 1) / max(1, count - 1))] for i in range(count)]
    strips = []
    for sigma in shown:
        k = _busiest(golden, sigma)
        original = Golden.to_uint8(golden.fp32_original[k])
        apart = np.clip(128 + _GAIN * (golden.host[k].astype(np.int16) - original), 0, 255).astype(np.uint8)
        pictures = [("noisy", golden.noisy[k]), ("FP32", original), (label, golden.host[k]), ("clean", golden.clean[k])]
        cells = []
        for name, image in [*pictures, (f"{label} - FP32, x{_GAIN}", apart)]:
            measured = name in ("noisy", "FP32", label)
            caption = f"{name} <i>{decibels(image, golden.clean[k]):.2f} dB</i>" if measured else name
            picture = f'<img src="{_png(image)}" alt="{name}, sigma {sigma:g}">'
            cells.append(f"<figure>{picture}<figcaption>{caption}</figcaption></figure>")
        strips.append(f'<h3>sigma {sigma:g}</h3><div class="strip">{"".join(cells)}</div>')
    return "".join(strips)


def _busiest(golden: Golden, sigma: float) -> int:
    """The tile of that level with the most texture: flat ones show nothing."""
    at = np.flatnonzero(golden.sigma == np.float32(sigma))
    return int(max(at, key=lambda k: float(_middle(golden.clean[k]).std())))


def _middle(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The middle of an image [H, W, C], at most `_SIDE` a side."""
    top, left = (max(0, (n - _SIDE) // 2) for n in image.shape[:2])
    return image[top : top + _SIDE, left : left + _SIDE]


def _png(image: NDArray[np.uint8]) -> str:
    """An image [H, W, C] as a data address."""
    from PIL import Image

    pixels = np.ascontiguousarray(_middle(image))
    buffer = io.BytesIO()
    Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels).save(buffer, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def _stages(manifest: Manifest) -> str:
    """Stage records, as `StageRecord.to_dict` writes them."""
    levels = sorted({s for stage in manifest.stages for s in stage.get("db_after", {})}, key=float)

    def size(stage: dict[str, Any], field: str, divisor: float, digits: int) -> str:
        before, after = stage["before"][field] / divisor, stage["after"][field] / divisor
        text = f"{after:,.{digits}f}"
        return f'<span class="was">{before:,.{digits}f}</span> {text}' if before != after else text

    rows = []
    for stage in manifest.stages:
        cells = [f"<b>{_escape(stage['stage'])}</b><br><small class='name'>{_escape(stage['what'])}</small>"]
        cells += [size(stage, "macs_per_pixel", 1e3, 2), size(stage, "parameters", 1, 0)]
        for level in levels:
            before, after = (stage[key].get(level) for key in ("db_before", "db_after"))
            moved = (
                f"<br><small>{after - before:+.2f}</small>"
                if before is not None and after is not None and before != after
                else ""
            )
            cells.append("" if after is None else f"{after:.2f}{moved}")
        rows.append([*cells, f"{stage['seconds']:.0f}"])
    head = ["stage", "kMAC/px", "parameters", *(f"dB at {level}" for level in levels), "seconds"]
    return _table(head, rows)


def _layers(layers: Sequence[LayerReport]) -> str:
    total = sum(layer.macs for layer in layers) or 1
    largest = max(layer.macs for layer in layers) or 1
    rows = []
    for layer in layers:
        rows.append(
            [
                f'<code class="name">{_escape(layer.name)}</code>',
                _escape(layer.op),
                f'<span class="{"good" if layer.dtype == "int8" else "fair"}">{_escape(layer.computes)}</span>',
                "yes" if layer.delegated else '<span class="fair">no</span>',
                _bar(layer.macs / largest, f"{layer.macs / 1e6:.2f} M ({layer.macs / total:.0%})", "plain"),
            ]
        )
    return _table(["layer", "operator", "computes in", "fast kernels", "MACs a tile"], rows, text_columns=4)


def _sensitivity(items: Sequence[Sensitivity]) -> str:
    """A row a tensor, the costliest first: a bar for the mean, a figure for each noise level."""
    from edgekit.runtime.verdict import guilty

    levels = sorted({level for item in items for level in item.lost}, key=float)
    blamed = guilty(items)
    ranked = sorted(items, key=lambda item: -item.mean)
    most = max((item.mean for item in ranked), default=0.0) or 1.0
    rows = []
    for item in ranked:
        kind = "bad" if item in blamed else "good"
        rows.append(
            [
                f'<code class="name">{_escape(item.name)}</code>',
                _escape(item.kind),
                _escape(item.cause),
                _bar(item.mean / most, f"{item.mean:.3f}", kind),
                *(f"{item.lost[level]:.3f}" if level in item.lost else "" for level in levels),
            ]
        )
    head = ["layer", "what", "cause", "dB lost, mean", *(f"sigma {level}" for level in levels)]
    return _table(head, rows, text_columns=3)


def _bar(share: float, text: str, kind: str) -> str:
    width = 100 * min(1.0, max(0.02, share))
    return f'{text} <span class="bar"><span class="{kind}" style="width:{width:.0f}%"></span></span>'


def _pairs(pairs: dict[str, str]) -> str:
    if not pairs:
        return ""
    return "<dl>" + "".join(f"<dt>{_escape(k)}</dt><dd>{_escape(v)}</dd>" for k, v in pairs.items()) + "</dl>"


def _recipe(manifest: Manifest) -> str:
    text = json.dumps(manifest.recipe, indent=2, ensure_ascii=False)
    title = "Recipe: run again, it gives the same model files"
    return f"<details><summary>{title}</summary><pre>{_escape(text)}</pre></details>"
