"""Zero-shot and few-shot classification in scikit-learn's manner."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from clipkit.errors import ClipkitError, check_count
from clipkit.evaluation import classifier_weights
from clipkit.evaluation.templates import check_class_names, check_templates
from clipkit.inference.calibration import Calibration, calibrate, probabilities
from clipkit.inference.pictures import as_list

if TYPE_CHECKING:
    from clipkit.inference.aligner import Aligner

Array = NDArray[np.float32]


class Classifier:
    """Names pictures with one of ``labels``.

    Without ``fit`` it is zero-shot: a class is the mean of its prompts' embeddings. After ``fit`` on a few labelled
    pictures it is a logistic regression on the embeddings that starts from, and is pulled towards, the zero-shot one.

    Args:
        aligner: the model.
        labels: class names, in the order of the probabilities' columns.
        templates: see ``Aligner.classifier``.

    Raises:
        ClipkitError: no labels, a label twice, or a template without ``{}``.
    """

    def __init__(self, aligner: Aligner, labels: Sequence[str], templates: str | Sequence[str] | None = None) -> None:
        self.aligner = aligner
        self.classes_ = list(check_class_names(labels))
        self.templates = check_templates(templates if templates is not None else aligner.model.templates)
        self.weights = classifier_weights(aligner.encode_text, self.classes_, self.templates)
        self.intercept = np.zeros(len(self.classes_), dtype=np.float32)
        self.temperature = 1.0
        self.none_below: float | None = None

    def predict(self, images: Any) -> list[str]:
        """The best label of each picture, also where it is an unlikely one; see ``predict_or_none``."""
        return [self.classes_[i] for i in self.decision_function(images).argmax(axis=1)]

    def predict_or_none(self, images: Any) -> list[str | None]:
        """The best label of each picture, or None where it is none of these, as ``calibrate`` has found.

        Raises:
            ClipkitError: not calibrated.
        """
        if self.none_below is None:
            raise ClipkitError('"none of these" needs a threshold: calibrate(images, labels) finds one')
        rows = self.predict_proba(images)
        return [self.classes_[row.argmax()] if row.max() >= self.none_below else None for row in rows]

    def predict_proba(self, images: Any) -> Array:
        """Probabilities, float32 (N, C).

        Rows sum to 1 for models trained with a softmax; a sigmoid model (SigLIP) gives each label its own
        probability, and they need not.
        """
        logits = self.decision_function(images).astype(np.float64) / self.temperature
        return probabilities(logits, self.aligner.kind)

    def calibrate(self, images: Any, labels: Sequence[str | None]) -> Calibration:
        """Make the probabilities mean what they say, on labelled pictures other than those of ``fit``.

        Sets ``temperature`` and ``none_below``; see ``clipkit.inference.calibration``.

        Args:
            images: pictures, as ``encode_image`` takes them.
            labels: of each, one of the classifier's; None for a picture that is none of these.

        Raises:
            ClipkitError: lengths that differ, a label that is not the classifier's, or too few pictures.
        """
        pictures, names = as_list(images), list(labels)
        if len(pictures) != len(names):
            raise ClipkitError(f"{len(pictures)} pictures and {len(names)} labels: give one label for each picture")
        place: dict[str | None, int] = {name: i for i, name in enumerate(self.classes_)} | {None: -1}
        unknown = sorted({str(name) for name in names if name not in place})
        if unknown:
            raise ClipkitError(f"label {unknown[0]!r} is not among the classifier's: {', '.join(self.classes_[:10])}")
        logits = self.decision_function(pictures).astype(np.float64)
        found = calibrate(logits, np.array([place[name] for name in names], dtype=np.int64), self.aligner.kind)
        self.temperature, self.none_below = found.temperature, found.none_below
        return found

    def top_k(self, images: Any, k: int = 5) -> list[list[tuple[str, float]]]:
        """The k best labels of each picture with their probabilities, best first."""
        check_count("k", k)
        rows = self.predict_proba(images)
        order = np.argsort(-rows, axis=1, kind="stable")[:, :k]
        return [[(self.classes_[j], float(row[j])) for j in best] for row, best in zip(rows, order, strict=True)]

    def decision_function(self, images: Any) -> Array:
        """Logits, float32 (N, C)."""
        return self._logits(np.atleast_2d(self.aligner.encode_image(as_list(images))))

    def fit(self, images: Any, labels: Sequence[str], strength: float = 1.0) -> Classifier:
        """Learn from labelled pictures; returns itself.

        Logistic regression on the embeddings among the classes that have examples, minimised by L-BFGS over their W
        and b: mean cross-entropy of ``scale * x W^T + b`` + (strength / 2n) |W - W0|^2, with W0 the zero-shot weights.
        A class without examples keeps its zero-shot vector; with many examples of a class they decide.

        Args:
            images: pictures, as ``encode_image`` takes them.
            labels: one label each, all among the classifier's.
            strength: pull towards the zero-shot weights.

        Raises:
            ClipkitError: lengths that differ, or a label that is not the classifier's.
        """
        from scipy.optimize import minimize

        pictures = as_list(images)
        names = [labels] if isinstance(labels, str) else list(labels)
        if len(pictures) != len(names) or not names:
            raise ClipkitError(f"{len(pictures)} pictures and {len(names)} labels: give one label for each picture")
        unknown = sorted(set(names) - set(self.classes_))
        if unknown:
            raise ClipkitError(f"label {unknown[0]!r} is not among the classifier's: {', '.join(self.classes_[:10])}")
        x = np.atleast_2d(self.aligner.encode_image(pictures)).astype(np.float64)
        present = [i for i, name in enumerate(self.classes_) if name in set(names)]
        target = np.zeros((len(names), len(present)))
        target[np.arange(len(names)), [present.index(self.classes_.index(n)) for n in names]] = 1
        zero_shot = classifier_weights(self.aligner.encode_text, self.classes_, self.templates)
        start = zero_shot[present].astype(np.float64)
        scale, shape = self.aligner.scale, start.shape

        def objective(flat: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
            w, b = flat[: start.size].reshape(shape), flat[start.size :]
            z = scale * x @ w.T + b
            top = z.max(axis=1, keepdims=True)
            lse = top + np.log(np.exp(z - top).sum(axis=1, keepdims=True))
            p = np.exp(z - lse)
            n = len(x)
            pull = w - start
            value = float((lse[:, 0] - (z * target).sum(axis=1)).mean() + strength / (2 * n) * (pull**2).sum())
            error = (p - target) / n
            grad_w = scale * error.T @ x + strength / n * pull
            return value, np.concatenate([grad_w.ravel(), error.sum(axis=0)])

        found = minimize(
            objective, np.concatenate([start.ravel(), np.zeros(shape[0])]), jac=True, method="L-BFGS-B",
            options={"maxiter": 500},
        )  # fmt: skip
        self.temperature, self.none_below = 1.0, None  # other logits
        self.weights = zero_shot.copy()
        self.intercept = np.zeros(len(self.classes_), dtype=np.float32)
        self.weights[present] = found.x[: start.size].reshape(shape)
        self.intercept[present] = found.x[start.size :]
        return self

    def score(self, images: Any, labels: Sequence[str]) -> float:
        """Share of pictures whose label is predicted."""
        predicted = self.predict(images)
        if len(predicted) != len(labels):
            raise ClipkitError(f"{len(predicted)} pictures and {len(labels)} labels: give one label for each picture")
        return float(np.mean([p == t for p, t in zip(predicted, labels, strict=True)]))

    def _logits(self, embeddings: Array) -> Array:
        return self.aligner.logits(embeddings @ self.weights.T) + self.intercept
