"""PyTorch: FILE.py:FACTORY, a function that returns a torch.nn.Module, or a program that torch.export saved (.pt2)."""

from __future__ import annotations

import hashlib
import importlib.util
import inspect
import itertools
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
from edgekit.models.importers.builder import Array, hold_against
from edgekit.quiet import quietly

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
    size. The .py file is the user's own code and is run.

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
    return _read(module, module, _call(module, path), path)


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
    """The arguments that a module takes."""
    takes = len(
        [
            p
            for p in inspect.signature(module.forward).parameters.values()
            if p.default is p.empty and p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)
        ]
    )
    failed = ""
    for sample in _samples(takes):
        try:
            with torch.no_grad():
                output = module(*sample)
        except Exception as error:  # noqa: BLE001 - the user's own code, tried with what may not be meant for it
            failed = failed or f"; {_shapes(sample)}: {first_line(error)}"
            continue
        if isinstance(output, Tensor) and output.shape[2:] == sample[0].shape[2:] and output.shape[1] in (1, 3):
            return sample
        if isinstance(output, Tensor):
            failed = failed or f"; {_shapes(sample)} gives {list(output.shape)}"
    raise CheckpointError(
        f"{path} is no denoiser: expected a module that takes noisy, or noisy and sigma, and gives an image of "
        f"that size{failed}"
    )


def _samples(takes: int) -> Iterator[tuple[Tensor, ...]]:
    """Arguments to try, for so many that have no default."""
    generator = torch.Generator().manual_seed(0)

    def image(channels: int) -> Tensor:
        return torch.rand(1, channels, _SIDE, _SIDE, generator=generator)

    if takes < 2:
        yield from ((image(channels),) for channels in (3, 1, 4, 2))
    levels = [(1, 1, 1, 1), (1,), (1, 1, _SIDE, _SIDE)]
    yield from ((image(channels), torch.full(shape, _LEVEL)) for channels, shape in itertools.product((3, 1), levels))


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
