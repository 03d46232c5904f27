"""Stopping cleanly: Ctrl-C, SIGTERM, and a launcher that died, agreed on by all processes."""

from __future__ import annotations

import os
import signal
from types import FrameType
from typing import Any

import torch
import torch.distributed as dist

from clipkit.objectives.exchange import world_size


class StopRequest:
    """Notices that the run should end; the loop asks at every step and then writes a checkpoint.

    ``accelerate launch`` and ``torchrun`` do not pass SIGTERM on to a script that they started, so the parent's
    death is a reason as well. A second Ctrl-C ends the process at once.
    """

    def __init__(self) -> None:
        self.reason: str | None = None
        self._parent = os.getppid()
        self._before: dict[int, Any] = {}

    def __enter__(self) -> StopRequest:
        for number in (signal.SIGINT, signal.SIGTERM):
            try:
                self._before[number] = signal.signal(number, self._note)
            except ValueError:  # not in the main thread (a notebook's worker): only the parent is watched
                return self
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.reason is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.reason = "Ctrl-C" if number == signal.SIGINT else "SIGTERM"

    def agreed(self, device: torch.device) -> bool:
        """Whether any process wants to stop; the same answer on all of them."""
        if self.reason is None and os.getppid() != self._parent:
            self.reason = "the launcher is gone"
        if world_size() == 1:
            return self.reason is not None
        flag = torch.tensor([0.0 if self.reason is None else 1.0], device=device)
        dist.all_reduce(flag)
        if flag.item() and self.reason is None:
            self.reason = "another process was told to stop"
        return bool(flag.item())
