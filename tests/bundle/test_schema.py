from __future__ import annotations

import contextlib
import copy
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from golden_bundle import tiny_manifest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgekit.bundle import schema
from edgekit.bundle.manifest import SCHEMA, Manifest
from edgekit.errors import BundleError

GONE = object()


def manifest() -> Manifest:
    files = {v.file: "0" * 64 for v in tiny_manifest().variants} | {"golden.npz": "a" * 64}
    return tiny_manifest(files=files)


def altered(path: list[Any], value: Any) -> dict[str, Any]:
    data = json.loads(schema.dumps(manifest()))
    place = data
    for key in path[:-1]:
        place = place[key]
    if value is GONE:
        del place[path[-1]]
    else:
        place[path[-1]] = value
    return data


def test_what_is_written_is_read() -> None:
    text = schema.dumps(manifest())
    assert schema.loads(text) == replace(manifest(), stages=schema.loads(text).stages, recipe=schema.loads(text).recipe)
    assert schema.loads(text).recipe == json.loads(json.dumps(manifest().recipe))
    assert schema.dumps(schema.loads(text)) == text
    assert next(iter(json.loads(text))) == "schema"


def test_a_newer_schema_says_both_versions_and_the_pip_line() -> None:
    data = {"schema": SCHEMA + 1, "all else": "may have changed"}
    with pytest.raises(BundleError, match=rf"schema {SCHEMA + 1}.*up to schema {SCHEMA}: pip install -U edgekit"):
        schema.from_dict(data)


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (["name"], GONE, "field 'name' is missing"),
        (["variants", 0, "inputs", 1, "scale"], GONE, r"field 'variants\[0\].inputs\[1\].scale' is missing"),
        (["schema"], GONE, "field 'schema' is missing"),
        (["schema"], "1", "field 'schema' is '1'"),
        (["schema"], 0, "field 'schema' is 0"),
        (["schema"], True, "field 'schema' is True"),
        (["colour"], 1, "field 'colour' is unknown in schema 1: expected name, target"),
        (["model", "halo"], "15", "field 'model.halo' is '15': expected a whole number"),
        (["model", "halo"], 15.0, "field 'model.halo' is 15.0: expected a whole number"),
        (["model", "blind"], 1, "field 'model.blind' is 1: expected true or false"),
        (["tile"], True, "field 'tile' is True: expected a whole number"),
        (["tile"], -64, "field 'tile' is -64: expected 1 to 65536"),
        (["tile"], 66, "field 'tile' is 66: expected a multiple of the model's stride 4"),
        (["tile"], 28, "field 'tile' is 28: expected more than twice the model's halo of 15"),
        (["model", "stride"], 0, "field 'model.stride' is 0: expected 1 to 1024"),
        (["model", "channels"], 4, r"field 'model.channels' is 4: expected 1 \(gray\) or 3 \(RGB\)"),
        (["sigma"], [0.0], r"field 'sigma' is \[0.0\]: expected a list of 2"),
        (["sigma"], [0.0, 300], r"field 'sigma\[1\]' is 300: expected 0 to 255"),
        (["sigma"], [55, 0], "field 'sigma' is .*: expected lowest first"),
        (["precision"], "int4", "field 'precision' is 'int4': expected one of int8, fp16, fp32"),
        (["variants"], {}, "field 'variants' is {}: expected a list"),
        (["variants", 1, "name"], "int8", "field 'variants' is .*: expected names that differ"),
        (["variants", 0, "outputs", 0, "role"], "image", "expected one of clean"),
        (["variants", 0, "inputs", 0, "layout"], "HWC", "expected one of NHWC, NCHW, N"),
        (["variants", 0, "inputs", 0, "dtype"], "int16", "is 'int16': expected one of int8, uint8, float32"),
        (["variants", 0, "inputs", 0, "shape"], [64, 64, 3], "expected 4 numbers for layout NHWC"),
        (["variants", 0, "inputs", 0, "shape", 1], 0, "expected sizes of 1 or more, or -1"),
        (["variants", 0, "inputs", 0, "scale"], None, "expected a scale and a zero_point for dtype int8"),
        (["variants", 0, "inputs", 0, "scale"], -1.0, "expected more than 0"),
        (["variants", 0, "inputs", 0, "role"], "sigma", "expected exactly one tensor of role 'image'"),
        (["variants", 0, "file"], "other.tflite", "expected one of the paths in 'files'"),
        (["default_variant"], "int4", "is 'int4': expected one of int8, int8-uint8io, fp32"),
        (["golden"], "other.npz", "field 'golden' is 'other.npz': expected one of the paths in 'files'"),
        (["files", "golden.npz"], "abc", r"field 'files\['golden.npz'\]' is 'abc': expected a sha256"),
        (["files", "golden.npz"], 1, r"field 'files\['golden.npz'\]' is 1: expected text"),
        (["thresholds", "max_drop"], -0.1, "field 'thresholds.max_drop' is -0.1: expected 0 to 100"),
        (["thresholds", "min_int8_share"], 1.5, "expected 0 to 1"),
        (["layers", 0, "macs"], -5, r"field 'layers\[0\].macs' is -5: expected 0 or more"),
        (["layers"], None, "field 'layers' is None: expected a list"),
        (["stages"], [1], r"field 'stages\[0\]' is 1: expected an object"),
        (["licences"], {"weights": 5}, r"field 'licences\['weights'\]' is 5: expected text"),
    ],
)
def test_a_field_that_is_wrong_is_named(path: list[Any], value: Any, message: str) -> None:
    with pytest.raises(BundleError, match=message):
        schema.from_dict(altered(path, value))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "not valid JSON"),
        ('{"schema": 1', "not valid JSON"),
        ('{"schema": 1, "tile": NaN}', "NaN is not a number"),
        ('{"schema": 1, "schema": 2}', "field 'schema' appears twice"),
        ("[1, 2]", "holds a list: expected an object"),
        ("null", "holds null"),
        ("[" * 100_000, "not valid JSON"),
    ],
)
def test_text_that_is_no_manifest(text: str, message: str) -> None:
    with pytest.raises(BundleError, match=message):
        schema.loads(text)


