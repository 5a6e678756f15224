"""PyTorch: FILE.py:FACTORY, a function that returns a torch.nn.Module, or a program that torch.export saved (.pt2)."""

from __future__ import annotations

import hashlib
import importlib.util
import inspect
import itertools
import logging
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from edgekit.errors import CheckpointError, MissingExtraError, first_line
from edgekit.models import checkpoints
from edgekit.models.graph import GraphModel
from edgekit.models.importers import onnx_file
from edgekit.models.importers.builder import Array, hold_against, names_level
from edgekit.quiet import quietly

_log = logging.getLogger(__name__)

# Height and width that a module is tried and read at: a multiple of every stride in use.
_SIDE = 64
_OPSET = 20
# What a module is tried with as its noise level.
_LEVEL = 25 / 255
_MARK = ".py:"


def accepts(path: Path) -> bool:
    """Whether this is such a file, by its name."""
    return _MARK in path.name or path.suffix == ".pt2"


def takes_weights(path: Path) -> bool:
    """Whether weights come in a file of their own: a program has its weights inside."""
    return _MARK in path.name


def load(path: Path, weights: Path | None = None) -> GraphModel:
    """Read it by way of ONNX, and hold it against what PyTorch computes.

    A module is called as `module(noisy)` or `module(noisy, sigma)`, with sigma in 0..1 as [N, 1, 1, 1], [N] or a map
    [N, 1, H, W], or with the map as the last channel of the image: the first of these that gives an image of the same
    size, with a sigma that has a default before without it. The .py file is the user's own code and is run.

    Args:
        weights: a state dict for what the factory returns, .safetensors or .pth.
    Raises: MissingExtraError; CheckpointError.
    """
    if path.suffix == ".pt2":
        program, sample = _program(path)
        return _read(program.module(), program, sample, path)
    module = _module(path)
    if weights is not None:
        checkpoints.fill(module, weights, path.name)
    module.eval()
    sample = _call(module, path)
    try:
        model = _read(module, module, sample, path)
    except CheckpointError as error:
        raise CheckpointError(f"{error}{_advice(module, sample)}") from error
    if told := _doubt(module, sample):
        _log.warning("%s: %s", path, told)
    return model


def _program(path: Path) -> tuple[Any, tuple[Tensor, ...]]:
    """An exported program and the inputs that it was exported with."""
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file")
    try:
        with quietly():
            program = torch.export.load(path)
        arguments, named = program.example_inputs
    except Exception as error:  # a damaged file raises whatever its reader runs into
        raise CheckpointError(f"{path} is no program of torch.export ({first_line(error)}): save it again") from error
    fix = "export it again with torch.export.export(module, (noisy, sigma)) or (noisy,), one image [1, C, H, W]"
    if named or not arguments or not all(isinstance(value, Tensor) for value in arguments):
        raise CheckpointError(f"{path} was not exported with one or two tensors in their order: {fix}")
    if arguments[0].ndim != 4 or arguments[0].shape[0] != 1:
        raise CheckpointError(f"{path} was exported with an image {list(arguments[0].shape)}: {fix}")
    return program, arguments


def _module(path: Path) -> nn.Module:
    """What the factory returns."""
    name, _, factory = str(path).rpartition(":")
    file = Path(name)
    if not file.is_file():
        raise CheckpointError(f"{file}: no such file")
    folder = str(file.resolve().parent)
    # Two files of one name are two modules.
    mark = hashlib.sha256(folder.encode()).hexdigest()[:8]
    spec = importlib.util.spec_from_file_location(f"edgekit_user_{file.stem}_{mark}", file)
    assert spec is not None
    assert spec.loader is not None
    code = importlib.util.module_from_spec(spec)
    # As `python FILE.py` would find them: what it imports from beside it.
    before = set(sys.modules)
    sys.path.insert(0, folder)
    try:
        sys.modules[spec.name] = code  # dataclasses and the like look themselves up
        spec.loader.exec_module(code)
        made = getattr(code, factory, None)
        if not callable(made):
            known = [n for n, v in vars(code).items() if callable(v) and getattr(v, "__module__", "") == spec.name]
            raise CheckpointError(f"{file} has no {factory or 'factory'}: it defines {', '.join(known) or 'nothing'}")
        module = made()
    except CheckpointError:
        raise
    except Exception as error:  # the user's own code
        raise CheckpointError(f"{path} raised {type(error).__name__}: {first_line(error)}") from error
    finally:
        sys.path.remove(folder)
        # What it imported from beside it is its own: another file may have neighbours of the same names.
        for name in set(sys.modules) - before:
            if str(getattr(sys.modules[name], "__file__", None) or "").startswith(f"{folder}{os.sep}"):
                del sys.modules[name]
    if not isinstance(module, nn.Module):
        raise CheckpointError(f"{path} returned {type(module).__name__}: expected a torch.nn.Module")
    return module.float()


def _call(module: nn.Module, path: Path) -> tuple[Tensor, ...]:
    """The arguments that a module takes: with a level wherever it makes a difference, else it is read as blind.

    Raises: CheckpointError: it gives no image of the same size for any of them.
    """
    names, needed = _positional(module)
    failed = ""
    for sample in _samples(names, needed):
        output, reason = _tried(module, sample)
        if output is None:
            failed = failed or f"; {_shapes(sample)}{reason}"
        # A level that may be left out and changes nothing is none: a flag, say.
        elif len(sample) < 2 or needed > 1 or _matters(module, sample, output):
            return sample
    raise CheckpointError(
        f"{path} is no denoiser: expected a module that takes noisy, or noisy and sigma, and gives an image of "
        f"that size{failed}"
    )


