"""The doctor's checks: each looks at one thing and says in a sentence what is wrong and what to do about it."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise

from data_prep.examine import Examined
from data_prep.records import SPLITS

_SHOWN = 3  # examples in a finding
_REPEATED = 0.01  # share of captions that other pictures have too, above which it is said
_CUT = 0.01  # share of captions that look cut off, above which it is said
_FALSE_NEGATIVES = 0.01  # samples of a batch that meet a sample with their own caption, above which it is said
_LONG = 57  # words that fill the 77 tokens of CLIP's context: a word is about 1.3 tokens


@dataclass(frozen=True)
class Finding:
    """Something to mend: which check found it, what it is, what to do, how many, and some of them."""

    check: str
    message: str
    fix: str
    count: int
    examples: list[str] = field(default_factory=list)


Check = Callable[[Examined], Iterator[Finding]]


def unreadable(data: Examined) -> Iterator[Finding]:
    """Pictures, rows and stretches of shards that cannot be used."""
    if data.bad:
        examples = [f"{entry.file}: {entry.reason}" for entry in data.bad[:_SHOWN]]
        yield Finding(
            "unreadable",
            f"{len(data.bad):,} picture(s) or row(s) cannot be used",
            "mend or remove them; `clipkit prepare` leaves them out and lists them in skipped.jsonl",
            len(data.bad),
            examples,
        )


def duplicates(data: Examined) -> Iterator[Finding]:
    """Copies inside a split: they meet in a batch as false negatives, and weigh double."""
    pairs = [
        (first, row)
        for row, first in enumerate(data.copy_of)
        if first != row and data.records[row].split == data.records[first].split
    ]
    if pairs:
        yield Finding(
            "duplicates",
            f"{len(pairs):,} picture(s) are copies of another picture of their split",
            "`clipkit prepare` with --drop-copies, or `clipkit filter --hide-copies` on shards that it made",
            len(pairs),
            [f"{data.records[b].name} = {data.records[a].name}" for a, b in pairs[:_SHOWN]],
        )


def leakage(data: Examined) -> Iterator[Finding]:
    """Pictures, or groups, that lie in more than one split."""
    sets: dict[int, list[int]] = defaultdict(list)
    groups: dict[object, set[str]] = defaultdict(set)
    for row, first in enumerate(data.copy_of):
        sets[first].append(row)
        group = data.records[row].meta.get("group")
        if isinstance(group, str | int):
            groups[group].add(str(data.records[row].split))
    for held_out in SPLITS[1:]:
        leaked = []
        for rows in sets.values():
            inside = [row for row in rows if data.records[row].split == held_out]
            outside = [row for row in rows if data.records[row].split == "train"]
            leaked += [(row, outside[0]) for row in inside if outside]
        if leaked:
            yield Finding(
                "leakage",
                f"{len(leaked):,} picture(s) of {held_out} are in train too, so figures on {held_out} are too good",
                "`clipkit prepare` the data again: it keeps all copies of a picture in one split",
                len(leaked),
                [f"{data.records[a].name} = {data.records[b].name}" for a, b in leaked[:_SHOWN]],
            )
    torn = sorted(str(group) for group, splits in groups.items() if len(splits) > 1)
    if torn:
        yield Finding(
            "leakage",
            f"{len(torn):,} group(s) lie in more than one split",
            "`clipkit prepare` the data without splits of its own: --group keeps a group in one split",
            len(torn),
            torn[:_SHOWN],
        )


def repeated_captions(data: Examined) -> Iterator[Finding]:
    """Captions that many pictures share say little about any of them."""
    rows = data.of("train") or range(len(data.records))
    counts = Counter(caption for row in rows for caption in data.records[row].captions)
    shared = {caption: n for caption, n in counts.items() if n > 1}
    n_captions = counts.total()
    if n_captions and sum(shared.values()) > _REPEATED * n_captions:
        most = sorted(shared.items(), key=lambda item: (-item[1], item[0]))
        yield Finding(
            "repeated captions",
            f"{sum(shared.values()):,} of {n_captions:,} captions are also the caption of another picture",
            "write captions that tell pictures apart; for classes, compare with labels instead (`clipkit evaluate`), "
            "and keep the batch small",
            sum(shared.values()),
            [f"{n:,} × {caption[:80]!r}" for caption, n in most[:_SHOWN]],
        )


def truncated_captions(data: Examined) -> Iterator[Finding]:
    """Captions that somebody cut off: they end in dots, or many of them end at the very same length."""
    captions = [caption for record in data.records for caption in record.captions]
    dotted = [caption for caption in captions if caption.endswith(("...", "…"))]
    lengths = Counter(len(caption) for caption in captions)
    longest = max(lengths, default=0)
    at_end = [c for c in captions if len(c) == longest and not c.endswith((".", "!", "?", '"', "。"))]
    # By chance a caption or two have the largest length; when many have it, it is somebody's limit.
    limited = at_end if longest >= 30 and len(at_end) >= 5 and len(at_end) > 0.005 * len(captions) else []
    for cut, how in ((dotted, "end in dots"), (limited, f"end at exactly {longest} characters")):
        if len(cut) > _CUT * len(captions) or (cut is limited and cut):
            yield Finding(
                "truncated captions",
                f"{len(cut):,} of {len(captions):,} captions {how}, as if they were cut off",
                "take them from where they are whole",
                len(cut),
                [repr(caption[-60:]) for caption in cut[:_SHOWN]],
            )
    if data.config is None:
        long = [c for c in captions if len(c.split()) > _LONG]
        if len(long) > _CUT * len(captions):
            yield Finding(
                "truncated captions",
                f"{len(long):,} of {len(captions):,} captions have more than {_LONG} words, about the 77 tokens that "
                f"CLIP reads; the rest of them is not seen",
                "shorten or split them; --config RUN counts with the run's own tokenizer",
                len(long),
                [repr(caption[:60]) for caption in long[:_SHOWN]],
            )


def false_negatives(data: Examined) -> Iterator[Finding]:
    """Samples of a batch that the loss pushes apart although their captions, or their pictures, are the same."""
    expected = expected_false_negatives(data)
    if expected > _FALSE_NEGATIVES * data.batch_size:
        yield Finding(
            "false negatives",
            f"in a batch of {data.batch_size:,}, {expected:,.1f} pairs are expected to be negatives although they have "
            f"the same caption or the same picture",
            "hide copies, write captions that tell pictures apart, or make the batch smaller",
            round(expected),
        )


def expected_false_negatives(data: Examined) -> float:
    """Expected number of pairs in a training batch that have one caption (each sample draws one of its own) or are
    copies: B (B - 1) / 2 times the probability for two different samples. A pair that is both counts once at most
    where its pictures have one caption each."""
    rows = data.of("train")
    n, batch = len(rows), min(data.batch_size, len(rows))
    if n < 2:
        return 0.0
    share: dict[str, float] = defaultdict(float)  # caption -> sum of its probabilities, and of their squares
    squares: dict[str, float] = defaultdict(float)
    inside: dict[tuple[int, str], list[float]] = defaultdict(list)
    for row in rows:
        captions = data.records[row].captions
        for caption in captions:
            share[caption] += 1 / len(captions)
            squares[caption] += 1 / len(captions) ** 2
            inside[data.copy_of[row], caption].append(1 / len(captions))
    same_caption = sum(total**2 - squares[caption] for caption, total in share.items())
    sets = Counter(data.copy_of[row] for row in rows)
    copies = sum(size * (size - 1) for size in sets.values())
    both = sum(sum(part) ** 2 - sum(p * p for p in part) for part in inside.values())
    return batch * (batch - 1) / 2 * (same_caption + copies - both) / (n * (n - 1))


def too_few(data: Examined) -> Iterator[Finding]:
    """A batch needs as many samples."""
    n = len(data.of("train"))
    if n < data.batch_size:
        yield Finding(
            "too few samples",
            f"train has {n:,} sample(s), fewer than a batch of {data.batch_size:,}",
            f"pass --batch-size {max(1, n)} or less, or add data",
            n,
        )


def warm_up(data: Examined) -> Iterator[Finding]:
    """A warm-up that is longer than the run never reaches the learning rate."""
    if data.config is None or data.config.optim.warmup is None:
        return
    from clipkit.training.optim import total_steps

    steps = total_steps(replace(data.config.optim, batch_size=data.batch_size), max(1, len(data.of("train"))))
    if data.config.optim.warmup >= steps:
        yield Finding(
            "warm-up",
            f"the warm-up of {data.config.optim.warmup:,} steps is as long as the run, which has {steps:,}",
            f"pass --warmup {steps // 10}, or leave it out: the default is a tenth of the run",
            data.config.optim.warmup,
        )


def shuffle_quality(data: Examined) -> Iterator[Finding]:
    """Samples that lie sorted, and batches that come from few shards."""
    rows = data.of("train")
    labels = [str(data.records[row].meta.get("label") or next(iter(data.records[row].captions), row)) for row in rows]
    n = len(labels)
    if data.sizes and n > 1:
        chance = sum(c * (c - 1) for c in Counter(labels).values()) / (n * (n - 1))
        sorted_share = sum(a == b for a, b in pairwise(labels)) / (n - 1)
        if sorted_share > 0.2 and sorted_share > 2 * chance:
            yield Finding(
                "shuffle quality",
                f"the samples lie sorted: {sorted_share:.0%} of neighbours have one label ({chance:.0%} if they were "
                f"shuffled), which readers with a small shuffle buffer turn into one-sided batches",
                "`clipkit prepare` the shards again with --shuffle",
                round(sorted_share * (n - 1)),
            )
    reached = shards_in_a_batch(data.sizes, data.batch_size)
    if reached is not None and reached < min(len(data.sizes), data.batch_size, 30) / 2:
        yield Finding(
            "shuffle quality",
            f"a batch of {data.batch_size:,} draws from {reached} of {len(data.sizes):,} shards",
            "`clipkit prepare` the shards again with --shuffle and shards of about equal size",
            reached,
        )


def shards_in_a_batch(sizes: Sequence[int], batch_size: int) -> int | None:
    """Shards that the first training batch draws from, or None without shards."""
    if not sizes or sum(sizes) < batch_size:
        return None
    import numpy as np

    from clipkit.pairs.order import Order

    _, samples = Order(list(sizes), 0).positions(0, batch_size)
    return len(np.unique(np.searchsorted(np.cumsum(sizes), samples, side="right")))


CHECKS: tuple[Check, ...] = (
    unreadable,
    duplicates,
    leakage,
    repeated_captions,
    truncated_captions,
    false_negatives,
    too_few,
    warm_up,
    shuffle_quality,
)
