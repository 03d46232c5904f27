"""What is refused, and in which words."""

from __future__ import annotations

import numpy as np
import pytest

from clipkit.errors import ClipkitError, check_count


@pytest.mark.parametrize("value", [1, 7, np.int64(3), np.uint8(1)])
def test_whole_numbers_can_be_asked_for(value: object) -> None:
    check_count("k", value)


@pytest.mark.parametrize(
    ("value", "fix"),
    [
        (0, "k is 0; it must be at least 1"),
        (np.int64(-2), "k is -2; it must be at least 1"),
        (1.5, "k is 1.5; it must be a whole number"),
        (2.0, "k is 2.0; it must be a whole number"),
        (True, "k is True; it must be a whole number"),
        (None, "k is None; it must be a whole number"),
        ("5", "k is '5'; it must be a whole number"),
    ],
)
def test_anything_else_is_refused(value: object, fix: str) -> None:
    with pytest.raises(ClipkitError) as refused:
        check_count("k", value)
    assert str(refused.value) == fix
