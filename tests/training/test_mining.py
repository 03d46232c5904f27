"""Mined negatives: the nearest texts of others, but for those that probably belong, found alike on any processes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize
from training_helpers import COLOURS, draw, make_config

from clipkit.encoders import Embeddings
from clipkit.errors import ClipkitError
from clipkit.pairs import PairBatch
from clipkit.recipes import find_recipe
from clipkit.training.mining import Miner, make_miner

SCALE = torch.zeros(1)


def at(*degrees: float) -> Tensor:
    """Points of a circle."""
    radians = torch.deg2rad(torch.tensor(degrees, dtype=torch.float64))
    return torch.stack([radians.cos(), radians.sin()], 1)


def batch(ids: list[int], text_ids: list[int] | None = None, **more: Any) -> PairBatch:
    image_ids = torch.tensor(ids)
    return PairBatch(None, None, image_ids, image_ids if text_ids is None else torch.tensor(text_ids), **more)


def learn(miner: Miner, images: Tensor, texts: Tensor, of: PairBatch) -> list[int]:
    miner.learn_from(Embeddings(images, texts, SCALE, None), of)
    return miner.mined_N.tolist()


def reference(steps: list[tuple[Tensor, Tensor, list[int]]], n: int, margin: float, pool: int) -> list[int]:
    """Sample by sample and text by text."""
    mined, kept = [-1] * n, []
    for images, texts, ids in steps:
        kept = [*kept, *zip(ids, texts.tolist(), strict=True)][-pool:]
        for image, text, i in zip(images.numpy(), texts.numpy(), ids, strict=True):
            own, best = float(image @ text), -np.inf
            for j, other in kept:
                cosine = float(image @ np.array(other))
                if j != i and best < cosine <= own - margin:
                    best, mined[i] = cosine, j
            if best == -np.inf:
                mined[i] = -1
    return mined


@pytest.mark.parametrize("pool", [4, 7, 100])
@pytest.mark.parametrize("margin", [0.0, 0.3])
def test_it_is_the_nearest_that_is_a_margin_farther_than_the_own(margin: float, pool: int) -> None:
    draws = torch.Generator().manual_seed(0)
    miner = Miner(20, 3, margin, pool, torch.float64)
    steps = []
    for step in range(9):
        ids = torch.randperm(20, generator=draws)[: 3 + step % 2].tolist()
        images, texts = (normalize(torch.randn(len(ids), 3, generator=draws, dtype=torch.float64)) for _ in range(2))
        steps.append((images, texts, ids))
        found = learn(miner, images, texts, batch(ids))
        assert found == reference(steps, 20, margin, pool)
    assert len(set(found)) > 4


def test_what_is_as_near_as_the_own_is_passed_by() -> None:
    miner = Miner(4, 2, 0.05, dtype=torch.float64)
    # for the picture at 0 degrees: its own text at 20 (cosine 0.94), one at 5 (another caption of it, most likely), one
    # at 21 (0.934, within the margin), one at 60
    found = learn(miner, at(0, 5, 21, 60), at(20, 5, 21, 60), batch([0, 1, 2, 3]))
    assert found[0] == 3


def test_of_several_own_texts_the_farthest_counts() -> None:
    miner = Miner(3, 2, 0.0, dtype=torch.float64)
    found = learn(miner, at(0, 20, 50), at(0, 30, 20, 50), batch([0, 1, 2], [0, 0, 1, 2]))
    assert found[0] == 2, "the text at 20 degrees is nearer than one of its own at 30"


def test_groups_of_the_guard_are_passed_by() -> None:
    images, texts = at(0, 10, 20, 30), at(0, 10, 20, 30)
    says = {0: 5, 1: 5, 2: 6, 3: 7}  # sample 1 has the caption of sample 0
    copies = {0: 90, 1: 91, 2: 90, 3: 93}  # sample 2 shows a copy of the picture of sample 0
    groups = torch.tensor([[says[i]] * 5 + [copies[i]] for i in range(4)])
    grouped = batch([0, 1, 2, 3], image_groups=groups, text_groups=groups)
    assert learn(Miner(4, 2, 0.0, dtype=torch.float64), images, texts, grouped)[0] == 3
    assert learn(Miner(4, 2, 0.0, dtype=torch.float64), images, texts, batch([0, 1, 2, 3]))[0] == 1
    nobody = torch.full((4, 6), -1)  # nobody looked for copies or captions that are alike
    ungrouped = batch([0, 1, 2, 3], image_groups=nobody, text_groups=nobody)
    assert learn(Miner(4, 2, 0.0, dtype=torch.float64), images, texts, ungrouped)[0] == 1


def test_hard_negatives_are_not_kept() -> None:
    miner = Miner(9, 2, 0.0, dtype=torch.float64)
    # given (a negative id), and mined for the batch (the last one, with the id of a sample)
    found = learn(miner, at(0, 40), at(0, 1, 40, 2), batch([0, 1], [0, -1, 1, 7], mined=1))
    assert found[0] == 1 and int(miner.filled) == 2


def test_sentences_ask_with_their_first_version_and_find_second_ones() -> None:
    miner = Miner(3, 2, 0.0, dtype=torch.float64)
    texts = torch.stack([at(0, 90, 180), at(10, 25, 200)], 1).flatten(0, 1)
    miner.learn_from(Embeddings(None, texts, SCALE, None), batch([0, 1, 2], [0, 0, 1, 1, 2, 2]))
    # sentence 1 asks at 90 degrees: its own is 65 away, the other one 80; sentence 2 at 180: its own 20, the next 155
    assert miner.mined_N.tolist() == [1, 0, 1]


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    for i, colour in enumerate(COLOURS):
        draw(colour, "plain", i).save(folder / f"{i}.png")
        lines = [f"a {colour} shape", f"something that is very {colour} on the whole"]
        (folder / f"{i}.txt").write_text("\n".join(lines), encoding="utf-8")
    return folder


def test_the_very_caption_that_was_looked_at_is_delivered(pictures: Path, tmp_path: Path) -> None:
    """A sample's other captions may be anywhere: the margin is that of the one that was found."""
    from clipkit.training.data import training_reader

    recipe = find_recipe("clip")
    config = recipe.defaults.replace(
        train_data=str(pictures), model=str(make_config(tmp_path / "tiny.json")), negatives="mined"
    )
    pairs, model = recipe.pairs(config), recipe.encoders(config)
    reader, read = training_reader(model, pairs.train, config), []

    def texts(chosen: list[tuple[int, int, str]]) -> Tensor:
        read[:] = [caption for _, _, caption in chosen]
        assert reader.texts is not None
        return reader.texts(chosen)

    noting = replace(reader, texts=texts)
    miner, before = Miner(10, model.embed_dim, -2.0), list[str]()  # the nearest of the others, however near it is
    for epoch in range(4):
        step = noting([(epoch, i) for i in range(10)])
        said = [*read]
        if epoch:
            with_mined = miner.add_to(step, noting)
            assert read == [before[i] for i in with_mined.text_ids[10:].tolist()], "what was said an epoch ago"
            assert with_mined.mined == 10 and with_mined.text_places is not None and len(with_mined.text_places) == 20
            again = Miner(10, model.embed_dim, -2.0)
            again.load_state_dict(miner.state_dict())
            once_more = again.add_to(step, noting).texts
            assert once_more is not None and with_mined.texts is not None and torch.equal(once_more, with_mined.texts)
        miner, before = Miner(10, model.embed_dim, -2.0), said  # which knows this epoch alone
        with torch.no_grad():
            miner.learn_from(model(step.images, step.texts), step)


