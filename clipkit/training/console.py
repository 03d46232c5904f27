"""What people see of a run: a progress bar on a terminal, plain lines in a log."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from tqdm import tqdm

PLAIN_EVERY = 10.0  # seconds between progress lines where there is no terminal


class Console:
    """Says things once, whatever the number of processes.

    Args:
        speaks: whether this process is the one that prints.
        detailed: also print what a progress bar's reader can do without.
    """

    def __init__(self, speaks: bool, detailed: bool = True) -> None:
        self.speaks = speaks
        self.detailed = detailed
        self.terminal = speaks and sys.stderr.isatty()
        self._bars: dict[str, Bar] = {}

    def say(self, text: str, detail: bool = False) -> None:
        """Print a line on standard output, above a running bar."""
        if self.speaks and (self.detailed or not detail):
            tqdm.write(text, file=sys.stdout)
            sys.stdout.flush()

    @contextmanager
    def bar(self, label: str, total: int, done: int = 0) -> Iterator[Bar]:
        """A bar of ``total`` steps."""
        bar = Bar(self, label, total, done)
        try:
            yield bar
        finally:
            bar.close()

    def progress(self, label: str, done: int, total: int) -> None:
        """A bar that is made when a label first appears and closed when it is done."""
        if label not in self._bars:
            self._bars[label] = Bar(self, label, total, 0)
        self._bars[label].to(done)
        if done >= total:
            self._bars.pop(label).close()


class Bar:
    """Progress of one thing."""

    def __init__(self, console: Console, label: str, total: int, done: int) -> None:
        self.label, self.total, self.done = label, total, done
        self._console = console
        self._shown = time.monotonic()
        self._tqdm = (
            tqdm(total=total, initial=done, desc=label, file=sys.stderr, leave=False, dynamic_ncols=True)
            if console.terminal
            else None
        )

    def advance(self, note: str = "") -> None:
        """One step more."""
        self.to(self.done + 1, note)

    def to(self, done: int, note: str = "") -> None:
        """``done`` steps altogether."""
        if self._tqdm is not None:
            self._tqdm.set_postfix_str(note, refresh=False)
            self._tqdm.update(done - self.done)
        elif time.monotonic() - self._shown > PLAIN_EVERY and done < self.total:
            self._shown = time.monotonic()
            self._console.say(f"{self.label}: {done} of {self.total}{', ' + note if note else ''}")
        self.done = done

    def close(self) -> None:
        """Remove the bar."""
        if self._tqdm is not None:
            self._tqdm.close()
