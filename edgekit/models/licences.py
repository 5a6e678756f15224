"""What weights and images may be used for: their terms in words, and one word that a program can act on."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from edgekit._version import __version__
from edgekit.errors import DataError, LicenceError
from edgekit.models import checkpoints

ANY, OWNER, UNKNOWN, NON_COMMERCIAL = "any", "owner", "unknown", "non-commercial"
# Best first: what is made from several things has the last of their words.
USES = {
    ANY: "any use",
    OWNER: "what the owner of the images allows",
    UNKNOWN: "nobody states what",
    NON_COMMERCIAL: "research or other non-commercial use alone",
}
OWNERS_WORD = "as the owner of the images states"
NOT_STATED = "not stated"
FILE = "licence.yaml"
# Files from before there was a word for it: what their licence says of it.
_RESTRICTED = re.compile(
    r"non-?commercial|research|-NC\b|academic|education|\b(not|no|without)\b.*\bcommercial", re.IGNORECASE
)
# The whole of it: what follows a licence's name may take back what the name gives.
_FREE = re.compile(
    r"CC0(-1\.0| 1\.0)?( or public domain)?|public domain|CC-BY-(3|4)\.0|MIT|Apache-2(\.0)?|BSD-[23](-Clause)?"
    r"|CC0 or public domain, and generated images",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Terms:
    """Under what terms something comes.

    Attributes:
        licence: in words.
        use: one of `USES`.
        trained_on: of weights, the images.
    """

    licence: str
    use: str
    trained_on: str = ""

    @property
    def clean(self) -> bool:
        """Whether a product may hold it, as far as is known; of an owner's own images the owner knows."""
        return self.use in (ANY, OWNER)


def of_weights(source: str | Path) -> Terms:
    """The terms of weights, or of a network of another library.

    Args:
        source: a shipped name, a weight file, or what `importers.accepts`. Where a file's header does not say what it
            may be used for, `FILE.licence.yaml` beside it may.
    Raises: CheckpointError, UnknownNameError: the file cannot be read, or is none. DataError: a wrong licence file.
    """
    path = Path(str(source).rpartition(":")[0] if ".py:" in str(source) else source)
    known = str(source) in checkpoints.shipped() or path.suffix == ".safetensors"
    header = checkpoints.metadata(source) if known else {}
    said = of_header(header) if "licence" in header or "use" in header else Terms(NOT_STATED, UNKNOWN)
    if said.use != UNKNOWN:
        return said
    beside = stated(path.with_name(f"{path.name}.{FILE}"))
    return said if beside is None else replace(beside, trained_on=said.trained_on)


def of_header(header: Mapping[str, str]) -> Terms:
    """The terms that a weight file's header states: `use`, else what the words of `licence` say."""
    licence = header.get("licence", NOT_STATED)
    use = header.get("use", "")
    if use not in USES:
        use = _worst(_by_words(part.strip()) for part in licence.split(";"))
    return Terms(licence, use, header.get("trained_on", ""))


def of_images(folder: Path | None) -> Terms:
    """The terms of a data folder: what `licence.yaml` in it states, else its owner's; None is the built-in set.

    Of noisy/ or clean/ alone, the file may stand in the folder of the pairs.
    """
    if folder is None:
        return Terms("CC0 or public domain, and generated images", ANY)
    above = stated(folder.parent / FILE) if folder.name in ("noisy", "clean") else None
    return stated(folder / FILE) or above or Terms(OWNERS_WORD, OWNER)


def stated(path: Path) -> Terms | None:
    """What a licence file states: YAML with `licence` (words) and `use` (any or non-commercial); None without one.

    Raises: DataError: it says something else.
    """
    if not path.is_file():
        return None
    import yaml

    try:
        said: Any = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError):
        said = None
    if isinstance(said, dict) and isinstance(said.get("licence"), str) and said.get("use") in (ANY, NON_COMMERCIAL):
        return Terms(said["licence"], said["use"])
    raise DataError(
        f"{path} states no terms: expected two lines, 'licence: CC-BY-4.0' (or other words) and 'use: any' "
        f"(or 'use: {NON_COMMERCIAL}')"
    )


def combine(*parts: Terms) -> Terms:
    """The terms of what is made from several things: all their words, and the most restricted use."""
    # What is made of several things is itself such a list.
    licence = "; ".join(dict.fromkeys(words for part in parts for words in part.licence.split("; ")))
    return Terms(licence, _worst(part.use for part in parts))


def header(made_of: Iterable[Terms], shown: Iterable[str]) -> dict[str, str]:
    """What the header of new weights says of where they come from.

    Args:
        made_of: the terms of everything that they learned from.
        shown: the images by name, first those of the weights that they began as, which may be a list with commas;
            empty names and repeats are dropped.
    """
    terms = combine(*made_of)
    # What earlier weights were shown is such a list already.
    seen = ", ".join(dict.fromkeys(filter(None, ", ".join(shown).split(", "))))
    return {"licence": terms.licence, "use": terms.use, "trained_on": seen, "edgekit": __version__}


def check_clean(parts: Mapping[str, tuple[str, Terms]]) -> None:
    """Refuse what is not free for any use.

    Args:
        parts: by role ("weights", "teacher", "data"): what it is called, and its terms.
    Raises: LicenceError: names the first such, its licence and what to do.
    """
    for role, (name, terms) in parts.items():
        if terms.clean:
            continue
        place = checkpoints.shipped().get(name, name)
        what = f"{role} {name!r}" + (f" ({place})" if str(place) != name else "")
        if terms.use == UNKNOWN:
            fix = f"if you know it, write it into {place}.{FILE} ('licence: ...' and 'use: any'), or {_others(role)}"
            raise LicenceError(f"license_clean: {what} does not state what it may be used for: {fix}")
        raise LicenceError(f"license_clean: {what} is for {USES[terms.use]} ({terms.licence}): {_others(role)}")


def _others(role: str) -> str:
    if role == "data":
        return "give images that are free for any use, or leave --data out: the built-in set is"
    clean = [name for name in checkpoints.shipped() if of_weights(name).clean]
    fix = f"use {' or '.join(clean)}, " if clean else "no shipped weights are free of that: use "
    none = ", or --teacher none" if role == "teacher" else ""
    return f"{fix}{'or ' if clean else ''}weights that `edgekit train` made from free images{none}"


def _by_words(licence: str) -> str:
    if _RESTRICTED.search(licence):
        return NON_COMMERCIAL
    if licence == OWNERS_WORD:
        return OWNER
    return ANY if _FREE.fullmatch(licence) else UNKNOWN


def _worst(uses: Iterable[str]) -> str:
    return max(uses, key=list(USES).index)
