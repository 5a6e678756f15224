"""The tables of README.md and docs/ from results/*.json, written between their markers.

    <!-- generated:quality -->
    ...
    <!-- /generated:quality -->

`--check` writes nothing and fails with a diff where a file and the results differ.
"""

from __future__ import annotations

import argparse
import difflib
import functools
import re
import statistics
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

# So that `python benchmarks/tables.py` finds its neighbours as `python -m benchmarks.tables` does.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks import published, results, settings
from benchmarks.console import leave, say
from benchmarks.contestants import CAMERA, OTHERS, STUDENT, TEACHER
from benchmarks.int8 import way
from benchmarks.sets import ROOT, SETS, SIGMAS
from edgekit.errors import DataError, UnknownNameError

# Weights with a card.
_SHIPPED = (STUDENT, *OTHERS, TEACHER)
# The tables that a file must hold at least.
FILES = {
    ROOT / "README.md": ("picture", "quality", "latency"),
    ROOT / "docs" / "benchmarks.md": ("quality", "quality-gray", "ssim", "published", "latency"),
    ROOT / "docs" / "int8.md": ("int8",),
    ROOT / "docs" / "runtime.md": ("real", "real-int8"),
    ROOT / "docs" / "compression.md": ("ablation",),
    ROOT / "docs" / "models.md": ("zoo", "exports"),
    ROOT / "docs" / "targets.md": ("speed", "large"),
    ROOT / "docs" / "settings.md": ("settings",),
    **{ROOT / "edgekit" / "models" / "weights" / f"{name}.md": (f"card-{name}",) for name in (*_SHIPPED, CAMERA)},
}
_BLOCK = re.compile(r"(?P<begin><!-- generated:(?P<name>[\w-]+) -->\n).*?(?P<end><!-- /generated:(?P=name) -->)", re.S)
_MARK = re.compile(r"<!-- (/?)generated:([\w-]+) -->")
# Figures of benchmarks.quality as rows of a table: what is added to the model's name.
_QUALITY = {
    "original": ", FP32",
    "calibrated": ", INT8 by calibration alone",
    "fp32": " compressed, FP32",
    "int8": " compressed, **INT8**",
    "unclipped": ", FP32, unclipped noise",
}


