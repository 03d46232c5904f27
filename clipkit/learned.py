"""``clipkit evaluate --probe, --label-efficiency, --sts``: what the towers have learned."""

from __future__ import annotations

import json
import tempfile
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor, nn

from clipkit.config import Config
from clipkit.data_option import open_data, say_left_out, split_folders
from clipkit.encoders.build import rebuild, save_description
from clipkit.errors import ClipkitError
from clipkit.evaluation import (
    Budget,
    frozen_features,
    hold_out,
    knn,
    label_efficiency,
    linear_probe,
    read_labelled,
    read_sentence_pairs,
    sts,
)
from clipkit.evaluation.encoding import inference
from clipkit.evaluation.labelled import Labelled
from clipkit.inference import Aligner
from clipkit.pairs import normalize, open_shards
from clipkit.training.console import Console

if TYPE_CHECKING:
    from clipkit.evaluate_command import FineTune


def measure_sentences(model: Aligner, path: str, console: Console) -> dict[str, Any]:
    """Print and return Spearman's correlation on the pairs of sentences in ``path``."""
    pairs = read_sentence_pairs(path)
    texts = list(dict.fromkeys([*pairs.first, *pairs.second]))
    place = {text: row for row, text in enumerate(texts)}
    rows = model.encode_text(texts)
    report = sts(rows[[place[t] for t in pairs.first]], rows[[place[t] for t in pairs.second]], pairs.scores)
    console.say(f"{path}: {report}")
    console.say(report.protocol)
    return {"data": path, **report.to_dict()}


def measure_probes(model: Aligner, data: str, split: str | None, config: Config, console: Console) -> dict[str, Any]:
    """Print and return a linear probe and the nearest neighbours on the frozen features of the picture tower.

    Features are what the trunk gives, before the head: what a task of one's own would start from (Chen et al. 2020).
    """
    train, test = _splits(model, data, split, config, console)
    tower = model.model.tower("image")

    def encode(pictures: Tensor) -> Tensor:
        with inference(model.model.device, model.autocast):
            pixels = normalize(pictures.to(model.model.device), model.model.picture)
            return tower.encode_trunk(pixels.to(model.model.log_scale.dtype))

    train_ND, test_MD = (frozen_features(tower, encode, part.pictures) for part in (train, test))
    reports = {
        "linear": linear_probe(train_ND, train.labels, test_MD, test.labels),
        "knn": knn(train_ND, train.labels, test_MD, test.labels),
    }
    for report in reports.values():
        console.say(str(report))
        console.say(report.protocol)
    return {"data": data, **{name: report.to_dict() for name, report in reports.items()}}


def measure_label_efficiency(
    model: Aligner,
    data: str,
    split: str | None,
    config: Config,
    tune: FineTune,
    beside: Path,
    console: Console,
) -> dict[str, Any]:
    """Print, draw and return the curve of accuracy over labels.

    Both networks are the trunk of the picture tower; the one from scratch is made anew from the model's description.

    Args:
        beside: the curve is written to this path, as .json and .png.
    """
    train, test = _splits(model, data, split, config, console)
    trunk = model.model.tower("image").trunk
    state = {name: tensor.detach().clone() for name, tensor in trunk.state_dict().items()}
    budget = Budget(tune.epochs, tune.min_steps, tune.batch_size, tune.lr)

    def progress(_: str, done: int, total: int) -> None:
        if done == 1:
            console.say(f"{total:,} training steps in all; --fractions, --seeds, --epochs and --min-steps say how many")
        console.progress("fine-tuning", done, total)

    with tempfile.TemporaryDirectory() as folder:
        save_description(model.model, Path(folder))

        def scratch() -> nn.Module:
            return rebuild(Path(folder)).tower("image").trunk

        def pretrained() -> nn.Module:
            made = scratch()
            made.load_state_dict(state)
            return made

        curve = label_efficiency(
            pretrained,
            scratch,
            train.pictures,
            train.labels,
            test.pictures,
            test.labels,
            partial(normalize, spec=model.model.picture),
            fractions=tune.fractions,
            seeds=tune.seeds,
            budget=budget,
            device=model.model.device,
            progress=progress,
        )
    found = {"data": data, **curve.to_dict()}
    console.say(str(curve))
    curve.plot(beside.with_name(f"{beside.name}.png"))
    if beside.name == "label_efficiency":
        beside.with_name(f"{beside.name}.json").write_text(json.dumps(found, indent=2), encoding="utf-8")
        console.say(f"figures: {beside}.json")
    console.say(f"curve: {beside}.png")
    return found


def _splits(
    model: Aligner, data: str, split: str | None, config: Config, console: Console
) -> tuple[Labelled, Labelled]:
    """Labelled pictures to train and to test with: the data's own splits, or four fifths and one fifth by class."""
    spec = model.model.picture
    model.model.picture_tower()  # a model without one says so before anything is read
    if split == "train":
        raise ClipkitError(
            "--split train: the test has to be of other pictures than what is learned from; leave it out"
        )
    shards, folder = open_data(data, config, "train")
    say_left_out(folder, console)
    splits = split_folders(folder) if folder is not None else {}
    found = next((splits[name] for name in ([split] if split else ["test", "val"]) if name in splits), None)
    if split and found is None:
        raise ClipkitError(f"{data}: no split called {split}; leave --split out, or name one that it has")
    train = read_labelled(shards, spec)
    if found is not None:
        test = read_labelled(open_shards(found), spec)
        name = found.name
    else:
        _, codes = np.unique(train.labels, return_inverse=True)
        kept, held = hold_out(codes, 0.2, 0)
        if not len(held):
            raise ClipkitError(f"{data}: too few pictures of each class to hold some out; give a test split")
        bad, train, test = train.bad, train.part(kept), train.part(held)
        train = Labelled(train.pictures, train.labels, bad)
        name = "a fifth of each class, held out"
    for reason in (*train.bad, *test.bad)[:5]:
        console.say(f"skipped {reason}")
    console.say(f"{data}: {len(train.labels):,} labelled pictures, {len(test.labels):,} to test ({name})")
    return train, test
