"""The helpers beside these tests can be imported by their names; and what several of them need."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """A death is noticed at once, and not within torch's five seconds."""
    from torch.utils.data.dataloader import _MultiProcessingDataLoaderIter

    monkeypatch.setattr(_MultiProcessingDataLoaderIter._try_get_data, "__defaults__", (0.2,))
