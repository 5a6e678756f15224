"""Where a study lives: a journal in a file, which a shared disk can hold, or a database; and what it must be about."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgekit.errors import CheckpointError, RecipeError
from edgekit.recipe import SearchRecipe

if TYPE_CHECKING:
    import optuna


def open_study(library: Any, recipe: SearchRecipe, storage: str, identity: Mapping[str, Any]) -> optuna.Study:
    """Open a study, or begin it; the first to come says what it is about.

    Args:
        library: Optuna.
        storage: a file, or a database's URL.
        identity: settings that must be those of the study, by name.
    Raises: CheckpointError: the storage cannot be opened, or is a file of something else. RecipeError: the study has
        other settings.
    """
    named = re.sub(r"//([^:/@]*):[^@]*@", r"//\1:***@", storage)
    try:
        opened = storage if "://" in storage else _journal(library, Path(storage))
        made = library.create_study(
            storage=opened,
            study_name=f"edgekit-{recipe.target}-{recipe.budget:g}",
            direction="maximize",
            load_if_exists=True,
        )
        known = made.user_attrs
    except (OSError, ImportError, ValueError, KeyError, library.exceptions.OptunaError, *_database_errors()) as error:
        reason = str(error).partition("\n")[0].replace(storage, named)
        raise CheckpointError(
            f"cannot open the storage {named!r}: {reason}; give a file, or a database's URL with its driver installed"
        ) from None
    study: optuna.Study = made
    # Drawing goes on where an earlier run stopped, instead of drawing the same shapes again.
    begun = len(study.get_trials(deepcopy=False))
    study.sampler = library.samplers.TPESampler(seed=recipe.seed + begun, n_startup_trials=6)
    if differ := [key for key, value in identity.items() if key in known and known[key] != value]:
        key = differ[0]
        raise RecipeError(
            f"the storage {named!r} holds a search with {key} {known[key]}, this one has {identity[key]}: "
            "go on with the same settings, or name another --storage"
        )
    for key, value in identity.items():
        if key not in known:
            study.set_user_attr(key, value)
    return study


def _journal(library: Any, path: Path) -> Any:
    """Optuna's journal: its lock works over NFS, too. It would append to any file, so other files are refused here."""
    if path.exists() and path.stat().st_size:
        with path.open("rb") as file:
            first = file.readline()
        try:
            ours = "op_code" in json.loads(first)
        except (ValueError, TypeError):
            ours = False
        if not ours:
            raise ValueError("the file is no study")
    path.parent.mkdir(parents=True, exist_ok=True)
    return library.storages.JournalStorage(library.storages.journal.JournalFileBackend(str(path)))


def _database_errors() -> tuple[type[Exception], ...]:
    try:
        from sqlalchemy.exc import SQLAlchemyError
    except ModuleNotFoundError:
        return ()
    return (SQLAlchemyError,)
