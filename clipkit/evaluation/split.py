"""A held-out split, measured: retrieval with its captions, and its labels, zero-shot or by the nearest neighbours."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from clipkit.encoders import DualEncoder
from clipkit.errors import ClipkitError
from clipkit.evaluation.encoding import EncodedPairs, encode_captions, encode_pairs
from clipkit.evaluation.probes import ProbeReport, knn
from clipkit.evaluation.recommendation import RecommendationReport, recommendation
from clipkit.evaluation.retrieval import RetrievalReport, retrieval
from clipkit.evaluation.templates import classifier_weights
from clipkit.evaluation.zero_shot import ZeroShotReport, zero_shot
from clipkit.objectives.exchange import is_first
from clipkit.pairs import PairReader
from clipkit.pairs.captions import whole_characters
from clipkit.pairs.interactions import InteractionSet

_ROWS = 8192  # users or items encoded at a time


@dataclass(frozen=True)
class SplitReport:
    """What was measured on a split, by the first process.

    Attributes:
        retrieval: None on other processes, and where the model has one tower.
        zero_shot: None on other processes, and where the samples have no labels.
        encoded: the split through the towers.
        neighbours: for a model of pictures alone whose samples have labels; else None.
        recommendation: for interactions of users with items; else None.
        popularity: the same of always recommending what most users chose: what a model has to beat.
    """

    retrieval: RetrievalReport | None
    zero_shot: ZeroShotReport | None
    encoded: EncodedPairs
    neighbours: ProbeReport | None = None
    recommendation: RecommendationReport | None = None
    popularity: RecommendationReport | None = None

    def to_dict(self) -> dict[str, Any]:
        """The reports as plain JSON."""
        names = ("retrieval", "zero_shot", "neighbours", "recommendation", "popularity")
        reports = {name: getattr(self, name) for name in names}
        return {name: report.to_dict() for name, report in reports.items() if report is not None}

    def metrics(self) -> dict[str, float]:
        """The figures that a run follows, under flat names."""
        if self.neighbours is not None:
            return {"neighbours_top1": self.neighbours.top1.value}
        if self.recommendation is not None:
            return self.recommendation.metrics()
        return self.retrieval.metrics() if self.retrieval is not None else {}

    @property
    def goal(self) -> float | None:
        """The figure that the best checkpoint is chosen by: mean recall@1 of both directions, top-1, or NDCG@10."""
        if self.neighbours is not None:
            return self.neighbours.top1.value
        if self.recommendation is not None:
            return self.recommendation.ndcg[10].value
        if self.retrieval is None:
            return None
        figures = self.retrieval.metrics()
        return (figures["image_to_text@1"] + figures["text_to_image@1"]) / 2


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
    if isinstance(reader.shards, InteractionSet):
        return _recommended(model, reader.shards, bootstrap)
    encoded = encode_pairs(model, reader, autocast=autocast)
    if not is_first():
        return SplitReport(None, None, encoded)
    if len(model.towers) == 1:
        named = split_labels(reader, encoded.samples.tolist()) if model.image is not None else None
        found = by_neighbours(encoded.images.numpy(), named, bootstrap) if named is not None else None
        return SplitReport(None, None, encoded, found)
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


@torch.no_grad()
def _recommended(model: DualEncoder, shards: InteractionSet, bootstrap: int) -> SplitReport:
    """The held-out item of each user among all that it has not seen, by the model and by popularity."""
    users, samples = np.unique(shards.user_N, return_index=True)
    none = torch.zeros(0, model.embed_dim)
    encoded = EncodedPairs(none, none, none[:, 0].long(), torch.from_numpy(samples), ())
    if not is_first():
        return SplitReport(None, None, encoded)
    was_training = model.training
    model.eval()
    user_UD, item_ID = (
        torch.cat([encode(torch.from_numpy(rows).to(model.device)).float().cpu() for rows in np.array_split(codes, n)])
        for encode, codes, n in (
            (model.encode_image, shards.users.codes[users], 1 + len(users) // _ROWS),
            (model.encode_text, shards.items.codes, 1 + len(shards.items.codes) // _ROWS),
        )
    )
    model.train(was_training)
    held_out, seen = shards.item_N[samples], [shards.seen[user] for user in users]
    ones, share = np.ones((len(users), 1)), shards.share_I[:, None]
    found, popular = (
        recommendation(u, i, held_out, seen, bootstrap=bootstrap) for u, i in ((user_UD, item_ID), (ones, share))
    )
    return SplitReport(None, None, encoded, recommendation=found, popularity=popular)


def by_neighbours(image_ND: NDArray[np.float32], labels: list[str], bootstrap: int) -> ProbeReport | None:
    """The second half of each class by its neighbours among the first half; None where a class has but one picture."""
    seen: dict[str, int] = {}
    places = []
    for label in labels:
        places.append(seen.get(label, 0))
        seen[label] = places[-1] + 1
    if min(seen.values()) < 2:
        return None
    first = np.array([2 * place < seen[label] for place, label in zip(places, labels, strict=True)])
    train, test = ([label for label, at in zip(labels, mask, strict=True) if at] for mask in (first, ~first))
    return knn(image_ND[first], train, image_ND[~first], test, bootstrap=bootstrap)


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
        found.append(whole_characters(str(label)))
    return found if len(set(found)) > 1 else None
