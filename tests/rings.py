"""Which of a test's cases `make test` runs, and which `make slow`."""

from typing import Any

import pytest


def slow(*values: Any) -> list[Any]:
    """Values of a parameter with which a test runs in `make slow` only; tuples are the values of several."""
    return [pytest.param(*(v if isinstance(v, tuple) else (v,)), marks=pytest.mark.slow) for v in values]
