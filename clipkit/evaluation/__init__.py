"""Measuring what a model learned: retrieval, zero-shot classification, probes, few labels, sentences, recommendation,
and the health of the space.

Most of it takes embeddings (arrays or tensors whose rows have unit norm); `classifier_weights`, `frozen_features` and
`label_efficiency` run what they are given. All return frozen reports that know their protocol.
"""

from __future__ import annotations

from clipkit.evaluation.examples import PictureMatch, best_and_worst, best_pairs
from clipkit.evaluation.finetune import Budget
from clipkit.evaluation.frozen import frozen, frozen_features
from clipkit.evaluation.health import Health, Space, measure_health
from clipkit.evaluation.intervals import Interval, bootstrap_class_means, bootstrap_shares, seed_interval
from clipkit.evaluation.label_efficiency import LabelEfficiency, label_efficiency
from clipkit.evaluation.labelled import Labelled, read_labelled
from clipkit.evaluation.leave_one_out import LeaveOneOut, leave_one_out
from clipkit.evaluation.probes import ProbeReport, knn, linear_probe
from clipkit.evaluation.ranks import Ranks, retrieval_ranks
from clipkit.evaluation.recommendation import RecommendationReport, recommendation
from clipkit.evaluation.retrieval import RetrievalReport, retrieval
from clipkit.evaluation.sts import SentencePairs, StsReport, read_sentence_pairs, sts
from clipkit.evaluation.subsets import hold_out, nested_subsets
from clipkit.evaluation.templates import TEMPLATES, class_prompts, classifier_weights, fill
from clipkit.evaluation.verdicts import Verdict, diagnose
from clipkit.evaluation.zero_shot import ZeroShotReport, zero_shot

__all__ = [
    "TEMPLATES",
    "Budget",
    "Health",
    "Interval",
    "LabelEfficiency",
    "Labelled",
    "LeaveOneOut",
    "PictureMatch",
    "ProbeReport",
    "Ranks",
    "RecommendationReport",
    "RetrievalReport",
    "SentencePairs",
    "Space",
    "StsReport",
    "Verdict",
    "ZeroShotReport",
    "best_and_worst",
    "best_pairs",
    "bootstrap_class_means",
    "bootstrap_shares",
    "class_prompts",
    "classifier_weights",
    "diagnose",
    "fill",
    "frozen",
    "frozen_features",
    "hold_out",
    "knn",
    "label_efficiency",
    "leave_one_out",
    "linear_probe",
    "measure_health",
    "nested_subsets",
    "read_labelled",
    "read_sentence_pairs",
    "recommendation",
    "retrieval",
    "retrieval_ranks",
    "seed_interval",
    "sts",
    "zero_shot",
]
