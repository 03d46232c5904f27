"""What a run ends with: figures on the console, evaluation.json, report.html and an index to search."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from clipkit.cache import atomic_write
from clipkit.encoders import DualEncoder
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
        say(f"the best validation figure was at step {outcome.best}; its weights are used from here on")
    losses = [record["loss"] for record in read_metrics(run) if record.get("kind") == "train"]
    if losses:
        say(f"{outcome.step} steps done; loss {losses[0]:.3f} at the first, {losses[-1]:.3f} at the last")
    report = trainer.measure()
    if not trainer.accelerator.is_main_process:
        return
    step = outcome.best if best is not None and outcome.best is not None else outcome.step
    evaluation: dict[str, Any] = {}
    examples, credits = None, []
    if report is not None and report.retrieval is None and report.to_dict():
        evaluation = {name: {**f, "baseline": baseline.get(name)} for name, f in report.to_dict().items()}
        say("\n".join(["", *other_figures(report, baseline, str(trainer.final_split)), ""]))
        _keep(run, trainer, step, evaluation)
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
        _keep(run, trainer, step, evaluation)
    write_report(run, evaluation=evaluation, examples=examples, credits=credits)
    say(f"report    {run / REPORT}")
    for line in next_commands(run, evaluation, trainer.model):
        say(line)


def _keep(run: Path, trainer: Trainer, step: int, evaluation: dict[str, Any]) -> None:
    with atomic_write(run / EVALUATION) as file:
        file.write(json.dumps({"split": trainer.final_split, "step": step, **evaluation}, indent=2).encode())


def other_figures(report: SplitReport, baseline: Mapping[str, Any], split: str) -> list[str]:
    """What a model of one modality, or of users and items, can do, beside what is had without training."""
    lines = []
    if report.neighbours is not None:
        probe = report.neighbours
        before = baseline.get("neighbours", {}).get("top1", {}).get("value")
        lines += [
            f"Held-out {split} split: {probe.n_train + probe.n_test:,} pictures of {len(probe.class_names)} classes; "
            f"each class's second half is named by its {probe.setting:.0f} nearest pictures of the first halves",
            f"{'':34}{'trained':>22}{'before training':>18}{'chance':>10}",
            _row("nearest neighbours, top-1", probe.top1, before, probe.chance),
        ]
    if report.recommendation is not None and report.popularity is not None:
        found, popular = report.recommendation, report.popularity
        lines += [
            f"Held-out {split} split: the last item of {found.n_users:,} users among {found.n_items:,} items",
            f"{'':34}{'trained':>22}{'popularity':>18}{'chance':>10}",
        ]
        for title, mine, theirs, chance in (
            ("recall", found.recall, popular.recall, found.chance_recall),
            ("NDCG", found.ndcg, popular.ndcg, found.chance_ndcg),
        ):
            lines += [_row(f"{title}@{k}", value, theirs[k].value, chance[k]) for k, value in mine.items()]
    return lines


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


def next_commands(run: Path, evaluation: Mapping[str, Any], model: DualEncoder) -> list[str]:
    """The commands to try next."""
    if not model.has_tokenizer and model.text is not None:
        return []
    if model.text is None:
        return [
            f"try next  clipkit evaluate {run} --label-efficiency LABELLED_PICTURES",
            f"          clipkit search PICTURE --model {run} --images FOLDER",
        ]
    if model.image is None:
        return [f"try next  clipkit evaluate {run} --sts PAIRS.csv", f"          clipkit embed LINES.txt --model {run}"]
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