def test_a_checkpoint_without_places_is_taken_for_first_captions() -> None:
    miner, old = Miner(3, 2, 0.0), Miner(3, 2, 0.0).state_dict()
    old["mined_N"] = torch.tensor([2, 0, 1])
    del old["place_P"], old["mined_place_N"]
    torch.nn.ModuleDict({"miner": miner}).load_state_dict({f"miner.{name}": x for name, x in old.items()})
    assert miner.mined_N.tolist() == [2, 0, 1] and miner.mined_place_N.tolist() == [0, 0, 0]


def test_a_batch_gets_the_texts_that_were_mined(pictures: Path, tmp_path: Path) -> None:
    from clipkit.training.data import training_reader

    recipe = find_recipe("clip")
    config = recipe.defaults.replace(
        train_data=str(pictures), model=str(make_config(tmp_path / "tiny.json")), negatives="mined"
    )
    pairs, model = recipe.pairs(config), recipe.encoders(config)
    miner = make_miner(config, model, pairs.train)
    assert miner is not None and len(miner.mined_N) == len(pairs.train)
    reader = training_reader(model, pairs.train, config)
    plain = reader([(2, 0), (2, 1), (2, 3)])
    assert miner.add_to(plain, reader) is plain, "before anything was mined"
    miner.mined_N[torch.tensor([0, 3])] = torch.tensor([3, 4])
    miner.mined_place_N[torch.tensor([0, 3])] = torch.tensor([1, 0])
    with_mined = miner.add_to(plain, reader)
    assert with_mined.mined == 2 and with_mined.text_ids.tolist() == [0, 1, 3, 3, 4]
    assert with_mined.own_texts().tolist() == [True] * 3 + [False] * 2
    assert plain.texts is not None and with_mined.texts is not None and with_mined.text_groups is not None
    assert torch.equal(with_mined.texts[:3, : plain.texts.shape[1]], plain.texts)
    assert not with_mined.texts[:3, plain.texts.shape[1] :].any(), "filled up as the tokenizer fills"
    for row, sample, place in ((3, 3, 1), (4, 4, 0)):
        (tokens,) = model.tokenizer([pairs.train.read_captions(sample)[place]])
        width = min(len(tokens), with_mined.texts.shape[1])
        assert torch.equal(tokens[:width], with_mined.texts[row, :width])
    # a part of the batch gets the same texts as the whole: nothing depends on the number of processes
    part = miner.add_to(reader([(2, 3)]), reader)
    assert part.texts is not None
    width = min(part.texts.shape[1], with_mined.texts.shape[1])
    assert torch.equal(part.texts[1, :width], with_mined.texts[4, :width]) and part.text_ids.tolist() == [3, 4]
    table = recipe.compare(config)(model(with_mined.images, with_mined.texts), with_mined, "gather")[0]
    assert table.key_ids.tolist() == [0, 1, 3, 3, 4], "a mined text is right for the sample that it was taken from"


def test_a_pipe_cannot_be_mined() -> None:
    from clipkit.pairs import PipeSet

    pipe = PipeSet.__new__(PipeSet)
    object.__setattr__(pipe, "name", "pipe:cat x.tar")
    config = find_recipe("clip").defaults.replace(negatives="mined")
    with pytest.raises(ClipkitError, match=r"pipe:cat x\.tar: .*make shards of it"):
        make_miner(config, None, pipe)  # type: ignore[arg-type]
