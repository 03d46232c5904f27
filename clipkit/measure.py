"""``clipkit evaluate``: any model on any data, with the protocol beside each figure."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from clipkit.config import Config
from clipkit.data_option import open_data, say_left_out, split_folders
from clipkit.encoders.heads import ClassesHead
from clipkit.errors import ClipkitError
from clipkit.evaluation import (
    Health,
    Interval,
    RetrievalReport,
    ZeroShotReport,
    classifier_weights,
    measure_health,
    retrieval,
    zero_shot,
)
from clipkit.evaluation.encoding import EncodedPairs, encode_captions, encode_pairs
from clipkit.evaluation.split import by_neighbours, evaluate_split, split_labels
from clipkit.inference import Aligner
from clipkit.pairs import ShardSet, open_shards
from clipkit.recipes import find_recipe
from clipkit.results import other_figures
from clipkit.run_file import load_config
from clipkit.training.checkpoint import FOLDER
from clipkit.training.console import Console
from clipkit.training.data import plain_reader
from clipkit.training.locked import lock_images

_SPACE = 2000  # pictures that the health of the space is measured on


def measure(
    model: Aligner,
    data: str | None,
    split: str | None,
    config: Config,
    templates: str | list[str] | None,
    languages: list[str],
    console: Console,
) -> dict[str, Any]:
    """Print and return what ``model`` does on ``data``.

    Retrieval is measured where captions say something about single pictures; class folders, whose captions are only
    their labels, are measured zero-shot.

    Raises:
        ClipkitError: no data, no such split, or nothing in it to measure.
    """
    if model.model.of_interactions and data is not None:
        raise ClipkitError("a model of users and items is measured on its run's own interactions: leave --data out")
    shards = _shards(model, data, split, config, console)
    reader = plain_reader(model.model, shards, config)
    if model.model.of_interactions:
        recommended = evaluate_split(model.model, reader)
        console.say("\n".join(other_figures(recommended, {}, shards.name)))
        return {"model": model.name, "data": shards.name, **recommended.to_dict()}
    start = before_training(model)
    if start is not None:  # its picture tower is the same: one pass for both, kept for the next time
        reader = replace(reader, picture=lock_images(model.model, shards, console.progress))
    encoded = encode_pairs(model.model, reader, autocast=model.autocast)
    samples = encoded.samples.tolist()
    for bad in encoded.bad[:5]:
        console.say(f"skipped {bad.reason}")
    result: dict[str, Any] = {"model": model.name, "data": shards.name, "skipped": len(encoded.bad)}
    labels = split_labels(reader, samples)
    records = [shards.read_record(i) for i in samples]
    captions = {caption for _, own in records for caption in own}
    has_captions = labels is None or len(captions) > len(set(labels))
    begun = encode_pairs(start.model, reader, autocast=model.autocast) if start is not None else None
    both = len(model.model.towers) == 2
    if labels is not None and not both and len(encoded.images):
        neighbours = by_neighbours(encoded.images.numpy(), labels, bootstrap=1000)
        if neighbours is not None:
            result["neighbours"] = neighbours.to_dict()
            console.say(_line("neighbours, top-1", neighbours.top1, None, neighbours.chance))
            console.say(f"half of each class by the other half, {neighbours.protocol}")
    if has_captions and both:
        report = retrieval(encoded.images, encoded.texts, encoded.image_of_text)
        before = retrieval(begun.images, begun.texts, begun.image_of_text, bootstrap=0) if begun is not None else None
        result["retrieval"] = _with(report, before)
        for title, name in (("image to text", "image_to_text"), ("text to image", "text_to_image")):
            for k, value in getattr(report, name).items():
                then = getattr(before, name)[k].value if before is not None else None
                console.say(_line(f"{title}, recall@{k}", value, then, getattr(report, f"chance_{name}")[k]))
        console.say(report.protocol)
    if labels is not None and both:
        names = sorted(set(labels))
        weights = classifier_weights(model.encode_text, names, templates or model.model.templates)
        zero = zero_shot(encoded.images, weights, labels, names)
        first = zero_shot(begun.images, weights, labels, names, bootstrap=0) if begun is not None else None
        result["zero_shot"] = _with(zero, first)
        chances = {"top1": zero.chance, "top5": min(1.0, 5 * zero.chance), "mean_per_class": zero.chance}
        for name, chance in chances.items():
            value = getattr(zero, name)
            if value is not None:
                then = getattr(first, name).value if first is not None else None
                console.say(_line(f"zero-shot {name.replace('_', ' ').replace('top', 'top-')}", value, then, chance))
        console.say(f"always saying the majority class: {zero.majority:.1%}")
        console.say(zero.protocol)
    space = _space(encoded, has_captions)
    if space is not None:
        result["space"] = space.to_dict()
        names_of_sides = ("pictures", "texts") if len(encoded.images) else ("texts", "texts")
        for sentence in space.sentences(names_of_sides):
            console.say(f"the space: {sentence}")
    if languages:
        result["languages"] = _languages(model, encoded, records, languages, console)
    return result


def _space(encoded: EncodedPairs, has_captions: bool) -> Health | None:
    """The health of the space, of at most 2,000 pictures evenly over the split and of their captions."""
    rows, texts, owners = encoded.images.numpy(), encoded.texts.numpy(), encoded.image_of_text.numpy()
    if not len(rows) or not len(texts):  # one tower
        alone = rows if len(rows) else texts
        return measure_health(alone[_evenly(len(alone))]) if len(alone) > 1 else None
    chosen = _evenly(len(rows))
    if len(chosen) < 2:
        return None
    if not has_captions:  # a caption a class says little of the texts' side
        return measure_health(rows[chosen])
    own = np.isin(owners, chosen)
    return measure_health(rows[chosen], texts[own], np.searchsorted(chosen, owners[own]))


def _evenly(count: int) -> np.ndarray:
    return np.unique(np.linspace(0, count - 1, min(count, _SPACE)).astype(np.int64))


def _languages(
    model: Aligner, encoded: Any, records: list[Any], languages: list[str], console: Console
) -> dict[str, Any]:
    """Text to image with each language's names of the same pictures."""
    names = [record.get("names") or {} for record, _ in records]
    known = sorted({code for n in names for code in n})
    if not known:
        raise ClipkitError("the data has no names in other languages (meta 'names'); leave --languages out")
    wanted = known if languages == ["all"] else languages
    unknown = [code for code in wanted if code not in known]
    if unknown:
        raise ClipkitError(f"no names in language {unknown[0]!r}; there are {', '.join(known)}")
    figures = {}
    for code in wanted:
        texts = [(i, text) for i, n in enumerate(names) for text in n.get(code, ())]
        pictures = sorted({i for i, _ in texts})
        place = {i: row for row, i in enumerate(pictures)}
        rows = encode_captions(model.model, [text for _, text in texts], autocast=model.autocast)
        report = retrieval(encoded.images[pictures], rows, [place[i] for i, _ in texts])
        figures[code] = report.to_dict()
        found = report.text_to_image
        console.say(f"{code:8}" + "   ".join(f"recall@{k} {value.value:.1%}" for k, value in found.items()))
    return figures