def main(arguments: Sequence[str]) -> int:
    """Write the tables, or with --check compare them; 1 when they differ."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.tables", description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 where a table is out of date")
    parser.add_argument("--results", type=Path, default=results.FOLDER, help="folder of the JSON files")
    options = parser.parse_args(arguments)
    differ = False
    for path, needed in FILES.items():
        old = path.read_text(encoding="utf-8")
        new = fill(old, needed, str(path.relative_to(ROOT)), options.results)
        if old == new:
            continue
        differ = True
        if options.check:
            names = (f"{path.name} as it is", f"{path.name} as the results say")
            sys.stdout.writelines(difflib.unified_diff(old.splitlines(True), new.splitlines(True), *names))
        else:
            path.write_text(new, encoding="utf-8")
            say(f"{path.relative_to(ROOT)} written")
    if differ and options.check:
        say("tables and results differ: run `python -m benchmarks.tables`")
    return int(differ and options.check)


def fill(text: str, needed: Iterable[str], where: str, folder: Path) -> str:
    """Replace what stands between the markers of a text.

    Args:
        needed: tables that must be there.
        where: the text's file, for errors.
        folder: of the JSON files.
    Returns: the text with every table as the results say.
    Raises: DataError: a marker that is missing, or has no end; no results. UnknownNameError: no such table.
    """
    marks = [(slash, name) for slash, name in _MARK.findall(text)]
    for begin, end in zip(marks[::2], marks[1::2], strict=False):
        if begin[0] or not end[0] or begin[1] != end[1]:
            raise DataError(f"{where}: expected <!-- generated:NAME --> and <!-- /generated:NAME --> in turns: {marks}")
    if len(marks) % 2:
        raise DataError(f"{where}: the marker of {marks[-1][1]!r} has no partner")
    names = {name for _, name in marks}
    if missing := [name for name in needed if name not in names]:
        raise DataError(f"{where} lacks <!-- generated:{missing[0]} --> and <!-- /generated:{missing[0]} -->")

    def replace(match: re.Match[str]) -> str:
        if match["name"] not in TABLES:
            raise UnknownNameError.unknown("table", match["name"], TABLES)
        return match["begin"] + TABLES[match["name"]](folder) + "\n" + match["end"]

    return _BLOCK.sub(replace, text)


def _markdown(columns: Sequence[str], rows: Iterable[Sequence[str]], texts: int = 1) -> str:
    """A table whose first columns are text and whose others are numbers."""
    rule = ["---" if place < texts else "---:" for place in range(len(columns))]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in [columns, rule, *rows])


def _measured(found: Mapping[str, Any], how: str) -> str:
    """The line below a table: on what, with what."""
    machine, versions = found["machine"], found["versions"]
    limit = found["settings"].get("limit")
    part = f" **Only the first {limit} images of each set.**" if limit else ""
    # The average of the minute before, in processes that wanted a core: idle is near 0.
    busy = f" (load {machine['load']:g} when it began)" if "load" in machine else ""
    engine = f"LiteRT (ai-edge-litert {versions.get('ai-edge-litert', 'not installed')})"
    return (
        f"{how}{part} Run by {engine}, edgekit {versions['edgekit']}, {machine['processor']}, {machine['cores']} "
        f"cores{busy}."
    )


def _scores(folder: Path, metric: str, digits: int, channels: int = 3) -> tuple[dict[str, Any], str]:
    """Models and figures down, sets and levels across; of the sets of so many channels."""
    found = results.load(folder / "quality.json")
    rows = {(r["model"], r["set"], r["sigma"]): r["figures"] for r in found["rows"]}
    # Only where something ran through the runtime; the rest is in the table of published figures.
    shown = {key: f for key, f in rows.items() if "original" in f and SETS[key[1]] == channels}
    places = list(dict.fromkeys((name, sigma) for _, name, sigma in shown))
    lines = []

    def line(title: str, macs: float | None, values: Sequence[float | None], sign: str = "") -> None:
        cells = ["" if v is None else f"{v:{sign}.{digits}f}" for v in values]
        if any(cells):
            lines.append([title, "" if macs is None else f"{macs / 1e3:.1f}", *cells])

    def values(model: str, figure: str) -> list[float | None]:
        return [shown.get((model, *place), {}).get(figure, {}).get(metric) for place in places]

    first = next(iter(shown), ("",))[0]
    line("noisy input", None, values(first, "noisy"))
    for facts in found["models"]:
        model = facts["name"]
        for figure, words in _QUALITY.items():
            macs = facts.get("compressed_macs_per_pixel") if figure in ("fp32", "int8") else facts["macs_per_pixel"]
            line(model + words, macs, values(model, figure))
            if figure == "int8":
                pairs = zip(values(model, "int8"), values(model, "original"), strict=True)
                gaps = [None if a is None or b is None else a - b for a, b in pairs]
                line(f"its difference to {model}, FP32", None, gaps, "+")
    heads = [f"{name}: {sigma}" if (name, sigma) == _first(places, name) else str(sigma) for name, sigma in places]
    return found, _markdown(["", "kMAC/px", *heads], lines)


def _first(places: Sequence[tuple[str, int]], name: str) -> tuple[str, int]:
    return next(place for place in places if place[0] == name)


def quality(folder: Path) -> str:
    """PSNR by model, set and level."""
    found, table = _scores(folder, "psnr", 2)
    how = (
        "PSNR in dB, the mean over a set's images, at noise levels (sigma) in 8-bit units. Noisy images are clipped "
        "and rounded to 8 bits and so are results, but for the rows of unclipped noise, which measure as papers do. "
        "*Compressed* is what the default `edgekit compress --target tflite` makes: pruned, distilled, INT8 by QAT. "
        "*Calibration alone* rounds each weight to the nearest integer, as default tools do."
    )
    return f"{table}\n\n{_measured(found, how)}"


def quality_gray(folder: Path) -> str:
    """The same for gray images."""
    _, table = _scores(folder, "psnr", 2, channels=1)
    return f"{table}\n\nThe same for gray images; DnCNN (sigma 25 alone) is among the published figures below."


def card(folder: Path, model: str) -> str:
    """PSNR of shipped weights by level, for the card beside them."""
    rows = [r for r in results.load(folder / "quality.json")["rows"] if r["model"] == model]
    sets = list(dict.fromkeys(r["set"] for r in rows))
    kinds = {"unclipped": "unclipped noise, as papers measure", "original": "clipped, rounded to 8 bits, in LiteRT"}
    lines = []
    for name in sets:
        for figure, words in kinds.items():
            found = {r["sigma"]: r["figures"].get(figure, {}).get("psnr") for r in rows if r["set"] == name}
            if any(found.values()):
                cells = ["" if found.get(s) is None else f"{found[s]:.2f}" for s in SIGMAS]
                lines.append([name, words, *cells])
    table = _markdown(["set", "noise", *(f"sigma {s}" for s in SIGMAS)], lines, 2)
    return f"{table}\n\nFP32, PSNR in dB, by `python -m benchmarks.quality`."


def similarity(folder: Path) -> str:
    """SSIM by model, set and level."""
    found, table = _scores(folder, "ssim", 4)
    return f"{table}\n\n{_measured(found, 'SSIM (Wang et al. 2004), measured in the same runs.')}"


def as_published(folder: Path) -> str:
    """Published figures beside the measured ones."""
    found = results.load(folder / "quality.json")
    lines = []
    for entry in found["rows"]:
        key = (entry["model"], entry["set"], entry["sigma"])
        if key in published.FIGURES:
            mine, theirs = entry["figures"]["unclipped"]["psnr"], published.FIGURES[key]
            cells = [f"{mine:.3f}", f"{theirs:.2f}", f"{mine - theirs:+.3f}"]
            lines.append([*key[:2], str(key[2]), str(entry["images"]), *cells])
    table = _markdown(["model", "set", "sigma", "images", "measured", "published", "difference"], lines, 2)
    return f"{table}\n\nPSNR in dB in torch, noise neither clipped nor rounded, results rounded to 8 bits."


def latency(folder: Path) -> str:
    """Milliseconds per megapixel by model, precision and threads."""
    found = results.load(folder / "latency.json")
    threads = found["settings"]["threads"]
    longer = {(r["model"], r["figure"], r["through"], r["threads"]): r["times"] for r in found["ratios"]}
    groups: dict[tuple[str, str, str], dict[int, dict[str, Any]]] = {}
    for entry in found["rows"]:
        groups.setdefault((entry["model"], entry["figure"], entry["through"]), {})[entry["threads"]] = entry
    lines = []
    for (model, figure, through), by_threads in groups.items():
        one = next(iter(by_threads.values()))
        words = _QUALITY[figure] + (", whole images" if through == "denoiser" else "")
        cells = [model + words, f"{one['macs_per_pixel'] / 1e3:.1f}", f"{one['bytes'] / 1e6:.2f}"]
        for n in threads:
            cells.append(f"{by_threads[n]['ms_per_megapixel']:.0f}" if n in by_threads else "")
        for n in threads:
            cells.append(_ratio(longer.get((model, figure, through, n))))
        lines.append(cells)
    heads = [f"{n} thread{'s' * (n > 1)}" for n in threads]
    columns = ["", "kMAC/px", "MB", *(f"ms/MP, {h}" for h in heads), *(f"times, {h}" for h in heads)]
    sides = sorted({entry["tile"] for entry in found["rows"]})
    how = (
        f"Milliseconds per megapixel of useful pixels: the engine on one tile of {' or '.join(map(str, sides))}, the "
        "halo computed and not counted; *whole images* is the Denoiser on two by two tiles. All in one process in "
        f"turns, the fastest of {found['settings']['rounds']} rounds. *Times* is against {STUDENT} compressed, INT8."
    )
    return f"{_markdown(columns, lines)}\n\n{_measured(found, how)}"


def speed(folder: Path) -> str:
    """One thread: what INT8 gains in each engine, and how long FFDNet takes there."""
    lines, where = [], {}
    for engine, name in (("LiteRT", "latency.json"), ("OpenVINO", "latency-openvino.json")):
        found = results.load(folder / name)
        ms = {
            (row["model"], row["figure"]): row["ms_per_megapixel"]
            for row in found["rows"]
            if (row["through"], row["threads"]) == ("engine", 1)
        }
        fp32, int8, peer = ms[STUDENT, "fp32"], ms[STUDENT, "int8"], ms["ffdnet-color", "calibrated"]
        gain, longer = f"{_ratio(fp32 / int8)} times", f"{peer:.0f}: {_ratio(peer / int8)} times as long"
        machine = found["machine"]
        where[engine] = f"{machine['processor']}, {machine['cores']} cores"
        lines.append([engine, f"{fp32:.0f}", f"{int8:.0f}", gain, longer])
    columns = ["", "FP32", "INT8", "INT8 is faster", "FFDNet INT8 in the same engine"]
    machines = "; ".join(f"{engine} on {place}" for engine, place in where.items())
    how = (
        f"{STUDENT} compressed, milliseconds per megapixel of useful pixels, one thread, the engine on one tile; "
        f"{machines}. An engine's figures are of one run in turns; the two "
        "engines had a run each, so compare along the lines. `python -m benchmarks.latency`, and with `--target "
        "openvino`."
    )
    return f"{_markdown(columns, lines)}\n\n{how}"


def large(folder: Path) -> str:
    """A photo of many tiles: its time, what the runtime adds to the engine's, and memory."""
    found = results.load(folder / "large.json")
    lines = [
        [
            row["library"].split(" (")[0],
            f"{row['image_ms'] / 1e3:.2f}",
            f"{row['over_halo']:.1%}",
            f"{row['memory'] / 1e6:.0f}",
        ]
        for row in found["rows"]
    ]
    height, width = found["settings"]["image"]
    columns = ["", "seconds", "above the engine", "MB above the loaded model"]
    how = (
        f"A photo of {width}x{height}, {STUDENT} compressed, INT8, {found['settings']['threads']} thread; *above the "
        "engine*: than the engine takes for the photo's pixels and their halos; the photo and its result are in the "
        f"MB. On {found['machine']['processor']}. `python -m benchmarks.large --rounds {found['settings']['rounds']}`."
    )
    return f"{_markdown(columns, lines)}\n\n{how}"


