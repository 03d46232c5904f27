"""The verbs that use a model: what each takes, and what it prints."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from clipkit.classify_commands import Calibrate, Classify
from clipkit.config import Config
from clipkit.inputs import as_templates, check_output, parse_flags, picture_paths, read_lines
from clipkit.match_command import MatchPairs
from clipkit.model_option import DEFAULT_RUN, ModelOption
from clipkit.search_commands import MakeIndex, Search

if TYPE_CHECKING:  # a mistyped flag should not wait for torch: each verb imports what it needs when it runs
    from clipkit.training.console import Console


@dataclass(frozen=True)
class Evaluate:
    """Measure a model: retrieval on pictures with captions, zero-shot classification on pictures with labels."""

    model_name: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="MODEL")] = DEFAULT_RUN
    """Run directory, model directory, or model name."""
    data: str | None = None
    """Shards, a table of pictures and captions, or a folder with a folder of pictures per class. Default: the run's
    own held-out data."""
    split: str | None = None
    """Split of the data, if it has several. Default: test, else val."""
    templates: tuple[str, ...] = ()
    """Prompts for classes: sentences with {}, or the name of a set: default, photo, none."""
    languages: tuple[str, ...] = ()
    """Also measure text to image with the names in these languages (codes as de fr ja, or all), if the data has any."""
    image_column: str | None = None
    """Column of a table that holds the picture's path."""
    caption_column: str | None = None
    """Column of a table that holds the caption."""
    pretrained: str | None = None
    """Weights, for open_clip names."""
    device: str | None = None
    """cpu, cuda, mps."""
    precision: str = "float32"
    """float32, or bf16."""
    output: str | None = None
    """JSON file for all figures."""

    def run(self, console: Console) -> None:
        from clipkit.measure import measure

        check_output(self.output)
        model = ModelOption(self.model_name, self.pretrained, self.device, self.precision).load()
        config = Config().replace(image_column=self.image_column, caption_column=self.caption_column)
        templates = as_templates(self.templates)
        measured = measure(model, self.data, self.split, config, templates, list(self.languages), console)
        if self.output:
            Path(self.output).write_text(json.dumps(measured, indent=2, ensure_ascii=False), encoding="utf-8")
            print(f"figures: {self.output}")


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
