"""The tests share a reference and tables of their own, as ranks_worker.py does, which is no part of pytest."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Of the worlds of processes, the largest is launched with the full product only, among the slow tests."""
    largest = [item for item in items if _of(item) == ("some", 4)]
    items[:] = [item for item in items if _of(item) != ("some", 4)]
    config.hook.pytest_deselected(items=largest)


def _of(item: pytest.Item) -> tuple[object, object]:
    """What is launched, and the number of processes, of a test over worlds of processes."""
    params = getattr(getattr(item, "callspec", None), "params", {})
    return params.get("found"), params.get("world")
