"""What of libraries' and edgekit's own messages reaches the terminal."""

from __future__ import annotations

import logging
import os
import sys
import warnings

from edgekit.cli.wrap import say

# They tell at import about CUDA builds that are not there and about their own deprecations: nothing a user can mend.
_CHATTY = (
    "torchao",
    "torch.utils._pytree",
    "torch.utils.flop_counter",
    "litert_torch",
    "absl",
    "jax",
    "lightning_fabric",
)


class _Notes(logging.Handler):
    """Prints a record of edgekit's own as a line on stderr, above a progress bar if there is one."""

    def emit(self, record: logging.LogRecord) -> None:
        say(f"note: {record.getMessage()}")


def set_up() -> None:
    """Show edgekit's notes, and of other libraries only errors; `python -W` and PYTHONWARNINGS still win."""
    own = logging.getLogger("edgekit")
    if not any(isinstance(handler, _Notes) for handler in own.handlers):
        own.addHandler(_Notes())
    own.propagate = False
    if os.environ.get("RANK", os.environ.get("LOCAL_RANK", "0")) != "0":
        # One of several processes that train together: the first one says it.
        own.setLevel(logging.ERROR)
    for name in _CHATTY:
        logging.getLogger(name).setLevel(logging.ERROR)
    if not sys.warnoptions:
        warnings.simplefilter("ignore")
