"""The verbs that use a model. A mistyped flag should not wait for torch: each imports what it needs when it runs."""

from __future__ import annotations

from typing import Any

from clipkit.classify_commands import Calibrate, Classify
from clipkit.embed_command import Embed
from clipkit.evaluate_command import Evaluate
from clipkit.inputs import parse_flags
from clipkit.match_command import MatchPairs
from clipkit.search_commands import MakeIndex, Search

_VERBS: dict[str, Any] = {
    "search": Search,
    "index": MakeIndex,
    "classify": Classify,
    "calibrate": Calibrate,
    "match": MatchPairs,
    "evaluate": Evaluate,
    "embed": Embed,
}


def run(name: str, arguments: list[str]) -> int:
    """Parse ``arguments`` for the verb ``name`` and run it."""
    verb = parse_flags(_VERBS[name], arguments, f"clipkit {name}")
    from clipkit.training.console import Console

    verb.run(Console(speaks=True))
    return 0
