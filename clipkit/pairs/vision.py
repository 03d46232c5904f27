"""torchvision's functions on pictures, imported when the first is called: that takes as long as importing torch does,
and a search for words needs none of them."""

from __future__ import annotations

import importlib
from typing import Any


class _Functional:
    """``torchvision.transforms.v2.functional``, late."""

    def __getattr__(self, name: str) -> Any:
        value = getattr(importlib.import_module("torchvision.transforms.v2.functional"), name)
        setattr(self, name, value)  # asked once
        return value


F: Any = _Functional()
