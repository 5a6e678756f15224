"""The public names: adding one is a decision, losing one breaks users."""

from __future__ import annotations

import importlib
import inspect
import subprocess
import sys

import pytest

import edgekit
from edgekit import api
from edgekit.errors import EdgekitError

_PUBLIC = [
    *("Bundle", "Denoiser", "EdgekitError", "Verdict", "__version__"),
    *("check", "compress", "compress_all", "evaluate", "finetune", "open", "search", "train"),
]


def test_list_is_frozen() -> None:
    assert edgekit.__all__ == _PUBLIC
    assert dir(edgekit) == sorted(_PUBLIC)


@pytest.mark.parametrize("name", _PUBLIC)
def test_every_name_resolves_and_is_documented(name: str) -> None:
    value = getattr(edgekit, name)
    assert isinstance(value, str) or (callable(value) and inspect.getdoc(value))


def test_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'denoise'"):
        edgekit.denoise  # type: ignore[attr-defined]  # noqa: B018


@pytest.mark.parametrize(
    "first", ["import edgekit.compress", "import edgekit.compress.record", "from edgekit import compress"]
)
def test_compress_is_callable_however_it_was_imported(first: str) -> None:
    code = f"{first}\nimport edgekit, inspect\nprint(*inspect.signature(edgekit.compress).parameters)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.stdout.split() == list(inspect.signature(api.compress).parameters), done.stderr


@pytest.mark.parametrize("name", ["compress", "train"])
def test_package_forwards_its_call(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = {}

    def record(**settings: object) -> str:
        seen.update(settings)
        return "done"

    monkeypatch.setattr(api, name, record)
    assert getattr(edgekit, name)(model="dsunet-s", seed=3) == "done"
    assert seen == {"model": "dsunet-s", "seed": 3}
    assert importlib.import_module(f"edgekit.{name}") is getattr(edgekit, name)


def test_compress_takes_every_plain_setting_of_the_recipe() -> None:
    from edgekit.recipe import Recipe

    nested = {"noise", "shape_profile", "pruning", "distillation", "quantization"}
    assert set(inspect.signature(edgekit.compress).parameters) - {"recipe", "out", "force", "resume", "progress"} == (
        set(Recipe.model_fields) - nested
    )


def test_search_takes_every_plain_setting_of_its_recipe() -> None:
    from edgekit.recipe import SearchRecipe

    own = {"recipe", "out", "progress", "sigma"}
    assert set(inspect.signature(edgekit.search).parameters) - own == set(SearchRecipe.model_fields) - {"train"}


def test_compress_refuses_a_wrong_setting_before_any_work() -> None:
    with pytest.raises(EdgekitError, match="prune is 2: expected a number from 0 to 0.9"):
        edgekit.compress(target="tflite", prune=2)


def test_errors_have_one_base_and_its_docstring_draws_the_tree() -> None:
    errors = importlib.import_module("edgekit.errors")
    classes = [c for _, c in inspect.getmembers(errors, inspect.isclass) if c.__module__ == "edgekit.errors"]
    assert all(issubclass(c, EdgekitError) for c in classes)
    tree = inspect.getdoc(EdgekitError) or ""
    assert all(c.__name__ in tree for c in classes)
