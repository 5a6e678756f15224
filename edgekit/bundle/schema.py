"""The manifest as JSON: strict both ways. Standard library only; a device reads it."""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import re
import types
import typing
from typing import Any, NoReturn

from edgekit.bundle.manifest import SCHEMA, Manifest, TensorSpec
from edgekit.errors import BundleError

# Fields that take one of a few words, by the last two parts of their path. Targets, engines and variants are open
# sets - a new one is a new file - so they are not listed.
_WORDS: dict[str, tuple[str, ...]] = {
    "precision": ("int8", "fp16", "fp32"),
    "inputs.role": ("image", "sigma"),
    "outputs.role": ("clean",),
    "inputs.layout": ("NHWC", "NCHW", "N"),
    "outputs.layout": ("NHWC", "NCHW", "N"),
    "inputs.dtype": ("int8", "uint8", "float32"),
    "outputs.dtype": ("int8", "uint8", "float32"),
}

# Inclusive ranges of numbers, keyed alike.
_RANGES: dict[str, tuple[float, float]] = {
    "tile": (1, 65536),
    "sigma": (0, 255),
    "thresholds.max_drop": (0, 100),
    "thresholds.min_int8_share": (0, 1),
    "model.stride": (1, 1024),
    "model.halo": (0, 4096),
    "layers.macs": (0, math.inf),
}

# Fields that came after the first bundles, which are read without them.
_LATER = {"companions", "iso_sigma", "made_for", "sensitivity", "why"}

_INDEX = re.compile(r"\[\d+\]")
_SHA256 = re.compile(r"[0-9a-f]{64}")


def dumps(manifest: Manifest) -> str:
    """The text of `manifest.json`: schema first, indented, one trailing newline; equal manifests give equal text.

    Raises: BundleError: a value that JSON cannot hold, or that `loads` would refuse.
    """
    text = json.dumps(to_dict(manifest), indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    loads(text, "the manifest to be written")
    return text


def loads(text: str, where: str = "manifest.json") -> Manifest:
    """Parse and validate the text of a `manifest.json`.

    Args:
        text: JSON.
        where: what to call it in an error.
    Raises: BundleError: not JSON; a newer schema; a field that is missing, unknown, of the wrong type or out of range.
    """
    try:
        data = json.loads(text, object_pairs_hook=_unique_keys, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise BundleError(f"{where} is not valid JSON ({error}): copy the bundle again, or export it again") from error
    return from_dict(data, where)


def to_dict(manifest: Manifest) -> dict[str, Any]:
    """The manifest as plain dicts, lists, strings and numbers.

    Raises: BundleError: a value inside `stages`, `recipe`, ... that JSON cannot hold, named by its path.
    """
    plain: dict[str, Any] = _plain(dataclasses.asdict(manifest), "")
    if not plain["iso_sigma"]:
        # A reader from before the table takes a bundle that has none.
        del plain["iso_sigma"]
    return {"schema": plain.pop("schema"), **plain}


def from_dict(data: Any, where: str = "manifest.json") -> Manifest:
    """The manifest that `to_dict` gave. Raises: as `loads`."""
    if not isinstance(data, dict):
        raise BundleError(f"{where} holds {_kind(data)}: expected an object with a field 'schema'")
    # Before anything else: a newer schema may have changed every other field.
    schema = data.get("schema")
    if "schema" not in data:
        raise BundleError(
            f"{where}: field 'schema' is missing: not the manifest of an edgekit bundle, or a damaged one"
        )
    if type(schema) is not int or schema < 1:
        raise BundleError(f"{where}: field 'schema' is {schema!r}: expected a whole number, 1 to {SCHEMA}")
    if schema > SCHEMA:
        raise BundleError(
            f"{where} has schema {schema}, this edgekit reads up to schema {SCHEMA}: pip install -U edgekit"
        )
    manifest: Manifest = _Decoder(where).decode(Manifest, data, "")
    _check_relations(manifest, where)
    return manifest


def _plain(value: Any, path: str) -> Any:
    """`value` with tuples as lists and numpy scalars as Python numbers."""
    if isinstance(value, dict):
        for key in value:
            if not isinstance(key, str):
                raise BundleError(f"manifest field '{path}' has the key {key!r}: expected a string")
        return {key: _plain(item, f"{path}.{key}" if path else key) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item, f"{path}[{i}]") for i, item in enumerate(value)]
    if hasattr(value, "dtype") and getattr(value, "ndim", None) == 0:
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        raise BundleError(f"manifest field '{path}' is {value!r}: expected a finite number")
    if value is None or isinstance(value, (str, int, float)):
        return value
    raise BundleError(f"manifest field '{path}' is {_kind(value)}: expected a string, number, list or object")


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) != len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"field {next(n for n in names if names.count(n) > 1)!r} appears twice")
    return fields


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a number")


