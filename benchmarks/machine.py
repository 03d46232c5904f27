"""What a figure was measured on: written beside every result."""

from __future__ import annotations

import json
import os
import platform
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

PACKAGES = ("torch", "torchvision", "open_clip_torch", "timm", "transformers", "numpy", "pillow")


def machine() -> dict[str, Any]:
    """Processor, cores, threads and versions."""
    import torch

    model = next(
        (
            line.split(":", 1)[1].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if line.startswith("model name")
        )
        if Path("/proc/cpuinfo").exists()
        else iter(()),
        platform.processor(),
    )
    versions = {name: metadata.version(name) for name in PACKAGES}
    return {
        "processor": model,
        "cores": os.cpu_count(),
        "torch_threads": torch.get_num_threads(),
        "python": platform.python_version(),
        **versions,
    }


def write(name: str, figures: dict[str, Any]) -> None:
    """``benchmarks/NAME.json``: the command, the machine and the figures."""
    path = Path(__file__).with_name(f"{name}.json")
    given = ["DATA" if Path(argument).exists() else argument for argument in sys.argv[1:]]
    command = " ".join(["python", f"benchmarks/{name}.py", *given])
    path.write_text(json.dumps({"command": command, "machine": machine(), **figures}, indent=2) + "\n")
    print(f"written to {path}")
