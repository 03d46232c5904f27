"""The tests share a reference and tables of their own, as ranks_worker.py does, which is no part of pytest."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
