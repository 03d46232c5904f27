"""What a run ends with: figures on the console, evaluation.json, report.html and an index to search."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from clipkit.cache import atomic_write
from clipkit.evaluation import best_pairs
from clipkit.evaluation.split import SplitReport
from clipkit.inference import Aligner, Index
from clipkit.pairs import PairReader
from clipkit.training.checkpoint import load_weights
from clipkit.training.kept import checkpoint_of
from clipkit.training.loop import Outcome, Trainer
from clipkit.training.report import collect_examples, write_report
from clipkit.training.run import read_metrics

EVALUATION, REPORT, INDEX = "evaluation.json", "report.html", "index"


def show_results(trainer: Trainer, baseline: dict[str, Any], outcome: Outcome) -> None:
    """Measure the run's best model on its final split, write the report, and tell what to try next."""
    say, run = trainer.console.say, trainer.run
    best = checkpoint_of(run, outcome.best) if outcome.best not in (None, outcome.step) else None
    if best is not None:
        load_weights(trainer.model, best)
        say(f"the best validation recall was at step {outcome.best}; its weights are used from here on")
    losses = [record["loss"] for record in read_metrics(run) if record.get("kind") == "train"]
    if losses:
        say(f"{outcome.step} steps done; loss {losses[0]:.3f} at the first, {losses[-1]:.3f} at the last")
    report = trainer.measure()
    if not trainer.accelerator.is_main_process:
        return
    evaluation: dict[str, Any] = {}
    examples, credits = None, []
    if report is not None and report.retrieval is not None:
        split = str(trainer.final_split)
        evaluation = {
            name: {**figures, "baseline": baseline.get(name), "baseline_name": trainer.baseline_name}
            for name, figures in report.to_dict().items()
        }
        reader = trainer.readers.held_out[split]
        aligner = Aligner(trainer.model, str(run), trainer.arithmetic.autocast)
        say("\n".join(["", *table(report, baseline, split), "", *three_pictures(report, reader), ""]))
        encoded = report.encoded
        samples = encoded.samples.tolist()
        index = Index.of_shards(aligner, reader.shards, samples, encoded.images.numpy(), encoded.texts.numpy())
        index.save(run / INDEX)
        credits = index.credits()
        examples = _examples(report, reader)
        step = outcome.best if best is not None else outcome.step
        with atomic_write(run / EVALUATION) as file:
            file.write(json.dumps({"split": split, "step": step, **evaluation}, indent=2).encode())
    write_report(run, evaluation=evaluation, examples=examples, credits=credits)
    say(f"report    {run / REPORT}")
    for line in next_commands(run, evaluation):
        say(line)


def table(report: SplitReport, baseline: Mapping[str, Any], split: str) -> list[str]:
    """The table of what the model can do, beside chance and the model before training."""
    retrieval, zero = report.retrieval, report.zero_shot
    if retrieval is None:
        return []
    before = baseline.get("retrieval", {})
    lines = [
        f"Held-out {split} split: {retrieval.n_images:,} pictures, {retrieval.n_texts:,} captions "
        "(95 % bootstrap intervals over pictures)",
        f"{'':34}{'trained':>22}{'before training':>18}{'chance':>10}",
    ]
    for title, name, values, chance in (
        ("image to text", "image_to_text", retrieval.image_to_text, retrieval.chance_image_to_text),
        ("text to image", "text_to_image", retrieval.text_to_image, retrieval.chance_text_to_image),
    ):
        for k, interval in values.items():
            start = before.get(name, {}).get(str(k), {}).get("value")
            lines.append(_row(f"{title}, recall@{k}", interval, start, chance[k]))
    if zero is not None:
        start = baseline.get("zero_shot", {}).get("mean_per_class", {}).get("value")
        title = f"zero-shot, {len(zero.class_names)} categories"
        lines.append(_row(f"{title}, mean", zero.mean_per_class, start, zero.chance))
        start = baseline.get("zero_shot", {}).get("top1", {}).get("value")
        lines.append(_row(f"{title}, top-1", zero.top1, start, zero.chance))
        lines.append(f"{'':34}top-1 of always saying the majority class: {zero.majority:.1%}")
    return lines


def three_pictures(report: SplitReport, reader: PairReader) -> list[str]:
    """Three pictures of the split with the captions that the model finds for them."""
    encoded = report.encoded
    captions = _captions(report, reader)
    count = len(encoded.images)
    chosen = sorted({count // 6, count // 2, 5 * count // 6})
    lines = ["Three of the pictures, with the captions the model ranks first:"]
    matches = best_pairs(encoded.images, encoded.texts, encoded.image_of_text, chosen, k=3)
    for match in matches:
        own = captions[int(np.flatnonzero(encoded.image_of_text.numpy() == match.picture)[0])]
        found = "; ".join(f"{captions[text]} ({score:.2f})" for text, score, _ in match.retrieved)
        lines.append(f"  [{own}]  ->  {found}")
    return lines


def next_commands(run: Path, evaluation: Mapping[str, Any]) -> list[str]:
    """The two commands to try next."""
    if not evaluation:
        return [f'try next  clipkit search "a red bird" --model {run} --images FOLDER', f"          clipkit demo {run}"]
    return [f'try next  clipkit search "a red bird" --model {run}', f"          clipkit demo {run}"]


def _row(title: str, interval: Any, before: float | None, chance: float) -> str:
    value = f"{interval.value:.1%} [{interval.low:.1%}, {interval.high:.1%}]"
    start = f"{before:.1%}" if before is not None else "-"
    return f"{title:34}{value:>22}{start:>18}{chance:>10.2%}"


def _captions(report: SplitReport, reader: PairReader) -> list[str]:
    """The split's captions in the order of the encoded texts."""
    return [c for i in report.encoded.samples.tolist() for c in reader.shards.read_captions(i)]


def _examples(report: SplitReport, reader: PairReader) -> Any:
    encoded = report.encoded
    samples = encoded.samples.tolist()
    return collect_examples(
        encoded.images.numpy(),
        encoded.texts.numpy(),
        encoded.image_of_text.numpy(),
        _captions(report, reader),
        lambda i: reader.shards.read(samples[i]).image,
    )
