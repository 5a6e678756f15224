"""What integers cost: dB of a bundle's INT8 file below its own FP32, on whole image sets, through the runtime.

Any bundle takes part, of any target: the same network before and after it was quantized, on the same noisy 8-bit
images, both outputs rounded. What pruning lost is in both and does not count here; `benchmarks.quality` counts it.
"""

from __future__ import annotations

import argparse
import hashlib
import sys
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

# So that `python benchmarks/int8.py` finds its neighbours as `python -m benchmarks.int8` does.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks import results, sets
from benchmarks.console import leave, say, show
from benchmarks.quality import measure, one_thread, through_runtime
from benchmarks.sets import SETS, SHARED, SIGMAS, ImageSet
from edgekit.bundle import reader
from edgekit.bundle.reader import Bundle
from edgekit.errors import BundleError
from edgekit.runtime.verdict import int8_share


def main(arguments: Sequence[str]) -> int:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.int8", description=__doc__)
    parser.add_argument("bundles", nargs="+", type=Path, help="that `edgekit compress` wrote")
    parser.add_argument("--data", type=Path, default=SHARED / "data" / "test", help="folder of the image sets")
    parser.add_argument("--sigmas", nargs="+", type=int, default=list(SIGMAS), help="8-bit units")
    parser.add_argument("--limit", type=int, help="so many images a set: a quick look, written to build/")
    parser.add_argument("--workers", type=int, default=min(4, results.cores()), help="images at a time")
    parser.add_argument("--out", type=Path, help="benchmarks/results/int8.json; rows of other bundles in it are kept")
    options = parser.parse_args(arguments)
    out = options.out or results.default("int8", quick=options.limit is not None)
    settings = {"limit": options.limit}
    rows = results.kept(out, settings).get("rows", [])
    with ThreadPoolExecutor(options.workers, initializer=one_thread) as pool:
        for path in options.bundles:
            with reader.read(path) as bundle:
                for row in _measure(bundle, options, pool, rows):
                    about = {"name": bundle.manifest.name, "target": bundle.manifest.target, **row}
                    rows = [row for row in rows if not _replaced(row, about)] + [about]
                    say("  ".join(_cells(about)))
                    results.save(out, {**results.about(settings), "rows": rows})
    show("dB that integers cost", ["model", "target", "set", "sigma", "FP32", "INT8", "lost", "int8 MACs"],
         [_cells(row) for row in rows], texts=3)  # fmt: skip
    say(f"written to {out}")
    return 0


def _measure(
    bundle: Bundle, options: argparse.Namespace, pool: ThreadPoolExecutor, before: Sequence[dict[str, Any]]
) -> Iterator[dict[str, Any]]:
    manifest = bundle.manifest
    names = {v.name: v for v in manifest.variants}
    if "fp32" not in names or not names[manifest.default_variant].integer:
        raise BundleError(f"{bundle.source} holds {', '.join(names)}: expected an INT8 bundle with its fp32 file")
    columns = {name: through_runtime(bundle, name) for name in ("fp32", manifest.default_variant)}
    details = next((s["details"] for s in manifest.stages if s["stage"] == "quantize"), None)
    steps = None if details is None else details.get("steps", 0)
    for name, channels in SETS.items():
        if channels != manifest.model.channels:
            continue
        chosen = sets.read(options.data, name, options.limit)
        inputs = _digest([manifest.files[file] for file in names["fp32"].files], chosen)
        for sigma in options.sigmas:
            # The same float files on the same noisy images: another bundle of them need not run them again.
            same = (inputs, name, sigma)
            known = [r["fp32"] for r in before if (r.get("fp32_inputs"), r["set"], r["sigma"]) == same]
            wanted = {key: column for key, column in columns.items() if key != "fp32" or not known}
            row = measure(manifest.name, chosen, sigma, wanted, pool, options.workers)
            fp32 = known[0] if known else row["figures"]["fp32"]["psnr"]
            int8 = row["figures"][manifest.default_variant]["psnr"]
            yield {
                "qat_steps": steps,
                # Without QAT: whether a layer's weights were rounded together, or each to the nearest integer.
                **({} if steps else {"together": "rounded" in (details or {})}),
                "set": name,
                "sigma": sigma,
                "images": row["images"],
                "fp32": fp32,
                "int8": int8,
                "lost": round(fp32 - int8, 4),
                "int8_share": round(int8_share(manifest.layers), 4),
                "sha256": columns[manifest.default_variant].sha256,
                "fp32_inputs": inputs,
            }


def _digest(hashes: Sequence[str], images: ImageSet) -> str:
    """Of what a float figure is made from: the files and the clean images; the noise follows from these."""
    found = hashlib.sha256("".join(sorted(hashes)).encode())
    for image in images.images:
        found.update(f"{image.shape}{image.dtype}".encode() + image.tobytes())
    return found.hexdigest()


def way(row: Mapping[str, Any]) -> tuple[str, str, int | None, bool]:
    """Which bundle a row is of, and how that was quantized: a line of the table of integers."""
    return row["name"], row["target"], row["qat_steps"], row.get("together", False)


def _replaced(old: dict[str, Any], new: dict[str, Any]) -> bool:
    """Whether a row is of an earlier file of the same kind, or the same row measured before."""
    kind = way(old) == way(new)
    return kind and (old["sha256"] != new["sha256"] or (old["set"], old["sigma"]) == (new["set"], new["sigma"]))


def _cells(row: dict[str, Any]) -> list[str]:
    return [
        row["name"],
        row["target"] + (", together" if row.get("together") else ""),
        row["set"],
        str(row["sigma"]),
        f"{row['fp32']:.2f}",
        f"{row['int8']:.2f}",
        f"{row['lost']:.3f}",
        f"{row['int8_share']:.0%}",
    ]


if __name__ == "__main__":
    leave(main)
