"""Pieces side by side: in order, nothing twice, errors as they are, and torch's threads as they were."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from clipkit.encoders import side_by_side as module
from clipkit.encoders.side_by_side import side_by_side

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _two_threads(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(module, "_CORES", module._Cores())
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("n", [0, 1, 4, 5, 23, 100])
@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_every_item_once_and_in_order(n: int, device: str) -> None:
    pieces = list(side_by_side(lambda part: [-i for i in part], range(n), torch.device(device), 4, 7))
    assert [i for part, _ in pieces for i in part] == list(range(n))
    assert all(result == [-i for i in part] for part, result in pieces)
    assert {len(part) for part, _ in pieces[:-1]} <= {4 if device == "cpu" else 7}
    assert max((len(p) for p, _ in side_by_side(len, range(n), CPU, 4, 3)), default=0) == min(n, 3)


def test_pieces_overlap_and_each_has_one_core() -> None:
    together, seen = threading.Barrier(2, timeout=20), []

    def run(part: Sequence[int]) -> None:
        seen.append(torch.get_num_threads())
        together.wait()  # breaks if the pieces come one after the other

    assert len(list(side_by_side(run, range(8), CPU, 4))) == 2
    assert seen == [1, 1] and torch.get_num_threads() == 2


@pytest.mark.parametrize("at", [0, 9, 19])
def test_an_error_comes_out_as_it_is_and_ends_the_work(at: int) -> None:
    def run(part: Sequence[int]) -> int:
        if at in part:
            raise KeyError(at)
        return len(part)

    with pytest.raises(KeyError):
        list(side_by_side(run, range(20), CPU, 4))
    assert torch.get_num_threads() == 2


def test_whoever_stops_early_leaves_nothing_running() -> None:
    started = []
    for _ in side_by_side(started.append, range(400), CPU, 4):
        break
    assert len(started) < 20 and torch.get_num_threads() == 2


def test_many_users_at_once_leave_the_threads_as_they_were() -> None:
    """A thread that meets torch for the first time while others work on one core each must not keep that for ever."""
    wanted = []

    def user(n: int) -> int:
        wanted.append(module._CORES.enter())
        module._CORES.leave()
        return sum(
            result for _, result in side_by_side(lambda part: int(torch.ones(len(part)).sum()), range(n), CPU, 2)
        )

    list(side_by_side(len, range(8), CPU, 4))  # the main thread's number is known
    with ThreadPoolExecutor(6) as pool:
        assert list(pool.map(user, range(40))) == list(range(40))
    assert set(wanted) == {2}
    assert torch.get_num_threads() == 2