def test_numbers_of_numpy_are_written_as_numbers() -> None:
    stage = {"seconds": np.float32(1.5), "widths": (np.int64(8), 16)}
    assert schema.to_dict(replace(manifest(), stages=(stage,)))["stages"] == [{"seconds": 1.5, "widths": [8, 16]}]


@pytest.mark.parametrize(
    ("stage", "message"),
    [
        ({"loss": float("nan")}, r"field 'stages\[0\].loss' is nan: expected a finite number"),
        ({"where": Path("x")}, r"field 'stages\[0\].where' is a PosixPath: expected"),
        ({"db": {5: 30.0}}, r"field 'stages\[0\].db' has the key 5: expected a string"),
    ],
)
def test_what_json_cannot_hold_is_named(stage: dict[str, Any], message: str) -> None:
    with pytest.raises(BundleError, match=message):
        schema.dumps(replace(manifest(), stages=(stage,)))


VALID = json.loads(schema.dumps(manifest()))
JUNK = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=4,
)


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_junk_anywhere_is_a_bundle_error_or_fits(data: st.DataObject) -> None:
    """Replace a random part of a manifest by junk: only BundleError may come out."""
    damaged: Any = copy.deepcopy(VALID)
    place, key = damaged, data.draw(st.sampled_from(sorted(damaged)))
    while isinstance(place[key], (dict, list)) and place[key] and data.draw(st.booleans()):
        place = place[key]
        key = data.draw(st.sampled_from(sorted(place) if isinstance(place, dict) else range(len(place))))
    place[key] = data.draw(JUNK)
    with contextlib.suppress(BundleError):
        schema.from_dict(damaged)
