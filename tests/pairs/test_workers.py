"""Reading processes: in order, replaced when they die, and honest about what they cannot do."""

from __future__ import annotations

import os
import signal
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from clipkit.errors import ClipkitError
from clipkit.pairs.workers import DEATHS, Ahead, read_in_workers

SIGNALS = [signal.SIGKILL, signal.SIGTERM, signal.SIGSEGV]


class Dying:
    """Item n as a tensor; the process that first reads one of ``deadly`` (or always, with ``again``) ends."""

    def __init__(self, folder: Path, deadly: set[int], number: int = signal.SIGKILL, again: bool = False) -> None:
        self.folder, self.deadly, self.number, self.again = folder, deadly, number, again

    def __call__(self, item: int) -> torch.Tensor:
        mark = self.folder / str(item)
        if item in self.deadly and (self.again or not mark.exists()):
            mark.touch()
            time.sleep(0.3)  # until what was read before is delivered
            os.kill(os.getpid(), self.number)
            time.sleep(10)
        return torch.full((1000,), float(item))


def read(items: Iterator[torch.Tensor]) -> list[int]:
    return [int(t[0]) for t in items]


@pytest.fixture
def another_loader() -> Iterator[None]:
    """Somebody else's loader has installed torch's handler in this process."""
    before = signal.getsignal(signal.SIGCHLD)
    utils = torch.utils.data._utils.signal_handling
    utils._SIGCHLD_handler_set = False
    list(torch.utils.data.DataLoader([1, 2], num_workers=1))
    assert signal.getsignal(signal.SIGCHLD) is not before
    yield
    signal.signal(signal.SIGCHLD, before)


@pytest.mark.parametrize("number", SIGNALS)
def test_a_process_that_is_killed_is_replaced_and_no_batch_is_lost(tmp_path: Path, quick: None, number: int) -> None:
    with pytest.warns(UserWarning, match="replaced"):
        assert read(read_in_workers(Dying(tmp_path, {3, 9}, number), range(14), 2)) == list(range(14))


def test_a_death_in_the_middle_of_a_step_does_not_disturb_it(tmp_path: Path, quick: None, another_loader: None) -> None:
    """torch's own handler would raise right where the training is when the process ends."""
    made = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for batch in read_in_workers(Dying(tmp_path, {4}), range(8), 2):
            for _ in range(20):  # a step
                time.sleep(0.005)
            made.append(int(batch[0]))
    assert made == list(range(8))


def test_processes_that_die_again_and_again_stop_the_run(tmp_path: Path, quick: None) -> None:
    made = []
    with warnings.catch_warnings(record=True) as said, pytest.raises(ClipkitError, match="--workers") as caught:
        warnings.simplefilter("always")
        for batch in read_in_workers(Dying(tmp_path, {5}, again=True), range(9), 1):
            made.append(int(batch[0]))
    assert made == list(range(5)) and len([w for w in said if "replaced" in str(w.message)]) == DEATHS - 1
    assert "\n" not in str(caught.value)


def mistaken(item: int) -> torch.Tensor:
    if item == 2:
        raise ClipkitError("photo.jpg: no picture; mend it")
    if item == 7:
        raise FileNotFoundError("a mistake in the program")
    return torch.tensor([float(item)])


@pytest.mark.parametrize("workers", [1, 2])
def test_mistakes_come_out_as_they_are(workers: int) -> None:
    batches = read_in_workers(mistaken, range(5), workers)
    assert [int(next(batches)[0]) for _ in range(2)] == [0, 1]
    with pytest.raises(ClipkitError) as caught:
        next(batches)
    assert str(caught.value) == "photo.jpg: no picture; mend it"
    with pytest.raises(FileNotFoundError, match="mistake in the program"):
        read(read_in_workers(mistaken, range(5, 9), workers))


def test_the_generators_stay_where_they_are(tmp_path: Path) -> None:
    torch.manual_seed(3)
    before = torch.get_rng_state()
    assert read(read_in_workers(Dying(tmp_path, set()), range(3), 2)) == [0, 1, 2]
    assert torch.equal(torch.get_rng_state(), before)


def test_ahead_keeps_its_distance() -> None:
    made: list[int] = []
    batches = Ahead(made.append, range(10), 3).follow(iter(range(10)))
    for step in range(6):
        assert next(batches) == step
        assert wait(lambda step=step: len(made) >= min(9, step + 3))  # type: ignore[misc]
        assert made == list(range(1, len(made) + 1)) and len(made) <= step + 3
    batches.close()  # type: ignore[attr-defined]
    time.sleep(0.05)
    assert len(made) <= 9


def test_what_fails_ahead_is_left_to_who_needs_it() -> None:
    def prepare(item: int) -> None:
        raise OSError("no network")

    threads = threading.active_count()
    assert list(Ahead(prepare, range(4), 9).follow(iter("abcd"))) == list("abcd")
    assert wait(lambda: threading.active_count() == threads)


def wait(done: Callable[[], bool]) -> bool:
    for _ in range(400):
        if done():
            return True
        time.sleep(0.005)
    return False
