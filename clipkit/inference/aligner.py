"""A trained model as people use it: pictures and texts in, embeddings, similarities and matches out."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from clipkit.encoders import DualEncoder
from clipkit.encoders.side_by_side import CPU_PICTURES, side_by_side
from clipkit.errors import ClipkitError, check_count
from clipkit.evaluation.encoding import encode_captions, inference
from clipkit.evaluation.templates import classifier_weights
from clipkit.inference.pictures import as_list, is_single, to_pixels
from clipkit.pairs.decode import Decode

if TYPE_CHECKING:
    from clipkit.inference.classifier import Classifier

Array = NDArray[np.float32]


@dataclass(frozen=True)
class Match:
    """Pictures against captions.

    Attributes:
        matrix: float32 (N, M) cosine similarities.
        best_caption: int64 (N,), each picture's best caption.
        best_image: int64 (M,), each caption's best picture.
        assignment: pairs (picture, caption) of the one-to-one assignment with the largest total similarity
            (Kuhn 1955); min(N, M) of them, by picture.
    """

    matrix: Array
    best_caption: NDArray[np.int64]
    best_image: NDArray[np.int64]
    assignment: list[tuple[int, int]]

    @classmethod
    def of(cls, matrix: Array) -> Match:
        """The match that float32 (N, M) similarities make."""
        from scipy.optimize import linear_sum_assignment

        rows, columns = linear_sum_assignment(matrix, maximize=True)
        pairs = [(int(i), int(j)) for i, j in zip(rows, columns, strict=True)]
        return cls(matrix, matrix.argmax(axis=1), matrix.argmax(axis=0), pairs)


class Aligner:
    """Encodes pictures and texts into one space. Made by ``clipkit.load``.

    Args:
        model: the dual encoder.
        name: what it is called in messages and results.
        autocast: compute dtype of the towers, or None for float32.

    Example:
        >>> model = clipkit.load("runs/starter")
        >>> model.similarity(["cat.jpg", "dog.jpg"], ["a cat", "a dog"]).shape
        (2, 2)
    """

    def __init__(self, model: DualEncoder, name: str, autocast: torch.dtype | None = None) -> None:
        self.model = model.eval()
        self.name = name
        self.autocast = autocast

    @property
    def embed_dim(self) -> int:
        """Dimensions of the space."""
        return self.model.embed_dim

    @property
    def scale(self) -> float:
        """The learned inverse temperature: cosines times this are the logits."""
        return math.exp(float(self.model.log_scale.detach()))

    @property
    def bias(self) -> float:
        """The learned bias of the logits; 0 for models without one."""
        return 0.0 if self.model.bias is None else float(self.model.bias.detach())

    @property
    def kind(self) -> str:
        """``sigmoid`` if every pair has a probability of its own (SigLIP), else ``softmax``."""
        return "softmax" if self.model.bias is None else "sigmoid"

    def encode_image(
        self,
        images: Any,
        batch_size: int = 64,
        normalize: bool = True,
        decode: Decode = "fast",
        allow_urls: bool = False,
        show_progress: bool = False,
    ) -> Array:
        """Embeddings of pictures.

        Args:
            images: one picture or a sequence, mixed as you like: paths, PIL images, uint8 arrays (H, W, 3) or
                (3, H, W), floating arrays (3, size, size) that are preprocessed already.
            normalize: unit norm; otherwise the tower's raw output.
            decode: ``fast`` (libjpeg-turbo, uint8 resize), or ``reference`` (the preprocessing of the library that
                the model comes from, exactly).
            allow_urls: fetch http and https addresses.

        Returns:
            float32 (N, D) in the order given, or (D,) for a single picture.

        Raises:
            ClipkitError: a picture cannot be read; the message names it.
        """
        self.model.picture_tower()  # a model without one says so before anything is read
        pictures = as_list(images)
        if decode not in ("fast", "reference"):
            raise ClipkitError(f"decode={decode!r}; it is 'fast' or 'reference'")
        rows = np.zeros((len(pictures), self.embed_dim), dtype=np.float32)

        def run(part: Sequence[Any]) -> Array:
            pixels = [to_pixels(picture, self.model.picture, decode, allow_urls) for picture in part]
            return self.encode_pixels(torch.stack(pixels), normalize)

        done = 0
        with tqdm(total=len(pictures), desc="pictures", disable=not show_progress) as bar:
            for part, encoded in side_by_side(run, pictures, self.model.device, CPU_PICTURES, batch_size):
                rows[done : done + len(part)] = encoded
                done += len(part)
                bar.update(len(part))
        return rows[0] if is_single(images) else rows

    def encode_pixels(self, pixels: torch.Tensor, normalize: bool = True) -> Array:
        """Embeddings, float32 (B, D), of pictures that are preprocessed already, float (B, 3, size, size), at once."""
        model = self.model
        with inference(model.device, self.autocast):
            inputs = pixels.to(model.device, model.log_scale.dtype)
            return (model.encode_image(inputs) if normalize else model.tower("image")(inputs)).float().cpu().numpy()

    def encode_text(self, texts: str | Sequence[str], batch_size: int = 256, normalize: bool = True) -> Array:
        """Embeddings of texts, in the order given.

        Args:
            texts: one text or a sequence; longer ones than the model's context are cut.
            normalize: unit norm; otherwise the tower's raw output.

        Returns:
            float32 (N, D), or (D,) for a single text.

        Raises:
            ClipkitError: something that is no text.
        """
        single, captions = isinstance(texts, str), _texts(texts)
        for i, caption in enumerate(captions):
            if not isinstance(caption, str):
                raise ClipkitError(f"texts[{i}] is a {type(caption).__name__}, not a text: {caption!r}")
            if not caption.strip():
                raise ClipkitError(f"texts[{i}] is empty: give it some words or leave it out")
        if normalize:
            rows = encode_captions(self.model, captions, batch_size, self.autocast).numpy()
        else:
            with inference(self.model.device, self.autocast):
                parts = [captions[i : i + batch_size] for i in range(0, len(captions), batch_size)]
                tower, tokenizer = self.model.tower("text"), self.model.tokenizer
                raw = [tower(tokenizer(p).to(self.model.device)).float().cpu() for p in parts]
            rows = torch.cat(raw).numpy() if raw else np.zeros((0, self.embed_dim), dtype=np.float32)
        return rows[0] if single else rows

    def similarity(self, images: Any, texts: str | Sequence[str]) -> Array:
        """Cosine similarity of every picture with every text, float32 (N, M)."""
        return np.atleast_2d(self.encode_image(as_list(images))) @ np.atleast_2d(self.encode_text(_texts(texts))).T

    def match(self, images: Any, captions: str | Sequence[str]) -> Match:
        """Which caption belongs to which picture; see ``Match``.

        Raises:
            ClipkitError: no picture or no caption.
        """
        pictures, texts = as_list(images), _texts(captions)
        if not pictures or not texts:
            raise ClipkitError(f"{len(pictures)} pictures and {len(texts)} captions: give at least one of each")
        return Match.of(self.similarity(pictures, texts))

    def caption(
        self, images: Any, pool: Sequence[str], k: int = 5, templates: str | Sequence[str] | None = None
    ) -> list[list[tuple[str, float]]] | list[tuple[str, float]]:
        """The captions of a pool that fit pictures best: (caption, cosine similarity), best first.

        Args:
            images: one picture or a sequence, as ``encode_image`` takes them.
            pool: captions to choose from, in any number; equal ones count once.
            k: how many for each picture.
            templates: sentences with ``{}`` in the place of the caption, or the name of a set: a caption is then the
                mean of its prompts' embeddings. By default it is itself.

        Returns:
            A list for each picture, or one list for a single picture.

        Raises:
            ClipkitError: an empty pool, an empty caption, k below 1, or an unreadable picture.
        """
        check_count("k", k)
        captions = list(dict.fromkeys(_texts(pool)))
        if not captions:
            raise ClipkitError("the pool is empty: give captions to choose from")
        if templates:
            texts_KD = classifier_weights(self.encode_text, captions, templates)
        else:
            texts_KD = self.encode_text(captions)
        scores = np.atleast_2d(self.encode_image(as_list(images))) @ np.asarray(texts_KD).T
        order = np.argsort(-scores, axis=1, kind="stable")[:, :k]
        best = [[(captions[j], float(row[j])) for j in chosen] for row, chosen in zip(scores, order, strict=True)]
        return best[0] if is_single(images) else best

    def classifier(self, labels: Sequence[str], templates: str | Sequence[str] | None = None) -> Classifier:
        """A zero-shot classifier over ``labels``; see ``Classifier``.

        Args:
            labels: class names.
            templates: sentences with ``{}`` in the place of the class, or the name of a set in
                ``clipkit.evaluation.TEMPLATES``.
        """
        from clipkit.inference.classifier import Classifier

        return Classifier(self, labels, templates)

    def logits(self, similarities: Array) -> Array:
        """Cosines to the model's own logits: scale times cosine plus bias."""
        return similarities * np.float32(self.scale) + np.float32(self.bias)

    def __repr__(self) -> str:
        return f"Aligner({self.name!r}, embed_dim={self.embed_dim}, {self.kind})"


def _texts(texts: str | Sequence[str]) -> list[str]:
    if isinstance(texts, str):
        return [texts]
    if not hasattr(texts, "__iter__"):
        raise ClipkitError(f"{texts!r} is no text: give a text, or a list of texts")
    return list(texts)