def _shards(model: Aligner, data: str | None, split: str | None, config: Config, console: Console) -> ShardSet:
    if data is None:
        run = Path(model.name)
        if not (run / FOLDER).is_dir():
            raise ClipkitError("no --data: give shards, a table of pictures and captions, or class folders")
        own = load_config(run / "config.yaml")
        held_out = find_recipe(own.recipe).pairs(own).held_out
        name = split or next((n for n in ("test", "val") if n in held_out), "test")
        if name not in held_out:
            ask = "--data" if model.model.image is not None else "--data, or --sts with a file of scored sentence pairs"
            raise ClipkitError(f"the run has no {name} split (it has {', '.join(held_out) or 'none'}); pass {ask}")
        return held_out[name]
    for name in [split] if split else ["test", "val"]:
        if place := split_folders(Path(data)).get(name):
            return open_shards(place)
    shards, prepared = open_data(data, config, "train")
    say_left_out(prepared, console)
    if prepared is None or any(Path(data).glob("*.tar")):
        return shards
    splits = split_folders(prepared)
    has = [name for name in ("test", "val", "train") if name in splits]
    if split is not None and split not in has and len(has) > 1:
        raise ClipkitError(f"{data} has no {split} split (it has {', '.join(has)}); name one of them as --split")
    wanted = split if split in has else has[0]
    return shards if wanted == "train" else open_data(data, config, wanted)[0]


def before_training(model: Aligner) -> Aligner | None:
    """The model as it was before its first pair, if it remembers (the starter does)."""
    if model.model.image is None or not isinstance(model.model.image.head, ClassesHead):
        return None
    start = copy.deepcopy(model.model)
    start.tower("image").head.reset()  # type: ignore[operator]
    return Aligner(start, f"{model.name} before training", model.autocast)


def _with(report: RetrievalReport | ZeroShotReport, before: RetrievalReport | ZeroShotReport | None) -> dict[str, Any]:
    return report.to_dict() if before is None else {**report.to_dict(), "before_training": before.to_dict()}


def _line(title: str, value: Interval, before: float | None, chance: float) -> str:
    then = f"   before training {before:6.1%}" if before is not None else ""
    return f"{title:26}{value.value:6.1%} [{value.low:.1%}, {value.high:.1%}]{then}   chance {chance:.2%}"
