"""The errors edgekit raises on purpose. Each says what is wrong, the value, what is allowed, and the fix."""

from __future__ import annotations

from collections.abc import Iterable


class EdgekitError(Exception):
    """Base of every error that edgekit raises on purpose; the command line prints it as one line and exits 2.

    EdgekitError
    ├── UnknownNameError        a model, target, engine, stage or loss that is not registered
    ├── RecipeError             a setting outside its range, or settings that contradict each other
    ├── MissingExtraError       an optional library is not installed (names the pip line)
    ├── DataError               images: none found, unreadable, too small, unpaired
    ├── ShapeError              an array of the wrong rank, size, channels or dtype
    ├── CheckpointError         weights that do not fit the model, are not finite, or cannot be read
    ├── LicenceError            weights or images that a product may not hold, where that was asked for
    ├── TrainingError           training went wrong (a loss that is not finite, a process that died)
    ├── ExportError             a target could not lower the model
    ├── BundleError             a bundle that is incomplete, altered, newer than this reader, or unsafe
    ├── OutputExistsError       an output that would be overwritten
    └── EngineError             an inference engine failed to open or run a model
        └── NoPortableError     it has no kernels with the same bits on every machine
    """


class UnknownNameError(EdgekitError):
    """A name that is not registered. Use `unknown()` to word it."""

    @classmethod
    def unknown(cls, kind: str, value: object, allowed: Iterable[str]) -> UnknownNameError:
        """Word the error: "unknown target 'coreml': expected one of openvino, tensorrt, tflite"."""
        import difflib

        names = sorted(allowed)
        near = difflib.get_close_matches(str(value), names, n=1)
        hint = f" (did you mean {near[0]!r}?)" if near else ""
        return cls(f"unknown {kind} {value!r}: expected one of {', '.join(names)}{hint}")


class RecipeError(EdgekitError):
    """A setting outside its range, or settings that contradict each other."""


class MissingExtraError(EdgekitError):
    """An optional library is not installed. Use `needs()` to word it."""

    @classmethod
    def needs(cls, what: str, library: str, extra: str) -> MissingExtraError:
        """Word the error with the pip line that mends it."""
        return cls(f"{what} needs {library}, which is not installed: pip install 'edgekit[{extra}]'")


class DataError(EdgekitError):
    """Images: none found, unreadable, too small, unpaired."""


class ShapeError(EdgekitError):
    """An array of the wrong rank, size, channels or dtype."""


class CheckpointError(EdgekitError):
    """Weights that do not fit the model, are not finite, or cannot be read."""


class LicenceError(EdgekitError):
    """Weights or images that are not free for any use, where `license_clean` asks for such."""


class TrainingError(EdgekitError):
    """Training went wrong: a loss that is not finite, or a process that died."""


class ExportError(EdgekitError):
    """A target could not lower the model."""


class BundleError(EdgekitError):
    """A bundle that is incomplete, altered, newer than this reader, or unsafe."""


class OutputExistsError(EdgekitError):
    """An output that would be overwritten."""


class EngineError(EdgekitError):
    """An inference engine failed to open or run a model."""


class NoPortableError(EngineError):
    """An inference engine that has no kernels with the same bits on every machine."""


def first_line(error: BaseException) -> str:
    """What another library's error says, in one line; its type's name where it says nothing."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
