"""``clipkit doctor``: what is wrong with a data set, in plain sentences, before a model learns it."""

from __future__ import annotations

import json
import sys
import traceback
from dataclasses import asdict, dataclass, field
from typing import Any

import tyro

from clipkit.errors import ClipkitError, exit_status
from clipkit.inputs import parse_flags
from data_prep.checks import CHECKS, Finding, expected_false_negatives, shards_in_a_batch
from data_prep.engine import cores
from data_prep.examine import Examined, examine
from data_prep.sources import SourceOptions
from data_prep.tokens import tokenizer_fit


@dataclass(frozen=True)
class Options:
    """Look for what is wrong with a data set or shards, and, given a run's config, with training on them.

    Every picture is decoded. Ends with status 0 if all is fine, 1 with findings, 2 if it could not look.
    """

    path: tyro.conf.Positional[str | None] = None
    """Shards, or any source of `clipkit prepare`. Default: the train_data of --config."""
    config: str | None = None
    """A run, or its config.yaml: its batch size, warm-up, tokenizer and validation data are looked at too."""
    batch_size: int | None = None
    """Batch size to judge by. Default: the config's, or 256."""
    reading: tyro.conf.OmitArgPrefixes[SourceOptions] = field(default_factory=SourceOptions)
    processes: int | None = None
    """Processes that decode. Default: one a core, at most eight."""
    json: bool = False
    """Print JSON."""


def diagnose(data: Examined) -> list[Finding]:
    """All findings."""
    return [finding for check in (*CHECKS, tokenizer_fit) for finding in check(data)]


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns the exit status."""

    def job() -> int:
        options = parse_flags(Options, sys.argv[1:] if arguments is None else arguments, "clipkit doctor")
        for flag, value in (("--batch-size", options.batch_size), ("--processes", options.processes)):
            if value is not None and value < 1:
                raise ClipkitError(f"{flag} is {value}; it must be at least 1")
        processes = options.processes or cores()
        data = examine(options.path, options.config, options.batch_size, processes, options.reading)
        findings = diagnose(data)
        print(
            json.dumps(_as_json(data, findings), indent=2, ensure_ascii=False)
            if options.json
            else _as_text(data, findings)
        )
        return 1 if findings else 0

    try:
        return exit_status(job)
    except Exception:  # a bug, whose status must not be that of findings
        traceback.print_exc()
        return 2


def _measures(data: Examined) -> dict[str, Any]:
    return {
        "batch_size": data.batch_size,
        "expected_false_negatives": round(expected_false_negatives(data), 3),
        "shards": len(data.sizes),
        "shards_in_a_batch": shards_in_a_batch(data.sizes, data.batch_size),
    }


def _as_json(data: Examined, findings: list[Finding]) -> dict[str, Any]:
    return {
        "path": data.name,
        "status": "findings" if findings else "fine",
        "splits": data.splits,
        "measures": _measures(data),
        "findings": [asdict(finding) for finding in findings],
    }


def _as_text(data: Examined, findings: list[Finding]) -> str:
    splits = ", ".join(f"{split} {n:,}" for split, n in data.splits.items())
    measures = _measures(data)
    lines = [
        f"{data.name}: {len(data.records):,} good pictures ({splits}); in a batch of {data.batch_size:,}, "
        f"{measures['expected_false_negatives']:,.2f} false negatives are expected"
    ]
    for finding in findings:
        lines += ["", f"{finding.check}: {finding.message}."]
        lines += [f"    {' '.join(example.split())}" for example in finding.examples]
        lines.append(f"  fix: {finding.fix}")
    lines += ["", f"{len(findings)} finding(s)" if findings else "fine: nothing found"]
    return "\n".join(lines)