def _ratio(times: float | None) -> str:
    return "" if times is None else f"{times:.2f}" if times < 10 else f"{times:.0f}"


def picture(folder: Path) -> str:
    """The image of docs/images, with what it shows."""
    found = results.load(folder / "picture.json")
    figures = found["psnr"]
    what = (
        f"noisy {figures['noisy']:.2f} dB, FP32 {figures['fp32']:.2f} dB, INT8 {figures['int8']:.2f} dB, "
        f"and the difference of the two, {found['amplified']} times amplified"
    )
    return (
        f"![{what}]({found['file']})\n\n"
        f"Sigma {found['sigma']}, {found['what']}: {what}. PSNR is of the whole image, of which a part is shown; both "
        "come from the bundle's own files, through the runtime, FP32 pruned and distilled as INT8 is."
    )


def integers(folder: Path) -> str:
    """dB that integers cost, by bundle, set and level."""
    found = results.load(folder / "int8.json")
    rows = found["rows"]
    places = list(dict.fromkeys((row["set"], row["sigma"]) for row in rows))
    places = sorted(places, key=lambda place: (place[0], place[1]))
    lines = []
    names = list(dict.fromkeys(row["name"] for row in rows))
    targets = ("tflite", "openvino", "tensorrt")
    for key in sorted(dict.fromkeys(map(way, rows)), key=lambda key: (names.index(key[0]), targets.index(key[1]))):
        mine = {(r["set"], r["sigma"]): r for r in rows if way(r) == key}
        share = next(iter(mine.values()))["int8_share"]
        alone = "calibration alone" if key[3] else "calibration alone, each weight to the nearest"
        how = f"{key[2]} steps of QAT" if key[2] else alone
        cells = [f"{mine[place]['lost']:.2f}" if place in mine else "" for place in places]
        lines.append([f"{key[0]}, {key[1]}", how, f"{share:.0%}", *cells])
    heads = [f"{name}: {sigma}" if (name, sigma) == _first(places, name) else str(sigma) for name, sigma in places]
    what = (
        "dB that INT8 loses against the FP32 file of the same bundle, the mean over a set's images, at noise levels in "
        "8-bit units; clipped 8-bit input, both outputs rounded. `python -m benchmarks.int8 BUNDLE...`; TensorRT's "
        "graph was run by ONNX Runtime."
    )
    return f"{_markdown(['', 'ranges from', 'MACs in int8', *heads], lines, 2)}\n\n{what}"


