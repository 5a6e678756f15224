"""The benchmarks are scripts beside the package, not in it: the tests import them from the top of the repository."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
