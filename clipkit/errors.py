"""The one exception that clipkit raises for a mistake in what it was given."""

from __future__ import annotations

import io
import operator
import sys
from collections.abc import Callable
from unicodedata import category


class ClipkitError(ValueError):
    """A mistake in the user's input.

    The message is one line that names the file or the value and the fix. The command line and ``train.py`` print it
    as it is and exit with status 2; nobody should have to read a traceback to learn that a path was misspelt.
    """


def exit_status(run: Callable[[], int | None]) -> int:
    """Run a command; the status it exits with: its own, 2 after a mistake in what it was given, 130 after Ctrl-C."""
    for stream in (sys.stdout, sys.stderr):  # a file name that is no UTF-8 must not end a command with a traceback
        if isinstance(stream, io.TextIOWrapper) and stream.errors == "strict":
            stream.reconfigure(errors="backslashreplace")
    try:
        return run() or 0
    except ClipkitError as error:
        print(f"clipkit: {one_line(str(error))}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("clipkit: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader, as in `clipkit search ... | head`, has seen enough
        sys.stderr.close()
        return 0


def one_line(text: str) -> str:
    """``text`` as a terminal may be shown it, whatever a file is called: line ends, tabs, escape sequences and what is
    no character are written as Python writes them."""
    return "".join(c if c.isprintable() or category(c) == "Zs" else c.encode("unicode_escape").decode() for c in text)


def check_count(name: str, value: object) -> None:
    """Refuse what is no number of things to ask for.

    Raises:
        ClipkitError: ``value`` is no whole number, or below 1.
    """
    if isinstance(value, bool) or not hasattr(value, "__index__"):
        raise ClipkitError(f"{name} is {value!r}; it must be a whole number")
    if operator.index(value) < 1:
        raise ClipkitError(f"{name} is {value}; it must be at least 1")


def did_you_mean(word: str, known: list[str] | tuple[str, ...]) -> str:
    """``"; did you mean 'clip'?"`` for the nearest of ``known``, or an empty string when nothing is near."""
    import difflib

    near = difflib.get_close_matches(word, known, n=1)
    return f"; did you mean {near[0]!r}?" if near else ""
