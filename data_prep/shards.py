"""Records to WebDataset shards: every picture checked, bad ones listed, the result whole or absent.

On disk: ``OUT/train/000000.tar`` and so on for each split that has samples, beside each tar its index and the table of
its scores, ``OUT/skipped.jsonl`` with what was left out and why, and, written last, ``OUT/dataset.json``: a data set
without it is not whole.

The work is three steps, each free where it was done before: pieces of the source are staged (``stage``), a plan is made
of what is known about all pictures (``planning``), shards are written (``tars``). All of it lies in ``OUT/.work`` until
the end, so a preparation that was interrupted goes on where it was, and ends with the same bytes. Where pictures are
missing that may be there another time, ``OUT/.work`` stays, and a second run asks for those only.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from clipkit.errors import ClipkitError, did_you_mean
from data_prep.engine import Engine, run_tasks
from data_prep.images import Encoding
from data_prep.planning import Placed, Plan, PlanRule, SplitRule, make_plan
from data_prep.records import Record, Skipped, SplitSummary, Summary, unseen
from data_prep.scores import SIDES
from data_prep.stage import EXTENSIONS, PIECE, Facts, StageTask, joined, stage, stage_tasks
from data_prep.tars import Member, ShardTask, write_shard
from data_prep.workplace import Workplace

DATASET_FORMAT = 2


def write_shards(
    records: Iterable[Record],
    out: str | Path,
    samples_per_shard: int = 1000,
    verify: bool = True,
    processes: int = 1,
    *,
    engine: Engine = "local",
    encoding: Encoding | None = None,
    rule: PlanRule | None = None,
    evaluation: Sequence[Record] = (),
    languages: bool = False,
    skipped: Sequence[Skipped] = (),
    max_bad_fraction: float = 0.5,
    source: str = "",
    license: str | None = None,
    details: dict[str, Any] | None = None,
    overwrite: bool = False,
    show_progress: bool = False,
) -> Summary:
    """Write ``records`` as shards below ``out``; the same records give the same bytes.

    Args:
        records: what to write, in order. Their own split goes before the rule's.
        out: a folder that does not exist yet, or is empty, or holds this data set, whole or interrupted.
        samples_per_shard: pictures in a tar.
        verify: decode each picture; without it only its format is looked at.
        processes, engine: who does the work, see ``run_tasks``.
        encoding: size and format of the stored pictures; as they are if None.
        rule: splits, copies, groups and order; all in ``train``, copies left as they are, if None.
        evaluation: pictures that must not be in training.
        languages: find out the captions' languages.
        skipped: what the source left out already, to be counted and listed with what is left out here.
        max_bad_fraction: above this share of pictures (or of a table's rows) that cannot be used, nothing is written.
        source, license, details: for ``dataset.json``.
        overwrite: replace a whole data set that is at ``out``.
        show_progress: a progress bar on the error stream.

    Raises:
        ClipkitError: ``out`` is in use, no picture is good, too many are bad, or no record has the rule's group.
    """
    started = time.perf_counter()
    if samples_per_shard < 1:
        raise ClipkitError(f"--samples-per-shard {samples_per_shard}: expected at least 1")
    records, out = list(records), Path(out)
    encoding, rule = encoding or Encoding(), rule or PlanRule(SplitRule(), "off")
    _check_group(records, rule.group)
    with_look = rule.find_copies == "near"
    pieces = stage_tasks(records, Path(), encoding, verify, with_look)
    others = stage_tasks(evaluation, Path(), Encoding(), verify, with_look, keep_bytes=False)
    inputs = _inputs(records, [*pieces, *others], [asdict(rule), samples_per_shard, languages, source], skipped)
    place = Workplace(out, inputs, overwrite)
    if place.dataset is not None and not place.mending:
        return replace(_summary(out, place.dataset, rule.split, started), reused=True)
    try:
        pieces = [task.at(place.staged, place.mending) for task in pieces]
        others = [task.at(place.evaluation, False) for task in others]
        staged = run_tasks(stage, [*others, *pieces], processes, engine, place.lock)
        done = list(_progress(staged, len(others) + len(pieces), show_progress, "pictures", PIECE))
        seen, facts = joined(done[: len(others)]), joined(done[len(others) :])
        pairs = _embedding_copies(pieces, facts, rule, engine) if rule.model else []
        plan = make_plan(records, facts, rule, seen if others else None, pairs)
        hidden = sorted(seen.reasons.items()) if others else []
        listed = [*skipped, *(unseen(evaluation[row].name, why) for row, (why, _) in hidden), *plan.left_out]
        try:
            _check_share(plan, listed, max_bad_fraction, source or str(out))
        except ClipkitError:
            place.abandon(keep_work=bool(facts.mendable))
            raise
        tasks = _shard_tasks(plan, records, facts, pieces, place, samples_per_shard, languages)
        written = run_tasks(write_shard, tasks, processes, engine, place.lock)
        receipts = list(_progress(written, len(tasks), show_progress, "shards"))
        place.keep_only({task.path for task in tasks})
        _index(tasks)
        dataset = _dataset(plan, tasks, receipts, records, source, license, len(listed), len(facts.mendable))
        place.publish({**dataset, **(details or {})}, listed, keep_work=bool(facts.mendable))
    finally:
        place.close()
    return _summary(out, dataset, rule.split, started)


def _check_group(records: Sequence[Record], group: str) -> None:
    """Refuse a field that no record has: pictures that belong together would fall in different splits."""
    if group != PlanRule.group and not any(group in record.meta for record in records):
        fields = sorted({name for record in records for name in record.meta})
        hint = did_you_mean(group, fields) or f"; there are {', '.join(fields) or 'none'}"
        raise ClipkitError(f"--group {group}: no record has such a field{hint}")


def _embedding_copies(
    pieces: Sequence[StageTask], facts: Facts, rule: PlanRule, engine: Engine
) -> list[tuple[int, int]]:
    from data_prep.models import embedding_copies

    return embedding_copies(pieces, facts, str(rule.model), rule.threshold, engine)


def _inputs(records: Sequence[Record], tasks: Sequence[StageTask], options: Any, skipped: Sequence[Skipped]) -> str:
    """Digest of all that the data set depends on."""
    digest = hashlib.blake2b(json.dumps([DATASET_FORMAT, options]).encode(), digest_size=16)
    for task in tasks:
        digest.update(task.inputs.encode())
    for record in records:
        said = json.dumps([record.key, record.captions, record.meta, record.split], default=str)
        digest.update(said.encode("utf-8", "surrogatepass"))
    for entry in skipped:
        digest.update(json.dumps(asdict(entry)).encode("utf-8", "surrogatepass"))
    return digest.hexdigest()


def _shard_tasks(
    plan: Plan,
    records: Sequence[Record],
    facts: Facts,
    pieces: Sequence[StageTask],
    place: Workplace,
    samples_per_shard: int,
    languages: bool,
) -> list[ShardTask]:
    def member(sample: Placed) -> Member:
        row = sample.row
        return Member(
            sample.key,
            sample.captions,
            records[row].meta,
            pieces[row // PIECE].path.with_suffix(".bin"),
            int(facts["offset"][row]),
            int(facts["size"][row]),
            EXTENSIONS[int(facts["extension"][row])],
            tuple(int(facts[side][row]) for side in SIDES),
            facts["content"][row].tobytes(),
            sample.copy_of,
        )

    tasks = []
    for split, samples in plan.splits.items():
        for number, start in enumerate(range(0, len(samples), samples_per_shard)):
            members = tuple(member(sample) for sample in samples[start : start + samples_per_shard])
            receipt = place.receipts / f"{split}-{number:06d}.json"
            tasks.append(ShardTask(place.shards / split / f"{number:06d}.tar", receipt, members, languages))
    return tasks


def _index(tasks: Sequence[ShardTask]) -> None:
    """The index of each shard, beside it."""
    from clipkit.pairs.index import load_index

    for task in tasks:
        load_index(task.path)


def _dataset(
    plan: Plan,
    tasks: Sequence[ShardTask],
    receipts: Sequence[dict[str, Any]],
    records: Sequence[Record],
    source: str,
    license: str | None,
    skipped: int,
    mendable: int,
) -> dict[str, Any]:
    """What ``dataset.json`` says."""
    splits: dict[str, dict[str, int]] = {}
    digest = hashlib.blake2b(digest_size=16)
    for task, receipt in zip(tasks, receipts, strict=True):
        split = splits.setdefault(task.path.parent.name, {"samples": 0, "shards": 0, "captions": 0})
        split["samples"] += receipt["samples"]
        split["captions"] += receipt["captions"]
        split["shards"] += 1
        digest.update(f"{task.path.parent.name} {receipt['fingerprint']}\n".encode())
    found = (records[sample.row].meta.get("label") for samples in plan.splits.values() for sample in samples)
    labels = {str(label) if isinstance(label, list | dict) else label for label in found}
    return {
        "format": DATASET_FORMAT,
        "splits": splits,
        "source": source,
        "fingerprint": digest.hexdigest(),
        "labels": sorted(labels - {None}, key=str) or None,
        "license": license,
        "copies": plan.copies,
        "skipped": skipped,
        "mendable": mendable,
    }


def _summary(out: Path, dataset: dict[str, Any], asked: SplitRule, started: float) -> Summary:
    shares = {"train": asked.val + asked.test, "val": asked.val, "test": asked.test}
    listed = out / "skipped.jsonl" if dataset["skipped"] else None
    first = []
    if listed is not None:
        with open(listed, encoding="utf-8") as file:
            first = [Skipped(**json.loads(line)) for line, _ in zip(file, range(5), strict=False)]
    return Summary(
        out,
        {name: SplitSummary(**split) for name, split in dataset["splits"].items()},
        dataset["skipped"],
        tuple(first),
        listed,
        dataset["fingerprint"],
        time.perf_counter() - started,
        dataset["copies"],
        dataset["mendable"],
        empty=tuple(name for name, share in shares.items() if share and name not in dataset["splits"]),
    )


def _check_share(plan: Plan, skipped: list[Skipped], limit: float, source: str) -> None:
    samples = [sample for split in plan.splits.values() for sample in split]
    captions = sum(len(sample.captions) for sample in samples)
    bad = [entry for entry in skipped if entry.kind in ("bad", "mendable")]
    rows = sum(entry.row for entry in bad)
    first = f"{bad[0].file}: {bad[0].reason}" if bad else "there are no records"
    seen = sum(entry.kind == "evaluation" for entry in skipped)
    if not samples and seen:
        raise ClipkitError(f"{source}: nothing is left: the evaluation sets hold all {seen:,} good pictures")
    if not samples:
        raise ClipkitError(f"{source}: not one good picture ({first}); check the files")
    left_out = sum(entry.kind in ("copy", "evaluation") for entry in skipped)  # which are good pictures
    for n_bad, good, what in ((len(bad) - rows, len(samples) + left_out, "pictures"), (rows, captions, "rows")):
        if n_bad > limit * (n_bad + good):
            raise ClipkitError(
                f"{source}: {n_bad:,} of {n_bad + good:,} {what} cannot be used ({first}); "
                f"mend them, or make the shards by clipkit prepare with --max-bad-fraction 1 to go on without them"
            )


def _progress(items: Iterator[Any], n: int, show: bool, what: str, scale: int = 1) -> Iterator[Any]:
    if not show:
        return items
    from tqdm import tqdm

    return iter(tqdm(items, total=n, desc=what, unit=" tasks" if scale == 1 else f" × {scale}"))
