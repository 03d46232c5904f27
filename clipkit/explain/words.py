"""What a table says, in words: what is compared, what each role means here, and how methods differ."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from clipkit.explain.table import BATCH, GUARDED, ITSELF, NEGATIVE, NO_ROLE, POSITIVE, Explained, Table

if TYPE_CHECKING:
    from clipkit.encoders import TwoViewsSettings

_PLURAL = {
    "picture": "pictures", "view": "views", "target": "views through the momentum encoder", "caption": "captions",
    "negative": "hard negatives", "sentence": "sentences", "user": "users", "item": "items",
}  # fmt: skip
_POSITIVE = {
    ("picture", "caption"): "a picture and its own caption",
    ("view", "view"): "two views of one picture",
    ("view", "target"): "a view, and the other view of its picture through the momentum encoder",
    ("sentence", "sentence"): "a sentence and its paraphrase, or itself once more under other dropout",
    ("user", "item"): "a user and the item chosen",
}
_FOUND = {
    "view": "the other view of its picture", "target": "the other view of its picture",
    "sentence": "its other version", "item": "the item chosen",
}  # fmt: skip
_OWN = ("recipe", "train_data", "val_data", "output", "batch_size", "resume", "overwrite")  # settings of no method


def of_kind(n: int, kind: str) -> str:
    """ "1 picture", "8 captions"."""
    noun = _PLURAL[kind] if n != 1 else {"negative": "hard negative"}.get(kind, kind)
    return f"{n:,} {noun}"


def compared(table: Table) -> str:
    """What lies along the sides."""
    rows = of_kind(len(table.queries), table.queries[0].kind)
    if (table.roles == ITSELF).any():
        return f"{rows} with one another"
    kinds = list(dict.fromkeys(item.kind for item in table.keys))
    columns = " and ".join(of_kind(sum(item.kind == kind for item in table.keys), kind) for kind in kinds)
    return f"{rows} with {columns}"


def roles(table: Table, explained: Explained) -> dict[str, str]:
    """What each role that occurs is, in this table; in a fixed order."""
    kinds = _kinds(table)
    labels = explained.config.data.compare == "labels"
    positive = "two views of pictures with one label" if labels else _POSITIVE.get(kinds, "equal ids")
    guarded = (
        "the same item, or another of the same user's"
        if kinds[0] == "user"
        else "captions that say the same, or copies of one picture"
    )
    meaning = {
        POSITIVE: f"positive: {positive}",
        NEGATIVE: "negative: all other pairs that count",
        ITSELF: f"does not count: a {kinds[0]} with itself",
        GUARDED: f"does not count: {guarded} (known false negatives)",
        BATCH: "does not count: keys of other pictures in the batch, as only those of the queue are negatives",
        NO_ROLE: "does not count: the method has no negatives",
    }
    return {role: said for role, said in meaning.items() if (table.roles == role).any()}


def sentence(explained: Explained) -> str:
    """What the method does to its tables."""
    said = []
    for table in explained.tables:
        what = compared(table)
        said += [f"{what[0].upper()}{what[1:]}: {_each(table)}.", _wants(explained, table)]
    return " ".join(dict.fromkeys(said))


def _each(table: Table) -> str:
    row = table.queries[0].kind
    said = [f"{_per_row(table, POSITIVE)} for each {row}"]
    negatives = _per_row(table, NEGATIVE)
    if table.queue:
        said.append(f"{table.queue.size:,} past keys as negatives, the same for all")
    if negatives is not None:
        said.append(f"{negatives}")
    elif not table.queue:
        said.append("no negatives")
    return ", ".join(said)


def _per_row(table: Table, role: str) -> str | None:
    """ "1 positive", "5 to 7 negatives", or None where there is none."""
    counts = (table.roles == role).sum(1)
    low, high = int(counts.min()), int(counts.max())
    if high == 0:
        return None
    noun = {POSITIVE: "positive", NEGATIVE: "negative"}[role]
    return (f"{low}" if low == high else f"{low} to {high}") + f" {noun}" + ("" if high == 1 else "s")


def _wants(explained: Explained, table: Table) -> str:
    """What the objective asks of the cells of ``table``."""
    name, settings = explained.objective
    if name in ("infonce", "hard_infonce"):
        row, key = _kinds(table)
        own = (
            "the views of its label" if explained.config.data.compare == "labels" else _FOUND.get(key, f"its own {key}")
        )
        other = f", and each {key} its own {row}," if settings.get("directions") == "both" and row != key else ""
        nearer = "; the nearer a negative, the more it weighs" if name == "hard_infonce" else ""
        return f"Each {row} has to find {own}{other} among all that count (cross-entropy){nearer}."
    if name == "sigmoid":
        return "Every cell is a question of its own, do the two belong together: yes or no."
    if name == "margin":
        return f"Positives are pulled together; negatives are pushed away while nearer than {settings['margin']:g}."
    if name == "triplet":
        which = {"hardest": "its hardest negative", "all": "every negative", "semihard": "the next negative beyond it"}
        return (
            f"Each positive has to be nearer than {which[settings['mining']]}, by a margin of {settings['margin']:g} "
            f"in squared distance; cells of triplets that are, cost nothing."
        )
    if name == "negative_cosine":
        return "Positives are pulled together, and nothing is pushed."
    return explained.about


def _kinds(table: Table) -> tuple[str, str]:
    """Of the rows, and of the first column: hard negatives come after."""
    return table.queries[0].kind, table.keys[0].kind


def facts(explained: Explained) -> dict[str, str]:
    """What methods differ in, by name; the same names for every recipe."""
    tables, config = explained.tables, explained.config
    name, settings = explained.objective
    heads = explained.heads
    momentum = "none"
    if config.optim.momentum is not None:
        momentum = f"{config.optim.momentum:g} of it stays in a step" + (
            ", rising to 1" if config.optim.momentum_rising else ""
        )
    return {
        "compared": _joined(compared(table) for table in tables),
        "positives of a row": _joined(_per_row(table, POSITIVE) or "none" for table in tables),
        "negatives of a row": _joined(_negatives(table) for table in tables),
        "does not count": _joined(_left_out(table, explained) for table in tables),
        "keys come from": _joined(_source(table, config.model.lock_text) for table in tables),
        "objective": name + "".join(f", {key} {plain(value)}" for key, value in settings.items()),
        "temperature": _joined(_temperature(table) for table in tables),
        "momentum encoder": momentum,
        "queue": f"{config.optim.queue:,} keys" if config.optim.queue else "none",
        "projection head": _projector(heads),
        "predictor": f"hidden width {heads.predictor}" if heads and heads.predictor else "none",
    }


def _projector(heads: TwoViewsSettings | None) -> str:
    if heads is None:
        return "none"
    return f"{heads.hidden} to {heads.out}" + (", normalised" if heads.normalised else "")


def _joined(parts: Any) -> str:
    """Each once, in order: two tables that agree are told of once."""
    return "; ".join(dict.fromkeys(parts))


def _negatives(table: Table) -> str:
    batch = _per_row(table, NEGATIVE)
    queue = f"{table.queue.size:,} of the queue" if table.queue else None
    return " and ".join(filter(None, (batch, queue))) or "none"


def _left_out(table: Table, explained: Explained) -> str:
    said = [text for role, text in roles(table, explained).items() if role not in (POSITIVE, NEGATIVE)]
    return "; ".join(text.removeprefix("does not count: ") for text in said) or "nothing"


def _source(table: Table, locked: bool) -> str:
    kind = table.keys[0].kind
    if kind == "caption" and locked:
        return "the text tower, which is locked"
    if kind == "target":
        return "the momentum encoder, without a gradient"
    if kind in ("view", "sentence"):
        return "the same encoder, with a gradient"
    return {"item": "the items' tower, with a gradient"}.get(kind, "the text tower, with a gradient")


def _temperature(table: Table) -> str:
    if table.temperature is None:
        return "none"
    said = f"{table.temperature:.3g}, " + ("learned" if table.learned else "constant")
    if table.bias is not None:
        said += f"; bias {table.bias:.3g}, learned"
    return said + ("; each key's score corrected by its frequency (logQ)" if table.shifted else "")


def differing(explained: Sequence[Explained]) -> tuple[list[str], list[str]]:
    """Names of the facts in which the recipes differ, and of those in which they agree."""
    told = [facts(e) for e in explained]
    differ = [name for name in told[0] if len({fact[name] for fact in told}) > 1]
    return differ, [name for name in told[0] if name not in differ]


def differing_settings(explained: Sequence[Explained]) -> dict[str, list[str]]:
    """Flags whose values differ among the resolved configs, with the value of each recipe."""
    configs = [e.config.to_dict() for e in explained]
    return {
        f"--{name.replace('_', '-')}": [plain(config[name]) for config in configs]
        for name in configs[0]
        if name not in _OWN and len({repr(config[name]) for config in configs}) > 1
    }


def plain(value: Any) -> str:
    """A setting's value as people write it."""
    if value is None:
        return "not set"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, (list, tuple)):
        return " ".join(plain(v) for v in value) or "not set"
    return f"{value:g}" if isinstance(value, float) else str(value)


