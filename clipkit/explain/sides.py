"""What the rows and the columns of a table are: pictures, views, captions, sentences, users, items.

Only a recipe's ``compare`` knows in which order it lays them along the sides. It moves rows and computes nothing, so
it is called a second time, with rows that say where they come from; where these end up is read off the result.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import count

import torch
from torch import Tensor

from clipkit.encoders import Embeddings
from clipkit.errors import ClipkitError
from clipkit.objectives import Compare
from clipkit.pairs import PairBatch, ShardSet
from clipkit.pairs.interactions import InteractionSet

IMAGE, TEXT, VIEW, TARGET = range(4)
OF_VIEWS = 1.0  # log_scale by which a table of views is known


@dataclass(frozen=True)
class Item:
    """A row or a column.

    Attributes:
        kind: "picture", "view", "target" (a view through the momentum encoder), "caption", "negative" (a hard
            negative caption), "sentence", "user" or "item".
        code: its sample's number in the batch, from 1, and a letter where there are several of its kind: "3", "3b".
        name: its caption, sentence or name.
        picture: uint8 (3, H, W) as the tower sees it, or None.
    """

    kind: str
    code: str
    name: str
    picture: Tensor | None = None


@dataclass(frozen=True)
class Sides:
    """Of one table: its queries and its keys in order, and whether it has the temperature of views."""

    queries: list[Item]
    keys: list[Item]
    of_views: bool


def find_sides(
    compare: Compare, e: Embeddings, batch: PairBatch, shards: ShardSet, chosen: Sequence[tuple[int, int, str]]
) -> list[Sides]:
    """The sides of each table that ``compare`` makes.

    Args:
        compare: the recipe's.
        e: the batch's embeddings.
        batch: a training batch.
        shards: where the batch is from.
        chosen: the batch's texts, (sample, caption's place, caption) in order; empty where none are read.

    Raises:
        ClipkitError: ``compare`` does more than to move rows.
    """
    items = _items(e, batch, shards, chosen)
    tables = compare(_marked(e), batch, "gather")
    return [
        Sides(_named(items, table.queries), _named(items, table.keys), float(table.log_scale) == OF_VIEWS)
        for table in tables
    ]


def _marked(e: Embeddings) -> Embeddings:
    """``e`` with rows (what, view, place) instead of embeddings."""

    def flat(what: int, n: int, view: int = 0) -> Tensor:
        place = torch.arange(n, dtype=torch.float64)
        return torch.stack([torch.full_like(place, what), torch.full_like(place, view), place], dim=1)

    def stacked(what: int, x: Tensor) -> Tensor:
        return torch.stack([flat(what, x.shape[1], view) for view in range(len(x))])

    return e._replace(
        images=None if e.images is None else flat(IMAGE, len(e.images)),
        texts=None if e.texts is None else flat(TEXT, len(e.texts)),
        views=None if e.views is None else stacked(VIEW, e.views),
        targets=None if e.targets is None else stacked(TARGET, e.targets),
        queue=None if e.queue is None else torch.zeros(len(e.queue), 3, dtype=torch.float64),
        log_scale=torch.zeros(1),
        view_scale=None if e.view_scale is None else torch.full((1,), OF_VIEWS),
    )


def _named(items: dict[tuple[int, int, int], Item], marks: Tensor) -> list[Item]:
    places = [tuple(int(x) for x in row) for row in marks.tolist()]
    unknown = [place for place in places if place not in items]
    if unknown or not torch.equal(marks, marks.round()):
        raise ClipkitError("the recipe's compare() does more than to choose rows, so its table cannot be explained")
    return [items[place] for place in places]  # type: ignore[index]


def _items(
    e: Embeddings, batch: PairBatch, shards: ShardSet, chosen: Sequence[tuple[int, int, str]]
) -> dict[tuple[int, int, int], Item]:
    """(what, view, place) to what it is."""
    samples = batch.image_ids.tolist()
    number = {sample: str(place + 1) for place, sample in enumerate(samples)}
    found: dict[tuple[int, int, int], Item] = {}
    if isinstance(shards, InteractionSet):
        for place, sample in enumerate(samples):
            user, item = shards.users.names[shards.user_N[sample]], shards.items.names[shards.item_N[sample]]
            found[IMAGE, 0, place] = Item("user", number[sample], user)
            found[TEXT, 0, place] = Item("item", number[sample], item)
        return found
    for place, item in enumerate(_texts(chosen, number, "sentence" if batch.images is None else "caption")):
        found[TEXT, 0, place] = item
    if batch.images is None:
        return found
    pictures = batch.images if batch.images.ndim == 5 else batch.images[:, None]
    names = [_name(shards, sample) for sample in samples]
    # The first of several is the picture of its caption, where captions are read; the last are those of the targets.
    first = 1 if e.images is not None else 0
    ahead = pictures.shape[1] - first - (len(e.targets) if e.targets is not None else 0)
    for place, sample in enumerate(samples):
        found[IMAGE, 0, place] = Item("picture", number[sample], names[place], pictures[place, 0])
        for view in range(pictures.shape[1] - first):
            code = number[sample] + "ab"[view]
            seen = Item("view", code, names[place], pictures[place, first + view])
            found[VIEW, view, place] = seen
            found[TARGET, view - ahead, place] = Item("target", code, seen.name, seen.picture)
    return found


def _texts(chosen: Sequence[tuple[int, int, str]], number: dict[int, str], kind: str) -> list[Item]:
    own = Counter(sample for sample, place, _ in chosen if place >= 0)
    letters = {sample: count() for sample in own}
    items = []
    for sample, place, text in chosen:
        if place < 0:
            items.append(Item("negative", f"{number[sample]}x", text))
            continue
        letter = chr(ord("a") + next(letters[sample])) if own[sample] > 1 else ""
        items.append(Item(kind, number[sample] + letter, text))
    return items


def _name(shards: ShardSet, sample: int) -> str:
    """The first caption of a picture, its label, or its key."""
    record, captions = shards.read_record(sample)
    return captions[0] if captions else str(record.get("label") or shards.key(sample))
