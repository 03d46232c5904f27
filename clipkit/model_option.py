"""Which model a verb uses."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from clipkit.errors import ClipkitError, one_line

if TYPE_CHECKING:  # a mistyped flag should not wait for torch
    from clipkit.inference import Aligner

DEFAULT_RUN = "runs/starter"


@dataclass(frozen=True)
class ModelOption:
    """The flags that say which model, and how it computes."""

    model: str = DEFAULT_RUN
    """Run directory, model directory, or model name."""
    pretrained: str | None = None
    """Weights, for open_clip names."""
    device: str | None = None
    """cpu, cuda, mps. Default: the best there is."""
    precision: str = "float32"
    """float32, or bf16."""

    def load(self) -> Aligner:
        """The model."""
        from clipkit.inference import load

        if self.model == DEFAULT_RUN and not Path(DEFAULT_RUN).exists():
            raise ClipkitError(f"{DEFAULT_RUN}: no such run here; train it with `clipkit train`, or pass --model")
        return load(self.model, self.pretrained, device=self.device, precision=self.precision)


def list_skipped(reasons: list[str]) -> None:
    """Say on standard error what could not be read."""
    for reason in reasons[:5]:
        print(f"clipkit: skipped {one_line(reason)}", file=sys.stderr)
    if len(reasons) > 5:
        print(f"clipkit: skipped {len(reasons) - 5} more", file=sys.stderr)
