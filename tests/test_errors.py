"""What is refused, and in which words."""

from __future__ import annotations

import numpy as np
import pytest

from clipkit.errors import ClipkitError, check_count, exit_status, one_line


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


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("holiday/été 1.jpg", "holiday/été 1.jpg"),
        ("全角\u3000空白.png", "全角\u3000空白.png"),
        ("a\nb\tc\r.png", "a\\nb\\tc\\r.png"),
        ("\x1b[2J\x9b31m\x7f.png", "\\x1b[2J\\x9b31m\\x7f.png"),
        ("gpj.\u202etxt", "gpj.\\u202etxt"),  # written from right to left
        ("caf\udce9", "caf\\udce9"),
    ],
)
def test_a_name_cannot_write_on_the_terminal(name: str, shown: str) -> None:
    assert one_line(name) == shown


def test_nor_can_a_message(capsys: pytest.CaptureFixture[str]) -> None:
    def fail() -> int:
        raise ClipkitError("\x1b]0;mine\x07.png: no such file")

    assert exit_status(fail) == 2
    assert capsys.readouterr().err == "clipkit: \\x1b]0;mine\\x07.png: no such file\n"
