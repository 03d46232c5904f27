"""A held-out split, measured: retrieval with its captions, and its labels zero-shot where it has them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from clipkit.encoders import DualEncoder
from clipkit.errors import ClipkitError
from clipkit.evaluation.encoding import EncodedPairs, encode_captions, encode_pairs
from clipkit.evaluation.retrieval import RetrievalReport, retrieval
from clipkit.evaluation.templates import classifier_weights
from clipkit.evaluation.zero_shot import ZeroShotReport, zero_shot
from clipkit.objectives.exchange import is_first
from clipkit.pairs import PairReader


@dataclass(frozen=True)
class SplitReport:
    """What was measured on a split. ``retrieval`` and ``zero_shot`` are None on all processes but the first, and
    ``zero_shot`` also where the samples have no labels."""

    retrieval: RetrievalReport | None
    zero_shot: ZeroShotReport | None
    encoded: EncodedPairs

    def to_dict(self) -> dict[str, Any]:
        """The reports as plain JSON."""
        reports = {"retrieval": self.retrieval, "zero_shot": self.zero_shot}
        return {name: report.to_dict() for name, report in reports.items() if report is not None}


def evaluate_split(
    model: DualEncoder,
    reader: PairReader,
    *,
    bootstrap: int = 1000,
    labels: bool = True,
    templates: str | None = None,
    autocast: torch.dtype | None = None,
) -> SplitReport:
    """Encode a split with all processes and measure it with the first.

    Args:
        reader: an evaluation reader (all captions, no substitutes).
        labels: also classify the samples' ``label`` zero-shot, if they all have one.
        templates: prompts for that; see ``classifier_weights``.
    """
    encoded = encode_pairs(model, reader, autocast=autocast)
    if not is_first():
        return SplitReport(None, None, encoded)
    report = retrieval(encoded.images, encoded.texts, encoded.image_of_text, bootstrap=bootstrap)
    named = split_labels(reader, encoded.samples.tolist()) if labels else None
    if named is None:
        return SplitReport(report, None, encoded)
    names = sorted(set(named))
    weights = classifier_weights(
        lambda prompts: encode_captions(model, prompts, autocast=autocast), names, templates or model.templates
    )
    classes = {name: c for c, name in enumerate(names)}
    zero = zero_shot(encoded.images, weights, [classes[name] for name in named], names, bootstrap=bootstrap)
    return SplitReport(report, zero, encoded)


def split_labels(reader: PairReader, samples: list[int]) -> list[str] | None:
    """The samples' labels, or None if one has none or there are fewer than two different ones."""
    found = []
    for i in samples:
        try:
            label = reader.shards.read_record(i)[0].get("label")
        except ClipkitError:
            return None
        if label is None:
            return None
        found.append(str(label))
    return found if len(set(found)) > 1 else None
