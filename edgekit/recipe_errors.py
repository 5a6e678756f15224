"""Wording what is wrong with a recipe in one line: the setting, its value, what is allowed, the fix."""

from __future__ import annotations

import difflib
from typing import TYPE_CHECKING, Any

from edgekit.errors import RecipeError

if TYPE_CHECKING:
    from pydantic import BaseModel, ValidationError

_KINDS = {
    "int_type": "a whole number",
    "int_parsing": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "float_parsing": "a number",
    "finite_number": "a finite number",
    "bool_type": "true or false",
    "bool_parsing": "true or false",
    "string_type": "a text",
    "path_type": "a path",
    "tuple_type": "a list",
    "dict_type": "settings by name",
    "model_type": "settings by name",
}
_LIMITS = {"minimum", "exclusiveMinimum", "maximum", "exclusiveMaximum"}
_BOUNDS = {"greater_than", "greater_than_equal", "less_than", "less_than_equal"}


def word(error: ValidationError, cls: type[BaseModel], where: str) -> RecipeError:
    """Turn pydantic's report into one line about its first error.

    Args:
        error: what pydantic raised for `cls`.
        cls: the settings class that refused.
        where: where the settings came from, e.g. "recipe.yaml"; empty for flags and keyword arguments.
    """
    first = error.errors()[0]
    kind, location = first["type"], first["loc"]
    # The position inside a pair or a list says less than the value does.
    name = ".".join(part for part in location if isinstance(part, str))
    prefix = f"{where}: " if where else ""
    if location[:1] == ("parts",) and len(location) > 1:
        # Of a list of settings it says which.
        number = f"part {int(location[1]) + 1}"
        prefix, name = (f"{prefix}{number}: ", name.partition(".")[2]) if len(location) > 2 else (prefix, number)
    if kind == "extra_forbidden":
        names = sorted(_node(cls, location[:-1]).get("properties", {}))
        near = difflib.get_close_matches(str(location[-1]), names, n=1)
        hint = f" (did you mean {near[0]!r}?)" if near else ""
        leaf = str(location[-1])
        if inside := places(cls, leaf, location[:-1]):
            hint = f" ({leaf!r} stands under {' or '.join(inside)})"
        elif len(location) > 1 and leaf in cls.model_fields:
            hint = f" ({leaf!r} stands beside {location[0]!r}, not in it)"
        return RecipeError(f"{prefix}unknown setting {name!r}: expected one of {', '.join(names)}{hint}")
    if kind == "missing":
        flag = name.replace("_", "-")
        # The one setting that is an argument says so in its schema.
        given = _node(cls, location).get("flag", f"--{flag} {flag.upper()}")
        example = _node(cls, location).get("example")
        shown = f", e.g. --{flag} {example}" if example else ""
        return RecipeError(f"{prefix}{name} is missing: give it in the recipe or with {given}{shown}")
    value = f"{prefix}{name} is {first['input']!r}"
    if kind == "value_error":
        # Settings that contradict each other have no place of their own.
        return RecipeError(f"{value if name else prefix.rstrip(': ')}: {first['ctx']['error']}".removeprefix(": "))
    if kind in _BOUNDS or (kind == "finite_number" and _LIMITS & _node(cls, location).keys()):
        return RecipeError(f"{value}: expected {_bounds(_node(cls, location))}")
    if kind == "literal_error":
        return RecipeError(f"{value}: expected {first['ctx']['expected']}")
    return RecipeError(f"{value}: expected {_KINDS[kind]}" if kind in _KINDS else f"{value}: {first['msg']}")


def taken(cls: type[BaseModel], name: str) -> str:
    """What a setting takes, in words; empty where its type says no more than that."""
    choices = cls.model_json_schema()["properties"][name].get("anyOf", ())
    if sum(choice.get("type") != "null" for choice in choices) > 1:
        return ""
    node = _node(cls, (name,))
    if "enum" in node:
        return ", ".join(str(value) for value in node["enum"])
    if node.get("type") == "boolean":
        return _KINDS["bool_type"]
    if node.get("type") in ("integer", "number"):
        return _bounds(node).rstrip()
    return ""


def places(cls: type[BaseModel], name: str, location: tuple[int | str, ...] = ()) -> list[str]:
    """The settings of a class, or of one of its settings, that have one of that name in them."""
    schema = cls.model_json_schema()
    settings: dict[str, Any] = _node(cls, location).get("properties", {})
    found = [outer for outer, node in settings.items() if name in _resolve(node, schema).get("properties", {})]
    return [".".join([*(part for part in location if isinstance(part, str)), outer]) for outer in found]


def _node(cls: type[BaseModel], location: tuple[int | str, ...]) -> dict[str, Any]:
    """The part of the class's JSON schema that describes a setting."""
    schema = cls.model_json_schema()
    node: dict[str, Any] = schema
    for part in location:
        node = _resolve(node, schema)
        if isinstance(part, int):
            items = node.get("prefixItems", [])
            node = items[part] if part < len(items) else node.get("items", {})
        else:
            node = node.get("properties", {}).get(part, node.get("additionalProperties", {}))
    return _resolve(node, schema)


def _resolve(node: dict[str, Any], schema: dict[str, Any]) -> dict[str, Any]:
    """Follow a reference, and in a choice (`int | None`) take the first branch."""
    while "$ref" in node or "anyOf" in node:
        node = schema["$defs"][node["$ref"].rpartition("/")[2]] if "$ref" in node else node["anyOf"][0]
    return node


def _bounds(node: dict[str, Any]) -> str:
    """A range in words, e.g. "a number from 0 to 0.9"."""
    kind = "a whole number" if node.get("type") == "integer" else "a number"
    low, above = node.get("minimum"), node.get("exclusiveMinimum")
    high, below = node.get("maximum"), node.get("exclusiveMaximum")
    if low is not None and high is not None:
        return f"{kind} from {low:g} to {high:g}"
    ends = [(low, "at least"), (above, "above"), (high, "at most"), (below, "below")]
    return f"{kind} " + " and ".join(f"{word} {end:.10g}" for end, word in ends if end is not None)
