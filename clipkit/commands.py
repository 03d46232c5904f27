"""The verbs that use a model: what each takes, and what it prints."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import tyro

from clipkit.classify_commands import Calibrate, Classify
from clipkit.evaluate_command import Evaluate
from clipkit.inputs import check_output, parse_flags, picture_paths, read_lines
from clipkit.match_command import MatchPairs
from clipkit.model_option import ModelOption
from clipkit.search_commands import MakeIndex, Search

if TYPE_CHECKING:  # a mistyped flag should not wait for torch: each verb imports what it needs when it runs
    from clipkit.training.console import Console


@dataclass(frozen=True)
class Embed:
    """Write the embeddings of pictures, or of the lines of a text file, for other tools."""

    inputs: tyro.conf.Positional[tuple[str, ...]]
    """Pictures, folders of pictures, or one .txt file."""
    output: str = "embeddings"
    """OUTPUT.npy (float32, unit norm, a row each) and OUTPUT.parquet (what each row is)."""
    model: tyro.conf.OmitArgPrefixes[ModelOption] = field(default_factory=ModelOption)

    def run(self, console: Console) -> None:
        import numpy as np
        import pyarrow as pa
        import pyarrow.parquet as pq

        check_output(self.output)
        model = self.model.load()
        if len(self.inputs) == 1 and self.inputs[0].endswith(".txt"):
            names = read_lines(self.inputs[0])
            rows = model.encode_text(names)
        else:
            paths = picture_paths(self.inputs)
            names, rows = [str(p) for p in paths], model.encode_image(paths, show_progress=console.terminal)
        np.save(f"{self.output}.npy", rows)
        pq.write_table(pa.table({"input": names}), f"{self.output}.parquet")
        print(f"{len(names)} embeddings of {model.embed_dim} dimensions: {self.output}.npy, {self.output}.parquet")


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