def ablation_table(rows: Sequence[dict[str, Any]]) -> tuple[list[str], list[list[str]]]:
    """Columns and lines: by row the dB at each level, their mean, and its standard deviation over the seeds."""
    lines = []
    for key in dict.fromkeys((row["group"], row["name"]) for row in rows):
        found = [row["psnr"] for row in rows if (row["group"], row["name"]) == key]
        levels = [statistics.fmean(psnr[f"{s}"] for psnr in found) for s in SIGMAS]
        means = [statistics.fmean(psnr.values()) for psnr in found]
        spread = f"{statistics.stdev(means):.3f}" if len(means) > 1 else ""
        numbers = [*(f"{db:.2f}" for db in levels), f"{statistics.fmean(means):.3f}", spread, str(len(means))]
        lines.append([*key, *numbers])
    return ["", "", *(f"sigma {s}" for s in SIGMAS), "mean", "+-", "seeds"], lines


def real(folder: Path) -> str:
    """What models make of real camera noise, told a fixed level or by the estimate."""
    found = results.load(folder / "real.json")
    lines = []
    for row in found["rows"]:
        gains = [f"{row[figure]:.2f} ({row[figure] - row['noisy']:+.2f})" for figure in ("white", "auto", "fixed")]
        levels = [f"{row['white_sigma']:.1f}", f"{row['auto_sigma']:.1f}", f"{row['fixed_sigma']:g}"]
        cells = [f"{gain} at {level}" for gain, level in zip(gains, levels, strict=True)]
        lines.append([f"{row['model']}", f"{row['noisy']:.2f}", *cells, f"{row['auto'] - row['fixed']:+.2f}"])
    columns = ["", "noisy", "estimate for white noise", 'sigma="auto"', "best fixed sigma", "auto to fixed"]
    what = (
        f"PSNR in dB on CC60, the mean over {found['settings']['images']} images, and the gain over the noisy image; "
        "the float model in torch, its output rounded to 8 bits. Levels are means. The best fixed sigma was chosen "
        "with the clean images, which nobody has. `python -m benchmarks.real`."
    )
    return f"{_markdown(columns, lines)}\n\n{what}"