def cell(table: Table, explained: Explained, i: int, j: int) -> str:
    """One cell in words and numbers; ``j`` past the last key is the queue."""
    row = _called(table, i, True)
    if j == len(table.keys):
        assert table.queue is not None
        gradient = float(table.queue.gradients[i])
        return (
            f"{row} with the queue's {table.queue.size:,} keys: negatives, largest cosine "
            f"{table.queue.hardest[i]:.3f}, gradient {gradient:+.3g} in all{_moves(gradient)}"
        )
    role = str(table.roles[i, j])
    said = roles(table, explained)[role].split(" (")[0]
    if role in (POSITIVE, NEGATIVE):
        said = said.split(":")[0]
    numbers = f"cosine {table.cosines[i, j]:.3f}"
    if table.temperature is not None:
        numbers += f", score {table.scores[i, j]:.3f}"
    gradient = float(table.gradients[i, j])
    return f"{row} with {_called(table, j, False)}: {said}; {numbers}, gradient {gradient:+.3g}{_moves(gradient)}"


def _moves(gradient: float) -> str:
    return "" if gradient == 0 else " (pulled together)" if gradient < 0 else " (pushed apart)"


def _called(table: Table, place: int, is_row: bool) -> str:
    item = (table.queries if is_row else table.keys)[place]
    kind = {"target": "momentum view", "negative": "hard negative"}.get(item.kind, item.kind)
    return f"{kind} {item.code} ({item.name})"