def _kind(value: Any) -> str:
    names = {dict: "an object", list: "a list", str: "text", bool: "true or false", int: "a number", float: "a number"}
    return "null" if value is None else names.get(type(value), f"a {type(value).__name__}")


@functools.cache
def _hints(cls: type) -> dict[str, Any]:
    return typing.get_type_hints(cls)


class _Decoder:
    """Turns JSON values into what the dataclasses' annotations ask for."""

    def __init__(self, where: str) -> None:
        self._where = where

    def fail(self, path: str, value: Any, expected: str) -> NoReturn:
        shown = repr(value)
        shown = shown if len(shown) <= 60 else shown[:57] + "..."
        raise BundleError(
            f"{self._where}: field '{path or '(top)'}' is {shown}: expected {expected}; "
            "copy the bundle again, or export it again"
        )

    def decode(self, kind: Any, value: Any, path: str) -> Any:
        origin, args = typing.get_origin(kind), typing.get_args(kind)
        if kind is Any:
            return value
        if origin in (typing.Union, types.UnionType):
            return None if value is None else self.decode(next(a for a in args if a is not type(None)), value, path)
        if origin is tuple:
            return self._list(args, value, path)
        if origin is dict:
            if not isinstance(value, dict):
                self.fail(path, value, "an object")
            return {key: self.decode(args[1], item, f"{path}[{key!r}]") for key, item in value.items()}
        if dataclasses.is_dataclass(kind):
            return self._object(kind, value, path)
        return self._scalar(kind, value, path)

    def _list(self, args: tuple[Any, ...], value: Any, path: str) -> tuple[Any, ...]:
        if not isinstance(value, list):
            self.fail(path, value, "a list")
        kinds = [args[0]] * len(value) if args[-1] is Ellipsis else list(args)
        if len(kinds) != len(value):
            self.fail(path, value, f"a list of {len(kinds)}")
        return tuple(self.decode(k, v, f"{path}[{i}]") for i, (k, v) in enumerate(zip(kinds, value, strict=True)))

    def _object(self, kind: Any, value: Any, path: str) -> Any:
        if not isinstance(value, dict):
            self.fail(path, value, "an object")
        hints = _hints(kind)
        names = [f.name for f in dataclasses.fields(kind)]
        prefix = f"{path}." if path else ""
        optional = {
            f.name
            for f in dataclasses.fields(kind)
            if f.default is not dataclasses.MISSING or f.default_factory is not dataclasses.MISSING
        } & _LATER
        for name in names:
            if name not in value and name not in optional:
                raise BundleError(
                    f"{self._where}: field '{prefix}{name}' is missing: copy the bundle again, or export it again"
                )
        for name in value:
            if name not in names:
                raise BundleError(
                    f"{self._where}: field '{prefix}{name}' is unknown in schema {SCHEMA}: expected {', '.join(names)}"
                )
        given = [name for name in names if name in value]
        return kind(**{name: self.decode(hints[name], value[name], f"{prefix}{name}") for name in given})

    def _scalar(self, kind: Any, value: Any, path: str) -> Any:
        words = {str: "text", int: "a whole number", float: "a number", bool: "true or false"}
        accepted = (int, float) if kind is float else (kind,)
        # type() and not isinstance(): JSON's true would pass for the number 1.
        if type(value) not in accepted:
            self.fail(path, value, words[kind])
        key = ".".join(_INDEX.sub("", path).split(".")[-2:])
        if kind is str and key in _WORDS and value not in _WORDS[key]:
            self.fail(path, value, f"one of {', '.join(_WORDS[key])}")
        if key in _RANGES:
            low, high = _RANGES[key]
            if not low <= value <= high:
                self.fail(path, value, f"{low} to {high}" if high < math.inf else f"{low} or more")
        return float(value) if kind is float else value