def real_integers(folder: Path) -> str:
    """What pruning and integers cost on real camera noise."""
    found, floats = results.load(folder / "real-int8.json"), results.load(folder / "real.json")
    auto = {row["model"]: row["auto"] for row in floats["rows"]}
    lines = [
        [
            f"{row['name']}, {row['target']}",
            *(f"{db:.2f} ({db - row['noisy']:+.2f})" for db in (auto[row["name"]], row["fp32"], row["int8"])),
        ]
        for row in found["rows"]
    ]
    what = (
        f'Its default bundles there, PSNR in dB by `sigma="auto"` through the runtime, {found["settings"]["images"]} '
        f"images; {found['rows'][0]['macs_removed']:.0%} of the MACs pruned, TensorRT's graph in ONNX Runtime. "
        "`python -m benchmarks.real_int8`."
    )
    return f"{_markdown(['', 'FP32', 'pruned, FP32', 'pruned, **INT8**'], lines)}\n\n{what}"


def _camera_card(folder: Path) -> str:
    return f"{real(folder)}\n\n{real_integers(folder)}"


def means(folder: Path) -> str:
    """What each means of compression gives, at equal steps."""
    found = results.load(folder / "ablation.json")
    columns, lines = ablation_table(found["rows"])
    lines = [[*line[:-2], f"±{line[-2]}" if line[-2] else "", line[-1]] for line in lines]
    columns[:2] = ["compared within", "means"]
    columns[-2] = "over seeds"
    what = (
        f"PSNR in dB on {found['settings']['crops']} held-out crops of 160x160 of the training photos, clipped and "
        f"rounded; {found['settings']['steps']} steps a training, from nothing three times, QAT by its default. "
        "*Mean* is over the four levels. `python -m benchmarks.ablation`."
    )
    return f"{_markdown(columns, lines, 2)}\n\n{what}"


