"""The verbs that use a model: what each takes, and what it prints."""

from __future__ import annotations

import csv
import json
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from clipkit.classify_commands import Calibrate, Classify
from clipkit.config import Config
from clipkit.embed_command import Embed
from clipkit.inputs import as_templates, check_output, parse_flags, picture_paths, read_lines
from clipkit.model_option import DEFAULT_RUN, ModelOption
from clipkit.search_commands import MakeIndex, Search

if TYPE_CHECKING:  # a mistyped flag should not wait for torch: each verb imports what it needs when it runs
    from clipkit.training.console import Console


@dataclass(frozen=True)
class MatchPairs:
    """Match pictures with captions: the best caption of each picture, and the one-to-one assignment."""

    images: tyro.conf.Positional[str]
    """Folder of pictures, or one picture."""
    captions: tyro.conf.Positional[str]
    """File with a caption per line."""
    output: str | None = None
    """CSV for the result. Default: printed."""
    model: tyro.conf.OmitArgPrefixes[ModelOption] = field(default_factory=ModelOption)

    def run(self, console: Console) -> None:
        paths, captions = picture_paths([self.images]), read_lines(self.captions)
        check_output(self.output)
        match = self.model.load().match(paths, captions)
        assigned = dict(match.assignment)
        rows: list[list[str]] = []
        for i, path in enumerate(paths):
            best = int(match.best_caption[i])
            one = assigned.get(i)
            rows.append(
                [
                    str(path),
                    captions[best],
                    f"{match.matrix[i, best]:.4f}",
                    captions[one] if one is not None else "",
                    f"{match.matrix[i, one]:.4f}" if one is not None else "",
                ]
            )
        header = ["picture", "best_caption", "score", "assigned_caption", "assigned_score"]
        if self.output:
            with open(self.output, "w", newline="", encoding="utf-8") as file:
                csv.writer(file).writerows([header, *rows])
            print(f"{len(rows)} pictures and {len(captions)} captions matched: {self.output}")
        else:
            csv.writer(sys.stdout, lineterminator="\n").writerows([header, *rows])


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