def _check_relations(manifest: Manifest, where: str) -> None:
    """What a single field cannot tell."""
    fail = _Decoder(where).fail
    if manifest.model.channels not in (1, 3):
        fail("model.channels", manifest.model.channels, "1 (gray) or 3 (RGB)")
    if manifest.sigma[0] > manifest.sigma[1]:
        fail("sigma", list(manifest.sigma), "lowest first")
    low, high = manifest.sigma
    for iso, level in manifest.iso_sigma.items():
        if not re.fullmatch(r"[1-9]\d{0,6}", iso):
            fail("iso_sigma", iso, "ISO settings as keys, e.g. '1600'")
        if not low <= level <= high:
            fail(f"iso_sigma[{iso!r}]", level, f"{low:g} to {high:g}, as sigma")
    if manifest.tile % manifest.model.stride:
        fail("tile", manifest.tile, f"a multiple of the model's stride {manifest.model.stride}")
    if manifest.tile <= 2 * manifest.model.halo:
        fail("tile", manifest.tile, f"more than twice the model's halo of {manifest.model.halo}")
    names = [v.name for v in manifest.variants]
    if len(set(names)) != len(names):
        fail("variants", names, "names that differ")
    if manifest.default_variant not in names:
        fail("default_variant", manifest.default_variant, f"one of {', '.join(names) or '(there is no variant)'}")
    for i, variant in enumerate(manifest.variants):
        for side, specs in (("inputs", variant.inputs), ("outputs", variant.outputs)):
            roles = [s.role for s in specs]
            for role in ("image",) if side == "inputs" else ("clean",):
                if roles.count(role) != 1:
                    fail(f"variants[{i}].{side}", roles, f"exactly one tensor of role {role!r}")
            for j, spec in enumerate(specs):
                _check_tensor(spec, f"variants[{i}].{side}[{j}]", where)
        for name in variant.files:
            if name not in manifest.files:
                fail(f"variants[{i}].file", name, "one of the paths in 'files'")
    if manifest.golden not in manifest.files:
        fail("golden", manifest.golden, "one of the paths in 'files'")
    for name, digest in manifest.files.items():
        if not _SHA256.fullmatch(digest):
            fail(f"files[{name!r}]", digest, "a sha256 of 64 hexadecimal digits")


def _check_tensor(spec: TensorSpec, path: str, where: str) -> None:
    fail = _Decoder(where).fail
    if len(spec.shape) != (1 if spec.layout == "N" else 4):
        fail(f"{path}.shape", list(spec.shape), f"{1 if spec.layout == 'N' else 4} numbers for layout {spec.layout}")
    if any(n < 1 and n != -1 for n in spec.shape):
        fail(f"{path}.shape", list(spec.shape), "sizes of 1 or more, or -1 for any")
    if spec.dtype != "float32" and (spec.scale is None or spec.zero_point is None):
        fail(f"{path}.scale", spec.scale, f"a scale and a zero_point for dtype {spec.dtype}")
    if spec.scale is not None and not spec.scale > 0:
        fail(f"{path}.scale", spec.scale, "more than 0")