def zoo(folder: Path) -> str:
    """Every registered model: where it comes from, what it costs, where it runs."""
    found = results.load(folder / "exports.json")
    rows = {(row["arch"], row["target"], row["precision"]): row for row in found["rows"]}
    lines = []
    for model in found["models"]:
        halo = f"{model['halo']}{' and all' if model['pools_globally'] else ''}"
        cells = [
            f"{model['parameters'] / 1e3:,.0f}",
            f"{model['macs_per_pixel'] / 1e3:.1f}",
            halo,
            str(model["stride"]),
        ]
        # One architecture, one answer: operators do not depend on widths.
        targets = []
        for target in dict.fromkeys(target for _, target, _ in rows):
            made = [
                p for p in ("int8", "fp32", "fp16") if (row := rows.get((model["arch"], target, p))) and row["exports"]
            ]
            targets += [f"{target} {made[0]}"] if made else []
        kind = {1: "gray", 3: "RGB", 4: "Bayer"}[model["channels"]] + (", blind" if model["blind"] else "")
        lines.append([model["name"], model["source"], kind, *cells, ", ".join(targets)])
    columns = ["model", "source", "images", "thousand parameters", "kMAC/px", "halo px", "stride", "exports"]
    table = _markdown(columns, lines, 3)
    # The last column is text again.
    head, rule, *rest = table.splitlines()
    table = "\n".join([head, rule.removesuffix("---: |") + "--- |", *rest])
    what = (
        "Sizes are those of the preset as it is registered. *And all*: the halo is that of the convolutions, and "
        "averages over the whole input come on top (see below). *Exports* names the smallest type that a target's file "
        "came out in; the table below says what of it really is int8."
    )
    return f"{table}\n\n{what} `python -m benchmarks.exports`."


def export_verdict(row: Mapping[str, Any]) -> str:
    """A row in a word: yes, no, or the share of the MACs that became integers."""
    if not row["exports"]:
        return "no"
    share = row.get("int8_share")
    return "yes" if share is None or round(100 * share) == 100 else f"{share:.0%} of MACs"


def exported(folder: Path) -> str:
    """Each architecture and target: whether it exports, and what stands in the way."""
    found = results.load(folder / "exports.json")
    lines = []
    for row in found["rows"]:
        # Of the two precisions the integers are the question; the float row only where it says something else.
        if row["precision"] == "fp32" and row["exports"] and not row["blocks"]:
            continue
        lines.append([row["arch"], row["target"], row["precision"], export_verdict(row), row["blocks"]])
    errors = [row["largest_error"] for row in found["rows"] if row["precision"] == "fp32" and "largest_error" in row]
    versions = found["versions"]
    what = (
        f"Every width and number of blocks cut to {found['settings']['cut']}, random weights, one tile; ranges from "
        "that tile. *yes* for int8: every multiply-accumulate in integers; a share where less. Float rows with nothing "
        f"to say are left out; all float files that came out are within {max(errors):.2f} levels of 255 of the network "
        f"in torch. edgekit {versions['edgekit']}, litert-torch {versions.get('litert-torch', 'not installed')}, "
        f"torch {versions.get('torch', 'not installed')}. `python -m benchmarks.exports`."
    )
    table = _markdown(["architecture", "target", "precision", "exports", "what stands in the way"], lines, 5)
    return f"{table}\n\n{what}"


TABLES: dict[str, Callable[[Path], str]] = {
    "quality": quality,
    "quality-gray": quality_gray,
    "ssim": similarity,
    "published": as_published,
    "latency": latency,
    "speed": speed,
    "large": large,
    "picture": picture,
    "int8": integers,
    "ablation": means,
    "real": real,
    "real-int8": real_integers,
    "zoo": zoo,
    "exports": exported,
    "settings": settings.page,
    **{f"card-{name}": functools.partial(card, model=name) for name in _SHIPPED},
    f"card-{CAMERA}": _camera_card,
}


if __name__ == "__main__":
    leave(main)