def _positional(module: nn.Module) -> tuple[list[str], int]:
    """The names of the arguments that a module takes by place, and how many of them have no default."""
    found = [
        p
        for p in inspect.signature(module.forward).parameters.values()
        if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)
    ]
    return [p.name for p in found], sum(p.default is p.empty for p in found)


def _tried(module: nn.Module, sample: tuple[Tensor, ...]) -> tuple[Tensor | None, str]:
    """The image that a module gives, of the height and width it was given; or None, and what it did instead."""
    try:
        with torch.no_grad():
            output = module(*sample)
    except Exception as error:  # noqa: BLE001 - the user's own code, tried with what may not be meant for it
        return None, f": {first_line(error)}"
    if not isinstance(output, Tensor):
        return None, f" gives {type(output).__name__}"
    if output.shape[2:] != sample[0].shape[2:] or output.shape[1] not in (1, 3):
        return None, f" gives {list(output.shape)}"
    return output, ""


def _matters(module: nn.Module, sample: tuple[Tensor, ...], output: Tensor) -> bool:
    """Whether another level gives another image than `output`."""
    other, _ = _tried(module, (sample[0], 2 * sample[1]))
    return other is None or not torch.equal(other, output)


def _optional(module: nn.Module) -> str:
    """The name of a second argument that has a default; "" where there is none."""
    names, needed = _positional(module)
    return names[1] if len(names) > 1 and needed < 2 else ""


def _doubt(module: nn.Module, sample: tuple[Tensor, ...]) -> str:
    """What a user should know where a second argument that has a default may be taken for what it is not."""
    name = _optional(module)
    if name and len(sample) < 2:
        return (
            f"its second argument, {name}, was left at its default, as no noise level there gives another image: the "
            "model is read as blind. If it is one, let it be a tensor [N, 1, 1, 1], [N] or [N, 1, H, W] of sigma / 255"
        )
    if name and not names_level(name):
        return (
            f"its second argument, {name}, is taken for the noise level. If it is none, let the factory return a "
            "module that takes the image alone"
        )
    return ""


def _advice(module: nn.Module, sample: tuple[Tensor, ...]) -> str:
    """What may help where a module cannot be read that has a second argument with a default."""
    name = _optional(module)
    if not name:
        return ""
    given = f"was a tensor {list(sample[1].shape)}" if len(sample) > 1 else "was left at its default"
    return (
        f"; its second argument, {name}, {given}: let it be a tensor of sigma / 255 that is used as it comes, "
        f"{name}.expand(-1, 1, *x.shape[2:]) for a map, or let the factory return a module that takes the image alone"
    )


def _samples(names: list[str], needed: int) -> Iterator[tuple[Tensor, ...]]:
    """Arguments to try, for those of these names, so many of which have no default."""
    generator = torch.Generator().manual_seed(0)

    def image(channels: int) -> Tensor:
        return torch.rand(1, channels, _SIDE, _SIDE, generator=generator)

    levels = [(1, 1, 1, 1), (1,), (1, 1, _SIDE, _SIDE)]
    with_level = [(image(channels), torch.full(shape, _LEVEL)) for channels, shape in itertools.product((3, 1), levels)]
    alone = [(image(channels),) for channels in (3, 1, 4, 2)] if needed < 2 else []
    # A noise level that may be left out would be lost, if the image alone came first.
    yield from (*with_level, *alone) if len(names) > 1 else (*alone, *with_level)


def _read(module: Callable[..., Tensor], source: Any, sample: tuple[Tensor, ...], path: Path) -> GraphModel:
    """Export to ONNX, read that, and compare."""
    try:
        import onnxscript  # noqa: F401 - the exporter's
    except ModuleNotFoundError as error:
        raise MissingExtraError.needs(f"reading {path}", str(error.name), "onnx,onnxruntime") from None
    try:
        with quietly(), torch.no_grad():
            names = ["noisy", "sigma"][: len(sample)]
            inputs = () if source is not module else sample
            exported = torch.onnx.export(
                source, inputs, dynamo=True, opset_version=_OPSET, input_names=names, output_names=["clean"],
                verbose=False,
            )  # fmt: skip
            if exported is None:
                raise TypeError("torch.onnx.export gave nothing")
    except Exception as error:  # the exporter raises whatever its passes raise
        raise CheckpointError(f"{path}: torch.onnx cannot export it ({first_line(error)})") from error
    model = onnx_file.convert(exported.model_proto, path)

    def original(noisy: Array, sigma: float) -> Array:
        image = torch.from_numpy(noisy)
        if sample[0].shape[1] > noisy.shape[1]:
            image = torch.cat([image, torch.full((1, 1, *noisy.shape[2:]), sigma)], 1)
        try:
            with torch.no_grad():
                output = module(image, *(torch.full(level.shape, sigma) for level in sample[1:]))
        except Exception as error:  # the user's own code
            raise CheckpointError(f"{path} raised {type(error).__name__}: {first_line(error)}") from error
        result: Array = output.numpy()
        return result

    hold_against(model, original, (sample[0].shape[2], sample[0].shape[3]), path)
    return model


def _shapes(sample: tuple[Tensor, ...]) -> str:
    return " and ".join(str(list(value.shape)) for value in sample)
