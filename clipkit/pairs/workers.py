"""Reading processes: batches in order, and another process in the place of one that dies."""

from __future__ import annotations

import os
import signal
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from typing import Any, Generic, TypeVar

import torch
from torch.utils.data import DataLoader

from clipkit.errors import ClipkitError

DEATHS = 3  # in a row without a batch in between, before the run stops

Item = TypeVar("Item")
Batch = TypeVar("Batch")


def read_in_workers(read: Callable[[Item], Batch], items: Sequence[Item], workers: int) -> Iterator[Batch]:
    """``read`` of every item, in order, by ``workers`` processes.

    When one of them is killed (by hand, or because memory ran out), all are started again, and the reading goes on
    behind the last batch that was delivered: nothing is lost and nothing comes twice.

    Raises:
        ClipkitError: what ``read`` raised; or processes die again and again.
    """
    delivered = deaths = 0
    while delivered < len(items):
        batches = _start(read, items[delivered:], workers)
        try:
            while True:
                batch = next(batches)
                if isinstance(batch, ClipkitError):
                    raise batch
                delivered, deaths = delivered + 1, 0
                yield batch
        except StopIteration:
            return
        except (RuntimeError, OSError, EOFError) as error:
            if not _is_death(error):
                raise
            deaths += 1
            _replace_or_stop(error, deaths)
        finally:
            del batches  # ends the processes that are left


def _start(read: Callable[[Item], Batch], items: Sequence[Item], workers: int) -> Iterator[Batch | ClipkitError]:
    loader: DataLoader[Any] = DataLoader(
        _Reading(read, items),  # type: ignore[arg-type]  # a map of places to batches
        batch_size=None,
        num_workers=min(workers, len(items)),
        prefetch_factor=2,
        worker_init_fn=_prepare,
        pin_memory=False,
        generator=torch.Generator(),  # of seeds that nothing uses: the global one stays where it is
    )
    return start_quietly(loader)


def start_quietly(loader: DataLoader[Any]) -> Iterator[Any]:
    """The loader's batches, without torch's handler of the death of a process.

    It raises wherever the program happens to be, inside a training step for instance; without it a death is noticed
    when the next batch is asked for, which is the place where something can be done.
    """
    in_main = threading.current_thread() is threading.main_thread() and hasattr(signal, "SIGCHLD")
    before = signal.getsignal(signal.SIGCHLD) if in_main else None
    batches = iter(loader)
    if before is not None:
        of_torch = getattr(before, "__module__", "").startswith("torch.")  # another loader was there first
        signal.signal(signal.SIGCHLD, signal.SIG_DFL if of_torch else before)
    return batches


def raised(batches: Iterator[Batch | ClipkitError]) -> Iterator[Batch]:
    """``batches``; a user's mistake among them is raised."""
    for batch in batches:
        if isinstance(batch, ClipkitError):
            raise batch
        yield batch


class _Reading(Generic[Item, Batch]):
    """What runs in the processes: a user's mistake comes back as a value, as its one line."""

    def __init__(self, read: Callable[[Item], Batch], items: Sequence[Item]) -> None:
        self.read, self.items = read, items

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, at: int) -> Batch | ClipkitError:
        try:
            return self.read(self.items[at])
        except ClipkitError as error:
            return error


def _is_death(error: BaseException) -> bool:
    """Whether ``error`` tells of a process that is gone, and not of a mistake in one (torch says "Caught ...")."""
    text = str(error)
    return not text.startswith("Caught ") and (not isinstance(error, RuntimeError) or "DataLoader worker" in text)


def _replace_or_stop(error: BaseException, deaths: int) -> None:
    reason = (str(error).strip() or type(error).__name__).splitlines()[0]
    if deaths >= DEATHS:
        raise ClipkitError(
            f"reading processes died {deaths} times in a row ({reason}); if memory ran out, lower --workers, then "
            f"continue with --resume auto"
        ) from None
    warnings.warn(f"a reading process died ({reason}); it is replaced, and no batch is lost", stacklevel=3)


def _prepare(_: int) -> None:
    torch.set_num_threads(1)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the trainer's to handle; it ends its workers


class Ahead(Generic[Item]):
    """A thread that makes ready what later items need, a bounded number of items ahead of the one in use.

    Args:
        prepare: makes one item ready. Its mistakes are ignored here: who needs the item meets them again.
        items: all of them, in order.
        distance: how far ahead.
    """

    def __init__(self, prepare: Callable[[Item], None], items: Sequence[Item], distance: int) -> None:
        self._prepare, self._items, self._distance = prepare, items, distance
        self._used = 0
        self._moved = threading.Condition()
        self._stopped = False

    def follow(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        """``batches``, one for each item, with the thread kept ahead of them.

        It starts behind the first one: processes should be forked before there are threads.
        """
        try:
            for batch in batches:
                if not self._used:
                    threading.Thread(target=self._run, daemon=True).start()
                with self._moved:
                    self._used += 1
                    self._moved.notify()
                yield batch
        finally:
            with self._moved:
                self._stopped = True
                self._moved.notify()

    def _run(self) -> None:
        for at in range(1, len(self._items)):
            with self._moved:
                self._moved.wait_for(lambda at=at: self._stopped or at < self._used + self._distance)  # type: ignore[misc]
            if self._stopped:
                return
            with suppress(Exception):
                self._prepare(self._items[at])
