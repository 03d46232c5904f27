"""``clipkit evaluate``: its flags."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from clipkit.config import Config
from clipkit.errors import ClipkitError
from clipkit.inputs import as_templates, check_output, write_output
from clipkit.model_option import DEFAULT_RUN, ModelOption

if TYPE_CHECKING:  # a mistyped flag should not wait for torch
    from clipkit.training.console import Console


@dataclass(frozen=True)
class FineTune:
    """How --label-efficiency trains both networks."""

    fractions: tuple[float, ...] = (0.01, 0.05, 0.1, 1.0)
    """Shares of the labels that --label-efficiency trains with."""
    seeds: int = 3
    """Repetitions of each training, for the intervals of --label-efficiency."""
    epochs: float = 20.0
    """Passes over the labelled pictures, with --label-efficiency."""
    min_steps: int = 200
    """Least steps of a training, however few labels there are."""
    batch_size: int = 64
    """Pictures of a training step."""
    lr: tuple[float, ...] = (1e-3,)
    """Learning rate; of several, each network takes the one that is best on a fifth of its own labels."""


@dataclass(frozen=True)
class Evaluate:
    """Measure a model: retrieval on pictures with captions, zero-shot classification on pictures with labels, and what
    its towers have learned."""

    model_name: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="MODEL")] = DEFAULT_RUN
    """Run directory, model directory, or model name."""
    data: str | None = None
    """Shards, a table of pictures and captions, or a folder with a folder of pictures per class. Default: the run's
    own held-out data."""
    split: str | None = None
    """Split of the data to measure on, if it has several. Default: test, else val."""
    templates: tuple[str, ...] = ()
    """Prompts for classes: sentences with {}, or the name of a set: default, photo, none."""
    languages: tuple[str, ...] = ()
    """Also measure text to image with the names in these languages (codes as de fr ja, or all), if the data has any."""
    probe: str | None = None
    """Pictures with labels (class folders or shards): linear probe and nearest neighbours on the frozen picture
    tower's features."""
    label_efficiency: str | None = None
    """Pictures with labels (class folders or shards): fine-tune the picture tower with few labels, beside the same
    network trained from scratch, and draw the curve."""
    sts: str | None = None
    """CSV, TSV or JSONL of sentence1, sentence2 and score: Spearman's correlation of the text tower's cosines."""
    fine_tune: tyro.conf.OmitArgPrefixes[FineTune] = field(default_factory=FineTune)
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
        from clipkit.learned import measure_label_efficiency, measure_probes, measure_sentences
        from clipkit.measure import measure

        check_output(self.output)
        self._check_fine_tune()
        model = ModelOption(self.model_name, self.pretrained, self.device, self.precision).load()
        config = Config().replace(image_column=self.image_column, caption_column=self.caption_column)
        templates = as_templates(self.templates)
        measured: dict[str, Any] = {"model": model.name}
        if self.data is not None or not (self.probe or self.label_efficiency or self.sts):
            measured |= measure(model, self.data, self.split, config, templates, list(self.languages), console)
        if self.sts is not None:
            measured["sts"] = measure_sentences(model, self.sts, console)
        if self.probe is not None:
            measured["probes"] = measure_probes(model, self.probe, self.split, config, console)
        if self.label_efficiency is not None:
            tune = self.fine_tune
            measured["label_efficiency"] = measure_label_efficiency(
                model, self.label_efficiency, self.split, config, tune, self._beside(model.name), console
            )
        if self.output:
            write_output(self.output, json.dumps(measured, indent=2, ensure_ascii=False))
            print(f"figures: {self.output}")

    def _check_fine_tune(self) -> None:
        tune = self.fine_tune
        for flag, value, least in (
            ("seeds", tune.seeds, 1),
            ("min-steps", tune.min_steps, 0),
            ("batch-size", tune.batch_size, 2),
        ):
            if value < least:
                raise ClipkitError(f"--{flag} is {value}; it must be at least {least}")
        if not 0 <= tune.epochs < math.inf:
            raise ClipkitError(f"--epochs is {tune.epochs}; it must be 0 or more, and 0 leaves it to --min-steps")
        for flag, values in (("fractions", tune.fractions), ("lr", tune.lr)):
            if not values or not all(0 < value < math.inf for value in values):
                raise ClipkitError(f"--{flag} is {' '.join(map(str, values)) or 'empty'}; it must be above 0")
        if max(tune.fractions) > 1:
            raise ClipkitError(f"--fractions has {max(tune.fractions)}; a fraction of the labels is at most 1")

    def _beside(self, name: str) -> Path:
        """Where the curve goes, without its ending: with the other figures, else into the run, else here."""
        if self.output:
            return Path(self.output).with_suffix("")
        return (Path(name) if Path(name).is_dir() else Path()) / "label_efficiency"
