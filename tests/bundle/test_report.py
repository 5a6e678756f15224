from __future__ import annotations

import base64
import io
import math
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from edgekit.bundle import card, reader, report
from edgekit.bundle.manifest import Sensitivity
from edgekit.bundle.reader import Bundle
from edgekit.runtime import pixels
from edgekit.runtime.check import recorded
from edgekit.runtime.verdict import Verdict

VOID = {"meta", "img", "br"}


class Outline(HTMLParser):
    """Collects tags and text, and complains of tags that do not nest."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.text = ""
        self.feed(page)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data + " "


@pytest.fixture
def bundle(written_bundle: Path) -> Bundle:
    return reader.read(written_bundle)


@pytest.fixture
def verdict(bundle: Bundle) -> Verdict:
    return recorded(bundle)


def page(bundle: Bundle, verdict: Verdict, **changes: Any) -> str:
    return report.render(replace(bundle.manifest, **changes), bundle.golden(), verdict)


def test_the_report_shows_the_verdict_and_every_figure(bundle: Bundle, verdict: Verdict) -> None:
    text = Outline(page(bundle, verdict)).text
    assert verdict.line().removeprefix("PASS  ") in text
    for row in (*verdict.rows, verdict.total):
        for value in (row.noisy, row.fp32_original, row.fp32_compressed, row.device):
            assert f"{value:.2f}" in text
    for layer in bundle.manifest.layers:
        assert layer.name in text
        assert layer.op in text
    for word in ("removed 29% of MACs", "made by the tests", '"max_drop": 0.5', "counted in the model file"):
        assert (word in text) == (word != "counted in the model file")


def test_the_report_needs_no_network(bundle: Bundle, verdict: Verdict) -> None:
    outline = Outline(page(bundle, verdict))
    assert {tag for tag, name, _ in outline.attributes if name in ("src", "href")} == {"img"}
    assert all(v.startswith("data:image/png;base64,") for _, name, v in outline.attributes if name == "src")
    assert not re.search(r"url\(|@import|<script|<link|<iframe", page(bundle, verdict))


def test_the_pictures_are_the_golden_tiles(bundle: Bundle, verdict: Verdict) -> None:
    sources = [v for _, name, v in Outline(page(bundle, verdict)).attributes if name == "src"]
    assert len(sources) == 4 * 5
    pictures = [np.asarray(Image.open(io.BytesIO(base64.b64decode(s.partition(",")[2])))) for s in sources]
    golden = bundle.golden()
    k = report._busiest(golden, 5.0)
    np.testing.assert_array_equal(pictures[0], golden.noisy[k])
    np.testing.assert_array_equal(pictures[2], golden.host[k])
    np.testing.assert_array_equal(pictures[3], golden.clean[k])
    apart = golden.host[k].astype(int) - np.rint(golden.fp32_original[k] / 257).astype(int)
    np.testing.assert_array_equal(pictures[4], np.clip(128 + 16 * apart, 0, 255))


def test_names_from_elsewhere_are_escaped(bundle: Bundle, verdict: Verdict) -> None:
    evil = "<script>alert(1)</script>"
    layers = (replace(bundle.manifest.layers[0], name=evil, op=evil),)
    stages = ({**bundle.manifest.stages[0], "stage": evil, "what": evil},)
    text = page(
        bundle,
        replace(verdict, reasons=(evil,)),
        name=evil,
        target=evil,
        layers=layers,
        stages=stages,
        recipe={evil: evil},
        licences={evil: evil},
        versions={evil: evil},
    )
    assert evil not in text
    assert Outline(text).text.count(evil) >= 9


def test_a_fail_is_shown_with_its_reasons(bundle: Bundle, verdict: Verdict) -> None:
    text = page(bundle, replace(verdict, passed=False, reasons=("total drop too large",)))
    assert 'class="verdict fail"' in text
    assert "<li>total drop too large</li>" in text
    assert 'class="verdict fail"' not in page(bundle, verdict)


def test_what_costs_most_stands_first_and_out(bundle: Bundle, verdict: Verdict) -> None:
    losses = {"a": 0.1, "b": 0.4, "c": -0.1, "d": 0.3, "e": 0.2}
    items = tuple(Sensitivity(f"layer.{k}", "activations", {"5": v, "50": v / 2}, "why") for k, v in losses.items())
    text = page(bundle, verdict, sensitivity=items)
    assert "What each tensor" in text
    rows = re.findall(r"<tr><td><code class=\"name\">layer.*?</tr>", text)
    assert [re.findall(r"layer\.(.)", row)[0] for row in rows] == list("bdeac")
    assert ['class="bad"' in row for row in rows] == [True, True, True, False, False]
    assert "0.400" in rows[0]
    assert "0.200" in rows[0]


def test_gray_tiles_and_an_empty_history(bundle: Bundle, verdict: Verdict) -> None:
    golden = bundle.golden()
    names = ("noisy", "clean", "fp32_original", "fp32_compressed", "host")
    gray = replace(golden, portable=None, portable_at=None, **{n: getattr(golden, n)[..., :1] for n in names})
    text = Outline(
        report.render(replace(bundle.manifest, stages=(), layers=(), licences={}, versions={}), gray, verdict)
    ).text
    assert "Stages" not in text
    assert "Layers" not in text


def test_the_card_tells_terms_quality_and_use(bundle: Bundle, verdict: Verdict) -> None:
    text = card.render(bundle.manifest, verdict)
    assert verdict.line() in text
    assert "| 25 | 20.55 |" in text
    assert "- training data: made by the tests" in text
    assert "0 to 55 in 8-bit units" in text
    assert "`image` (image): int8 1 x 64 x 64 x 3 NHWC at scale 1/255, zero point -128" in text
    assert "python verify.py" in text
    assert "`samples/denoise.c` does" in text
    model = bundle.manifest.model
    assert f'("reflect") by {math.ceil(model.halo / model.stride) * model.stride} pixels, the halo rounded up' in text
    assert f"run tiles {(64 - 2 * model.halo) // model.stride * model.stride} pixels apart" in text


def test_the_card_tells_the_units_of_each_sigma(bundle: Bundle, verdict: Verdict) -> None:
    text = card.render(bundle.manifest, verdict)
    sigma = bundle.manifest.variants[0].inputs[1]
    integer = pixels.encode_sigma(25, sigma)[0]
    assert f"as an integer: round(level / 255 / {sigma.scale:.9g}) + (-128). For 25 give {integer}." in text
    assert "`sigma` (sigma): float32 1 N, level / 255" in text
    assert "- `sigma`, float32: the noise level in 8-bit units / 255. For 25 give 25 / 255 = 0.0980." in text
    assert "A float result may leave 0..1" in text


def test_the_card_of_floats_promises_no_c_program(bundle: Bundle, verdict: Verdict) -> None:
    manifest = replace(bundle.manifest, variants=bundle.manifest.variants[2:], default_variant="fp32")
    text = card.render(manifest, verdict)
    assert "denoise.c" not in text
    assert "as an integer" not in text
    assert "less 128" not in text
