"""Reading and writing weight files. A weight file is data: nothing in it is ever unpickled or run."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from edgekit.errors import CheckpointError, EdgekitError, RecipeError, UnknownNameError
from edgekit.models.base import DenoiserModel
from edgekit.models.registry import build, create, names
from edgekit.shortened import shortened

_FOLDER = Path(__file__).parent / "weights"
SUFFIXES = (".safetensors", ".pth", ".pt", ".ckpt")
# Where the training codes of this field put the weights in a file that also holds other things; the average first.
_NESTED = ("ema", "params_ema", "shadow", "params", "state_dict", "model_state_dict", "model", "net")
# What DataParallel, torch.compile and a module around the network put before every name.
_PREFIXES = ("module.", "_orig_mod.", "model.", "net.", "network.")


def shipped() -> dict[str, Path]:
    """The weight files that come with edgekit, by the name that `load` takes."""
    return {path.stem: path for path in sorted(_FOLDER.glob("*.safetensors"))}


def preset(name: str) -> str:
    """The model name that shipped weights belong to ("dsunet-s" of "dsunet-s-free"); any other name as it is."""
    if name in names() or name not in shipped():
        return name
    header = metadata(name)
    return next(iter(presets_of(header["arch"], json.loads(header["config"]))), name)


def presets_of(arch: str, config: Mapping[str, Any]) -> list[str]:
    """The model names of an architecture and its arguments; whether gray or colour is no part of a name."""
    found = []
    for known in names():
        # Without memory for its weights: some have millions.
        with torch.device("meta"):
            model = create(known)
        if model.arch == arch and {**model.config(), "channels": None} == {**config, "channels": None}:
            found.append(known)
    return found


def load(source: str | Path, model: str | DenoiserModel | None = None, **overrides: Any) -> DenoiserModel:
    """A model with its weights, in float32, in eval mode.

    Args:
        source: a shipped name ("dsunet-s"), a .safetensors file (one that edgekit wrote knows its own architecture), or
            a .pth, .pt or .ckpt file that holds a state dict.
        model: what the weights belong to - a name of `models.names()`, or a module, which is then filled in place; None
            for a file that says so itself.
        overrides: constructor arguments for a `model` given by name.
    Raises:
        UnknownNameError: no such shipped name or model.
        RecipeError: overrides without a model's name: they would change nothing.
        CheckpointError: the file cannot be read, does not fit the model, or holds NaN or infinity.
    """
    path = _find(source)
    if overrides and not isinstance(model, str):
        given = ", ".join(f"{key}={value!r}" for key, value in overrides.items())
        raise RecipeError(
            f"{given} is for a model given by name: name it, e.g. models.load({str(source)!r}, 'dsunet-s', {given}), "
            "or leave it out: the weights say what they are of"
        )
    state, header = _read(path)
    if isinstance(model, DenoiserModel):
        target = model
    elif model is not None:
        target = create(model, **overrides)
    else:
        target = _from_header(path, header)
    owner = target if model is None else _owner(path, header)
    differing = [] if owner is None else _differing(owner, target)
    _fill(target, state, path, owner, differing=differing)
    return target.eval()


def fill(module: nn.Module, path: Path, name: str) -> None:
    """Load a weight file into a module of the user's own, called `name` in messages.

    Raises: CheckpointError: the file cannot be read, does not fit, or holds NaN or infinity.
    """
    state, header = _read(_find(path))
    _fill(module, state, path, _owner(path, header), name)


def state_dict(path: Path) -> dict[str, Tensor]:
    """The tensors of a weight file by name. Raises: CheckpointError: the file cannot be read."""
    return _read(_find(path))[0]


def metadata(source: str | Path) -> dict[str, str]:
    """The header of a .safetensors file: arch, config (JSON) and what its writer added; empty for other files."""
    path = _find(source)
    return _read_safetensors(path, tensors=False)[1] if path.suffix == ".safetensors" else {}


def says_model(source: str | Path) -> bool:
    """Whether a file says which model it is of, as those that edgekit writes do."""
    return "arch" in metadata(source)


def save(
    path: str | Path, model: DenoiserModel, metadata: Mapping[str, str] | None = None, *, half: bool = False
) -> None:
    """Write a .safetensors file that `load` rebuilds the model from, whole or not at all.

    Args:
        path: ends in .safetensors; an existing file is replaced.
        metadata: more text for the header, e.g. {"licence": "..."}.
        half: store float16, half the size; `load` gives float32 back, rounded to 11 bits.
    Raises: CheckpointError: a weight is NaN or infinite (or leaves float16's range), or the file cannot be written.
    """
    from safetensors.torch import save as to_bytes

    path = Path(path)
    kind = torch.float16 if half else torch.float32
    state = {k: _cast(v.detach().cpu(), kind) for k, v in model.state_dict().items()}
    _check_finite(state, path)
    header = {**(metadata or {}), "format": "pt", "arch": model.arch, "config": json.dumps(model.config())}
    write_atomically(path, _sorted_header(to_bytes(state, header)))


def _sorted_header(content: bytes) -> bytes:
    """The same safetensors file with its header in a fixed order: the library's own differs from run to run."""
    size = int.from_bytes(content[:8], "little")
    header = json.dumps(json.loads(content[8 : 8 + size]), sort_keys=True, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)  # the format wants the data aligned to 8 bytes
    return len(header).to_bytes(8, "little") + header + content[8 + size :]


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file under a temporary name beside it, flush it to the disk, and rename it: whole, or as it was.

    Raises: CheckpointError: the disk is full, the folder cannot be written.
    """
    temporary: Path | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
        temporary = Path(name)
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)  # mkstemp makes private files; this one is as shared as any other
        temporary.replace(path)
    except OSError as error:
        if temporary:
            with contextlib.suppress(OSError):
                temporary.unlink()
        raise CheckpointError(
            f"cannot write {path} ({len(content)} bytes): {error.strerror or error}; "
            "free some space or name another folder; what stood there is unchanged"
        ) from error


def _find(source: str | Path) -> Path:
    text = str(source)
    path = Path(source)
    if path.suffix in SUFFIXES or path.exists():
        if not path.is_file():
            raise CheckpointError(f"weights {text!r}: no such file")
        return path
    files = shipped()
    if text not in files:
        # A name or a file, the user may have meant either.
        raise UnknownNameError.unknown("weights", text, [*files, f"a file ending in {', '.join(SUFFIXES)}"])
    return files[text]


def _read(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    return _read_safetensors(path) if path.suffix == ".safetensors" else (_read_torch(path), {})


def _read_safetensors(path: Path, *, tensors: bool = True) -> tuple[dict[str, Tensor], dict[str, str]]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            names = file.keys() if tensors else ()
            return {name: file.get_tensor(name) for name in names}, file.metadata() or {}
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(
            f"{path} is no whole safetensors file ({error}): it was cut short or altered; fetch it again"
        ) from error


def _read_torch(path: Path) -> dict[str, Tensor]:
    import pickle
    import warnings

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's guesses about odd files; the errors below say it
            content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{path} holds Python objects or is damaged: expected a state dict of tensors alone, because edgekit never "
            "unpickles a file; save it again with torch.save(model.state_dict(), ...) or as .safetensors"
        ) from error
    except Exception as error:  # on damaged files torch's readers raise whatever they run into
        reason = str(error).split("\n", 1)[0]
        raise CheckpointError(f"{path} is no whole PyTorch file ({reason}): it was cut short or altered") from error
    found = _tensors(content)
    if found is None:
        keys = [repr(key) for key in content] if isinstance(content, Mapping) else []
        held = f"a mapping of {shortened(keys)}" if keys else type(content).__name__
        raise CheckpointError(
            f"{path} holds no state dict but {held}: expected a mapping from parameter names to tensors, at the top or "
            f"under {', '.join(_NESTED)}; write one with torch.save(model.state_dict(), ...)"
        )
    return found


def _tensors(content: object) -> dict[str, Tensor] | None:
    """The first mapping of nothing but tensors, at the top or where training codes put one."""
    if not isinstance(content, Mapping) or not content:
        return None
    if all(isinstance(value, Tensor) for value in content.values()):
        return dict(content)
    return next((found for key in _NESTED if (found := _tensors(content.get(key))) is not None), None)


def _bare(state: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """The state without the prefixes that all its names have and none of the model's."""
    while state and not state.keys() & wanted.keys():
        prefix = next((p for p in _PREFIXES if all(key.startswith(p) for key in state)), None)
        if prefix is None:
            break
        state = {key.removeprefix(prefix): value for key, value in state.items()}
    return state


def named_line(source: str | Path, copy: str) -> str:
    """The shell line that writes weights once more, as a file that says which network they are of."""
    return (
        'python -c "from pathlib import Path; from edgekit import models; '
        f"models.save(Path({copy!r}), models.load({str(source)!r}, 'MODEL'))\""
    )


def _from_header(path: Path, header: Mapping[str, str]) -> DenoiserModel:
    if "arch" not in header or "config" not in header:
        raise CheckpointError(
            f"{path} does not say which architecture it belongs to: where a model can be named, name it (--model "
            f"ffdnet-color --weights {path}, in Python model='ffdnet-color'); for a teacher write it once as a file "
            f"that says so: {named_line(path, 'teacher.safetensors')}"
        )
    try:
        config = json.loads(header["config"])
        # On the meta device a header that asks for absurd widths costs nothing; the shapes are compared next.
        with torch.device("meta"):
            return build(header["arch"], config)
    except (EdgekitError, ArithmeticError, AttributeError, LookupError, TypeError, ValueError, RuntimeError) as error:
        raise CheckpointError(f"{path}: its header does not describe a model ({error})") from error


def _fill(
    model: nn.Module,
    state: Mapping[str, Tensor],
    path: Path,
    owner: DenoiserModel | None,
    name: str = "",
    *,
    differing: Sequence[str] = (),
) -> None:
    """Fill in the module, or say what does not fit.

    Args:
        owner: what the file says that it holds.
        name: of a module of the user's own, for messages.
        differing: where the file's settings are not the model's, though its shapes are.
    """
    wanted = model.state_dict()
    given, state = state, _bare(state, wanted)
    problems = []
    if missing := sorted(wanted.keys() - state.keys()):
        problems.append(f"missing {shortened(missing)}")
    if unexpected := sorted(state.keys() - wanted.keys()):
        problems.append(f"unexpected {shortened(unexpected)}")
    wrong = [
        f"{key} is {list(state[key].shape)} where the model has {list(wanted[key].shape)}"
        for key in wanted
        if key in state and state[key].shape != wanted[key].shape
    ]
    if wrong:
        problems.append(shortened(wrong))
    if problems:
        hint = _belongs(owner, model, given)
        if not hint and not name:
            hint = "name the model that these weights are of (--model NAME, `edgekit models` lists them); "
        raise CheckpointError(f"{path} does not fit {name or _called(model)}: {hint}{'; '.join(problems)}")
    if differing:
        raise CheckpointError(
            f"{path} does not fit {name or _called(model)}: every shape does, but {'; '.join(differing)}; give the "
            "model the file's settings (in a recipe under config), or leave the model out: the file says what it is of"
        )
    _check_finite(state, path)
    # assign: a model on the meta device has nothing to copy into.
    model.load_state_dict({k: _cast(v, torch.float32) for k, v in state.items()}, assign=_is_meta(model))


def _owner(path: Path, header: Mapping[str, str]) -> DenoiserModel | None:
    """What the file itself says that it holds, if it does."""
    return _from_header(path, header) if {"arch", "config"} <= header.keys() else None


def _belongs(owner: DenoiserModel | None, model: nn.Module, state: Mapping[str, Tensor]) -> str:
    """Whose weights they are, by the file's own words or by their shapes, for the message that they do not fit."""
    named = _recognised(state) if owner is None else _named(owner)
    if named:
        preset = named[0].split(" for ")[0]
        # Commands take the model by a flag or by its place. Of the same name it is of the other kind of images.
        use = "" if _called(model).startswith(f"{preset} for ") else f"; use them with that model, {preset}"
        return f"these are weights of {' or '.join(named)}{use}; "
    if owner is None:
        return ""
    alike = isinstance(model, DenoiserModel) and model.arch == owner.arch
    settings = [f"{key} {value}" for key, value in owner.config().items() if alike and value != _setting(model, key)]
    return f"its header says {owner.arch}{' of ' if settings else ''}{shortened(settings)}, which has no name; "


def _setting(model: nn.Module, key: str) -> Any:
    return model.config().get(key) if isinstance(model, DenoiserModel) else None


def _called(model: nn.Module) -> str:
    """A model in a few words."""
    if not isinstance(model, DenoiserModel):
        return type(model).__name__
    return " or ".join(_named(model)) or f"this {model.arch}"


def _named(model: DenoiserModel) -> list[str]:
    """What edgekit's models of this architecture and configuration are called, with the images they are for."""
    kind = "gray" if model.channels == 1 else "colour"
    return [f"{name} for {kind} images" for name in presets_of(model.arch, model.config())]


def _recognised(state: Mapping[str, Tensor]) -> list[str]:
    """The models of edgekit whose tensors have these names and shapes, as `_named` calls them."""
    found: list[str] = []
    for name, channels in itertools.product(names(), (3, 1)):
        try:
            with torch.device("meta"):
                model = create(name, channels=channels)
        except EdgekitError:
            continue  # for images of another kind alone
        wanted = model.state_dict()
        stored = _bare(state, wanted)
        if stored.keys() == wanted.keys() and all(stored[key].shape == wanted[key].shape for key in wanted):
            found += [each for each in _named(model) if each not in found]
    return found


def _differing(owner: DenoiserModel, model: DenoiserModel) -> list[str]:
    """Where the file's own settings are not the model's: a dilation or a scale shows in no shape."""
    if owner.arch != model.arch:
        return [f"it is of {owner.arch}"]
    theirs, ours = owner.config(), model.config()
    return [f"{key} is {theirs[key]!r} where the model has {ours[key]!r}" for key in ours if theirs[key] != ours[key]]


def _cast(value: Tensor, kind: torch.dtype) -> Tensor:
    """A contiguous copy; integers (counters of a layer) stay integers."""
    return value.to(kind if value.is_floating_point() else value.dtype, copy=True).contiguous()


def _is_meta(model: nn.Module) -> bool:
    return any(p.is_meta for p in model.parameters())


def _check_finite(state: Mapping[str, Tensor], path: Path) -> None:
    for key, value in state.items():
        if bad := int((~torch.isfinite(value)).sum()):
            raise CheckpointError(
                f"{path}: {bad} of the {value.numel()} values of {key} are NaN or infinite; "
                "these weights are of no use: go back to an earlier checkpoint"
            )
