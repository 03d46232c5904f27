"""A held-out split through both towers, shared out over the processes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from clipkit.encoders import DualEncoder
from clipkit.encoders.side_by_side import CPU_CAPTIONS, CPU_PICTURES, side_by_side
from clipkit.errors import ClipkitError
from clipkit.objectives.exchange import gather_rows, rank, row_counts, world_size
from clipkit.pairs import Bad, PairBatch, PairReader
from clipkit.pairs.order import piece


@dataclass(frozen=True)
class EncodedPairs:
    """Embeddings of a split, the same on every process.

    Attributes:
        images: (N, D) float32, unit norm, on the CPU, in stored order; (0, D) without an image tower.
        texts: (M, D) float32, unit norm; all captions of all pictures; (0, D) without a text tower.
        image_of_text: (M,) int64, row of ``samples`` that each caption belongs to.
        samples: (N,) int64, the pictures' samples in the shards.
        bad: this process's samples that were left out.
    """

    images: Tensor
    texts: Tensor
    image_of_text: Tensor
    samples: Tensor
    bad: tuple[Bad, ...]


@torch.no_grad()
def encode_pairs(
    model: DualEncoder, reader: PairReader, batch_size: int = 128, autocast: torch.dtype | None = None
) -> EncodedPairs:
    """Every sample of ``reader.shards`` with all its captions; bad samples are left out and listed.

    Raises:
        ClipkitError: no sample could be read.
    """
    was_training = model.training
    model.eval()
    mine = range(len(reader.shards))[piece(len(reader.shards), rank(), world_size())]
    images: list[Tensor] = []
    texts: list[Tensor] = []
    image_ids: list[Tensor] = []
    text_ids: list[Tensor] = []
    bad: list[Bad] = []

    def run(samples: Sequence[int]) -> tuple[PairBatch, Tensor | None, Tensor | None]:
        batch = reader([(0, i) for i in samples]).to(model.device)
        if not len(batch.image_ids):
            return batch, None, None
        with inference(model.device, autocast):
            rows = None if batch.images is None else model.encode_image(batch.images).float()
            columns = None if batch.texts is None else model.encode_text(batch.texts).float()
            return batch, rows, columns

    for _, (batch, image_rows, text_rows) in side_by_side(run, mine, model.device, CPU_PICTURES, batch_size):
        bad += batch.bad
        image_ids.append(batch.image_ids)
        if image_rows is not None:
            images.append(image_rows)
        if text_rows is not None:
            texts.append(text_rows)
            text_ids.append(batch.text_ids)
    model.train(was_training)
    width = model.embed_dim
    rows, columns = _joined(images, width, model.device), _joined(texts, width, model.device)
    samples = torch.cat(image_ids) if image_ids else torch.zeros(0, dtype=torch.int64, device=model.device)
    owners = torch.cat(text_ids) if text_ids else torch.zeros(0, dtype=torch.int64, device=model.device)
    if world_size() > 1:
        device = model.device
        image_counts, text_counts, sample_counts = (row_counts(len(x), device) for x in (rows, columns, samples))
        rows, samples = gather_rows(rows, image_counts), gather_rows(samples, sample_counts)
        columns, owners = gather_rows(columns, text_counts), gather_rows(owners, text_counts)
    if not len(samples):
        why = f" (first: {bad[0].reason})" if bad else ""
        raise ClipkitError(f"{reader.shards.name}: no sample could be read{why}")
    samples, owners = samples.cpu(), owners.cpu()
    return EncodedPairs(rows.cpu(), columns.cpu(), torch.searchsorted(samples, owners), samples, tuple(bad))


def _joined(parts: list[Tensor], width: int, device: torch.device) -> Tensor:
    return torch.cat(parts) if parts else torch.zeros(0, width, device=device)


def encode_captions(
    model: DualEncoder, captions: Sequence[str], batch_size: int = 256, autocast: torch.dtype | None = None
) -> Tensor:
    """Captions of any number to unit-norm float32 (n, D) on the CPU.

    Captions of like length are encoded together, so that a short one is not padded to the longest of all.
    """
    was_training = model.training
    model.eval()
    by_length = model.tokenizer.by_length(captions)
    rows = torch.zeros(len(captions), model.embed_dim)

    def run(chosen: Sequence[int]) -> Tensor:
        with inference(model.device, autocast):
            tokens = model.tokenizer([captions[i] for i in chosen]).to(model.device)
            return model.encode_text(tokens).float().cpu()

    for chosen, encoded in side_by_side(run, by_length, model.device, CPU_CAPTIONS, batch_size):
        rows[list(chosen)] = encoded
    model.train(was_training)
    return rows


@contextmanager
def inference(device: torch.device, autocast: torch.dtype | None) -> Iterator[None]:
    """Inference mode, and autocast to ``autocast`` unless it is None; both hold for the thread that enters them."""
    with torch.inference_mode(), torch.autocast(device.type, dtype=autocast, enabled=autocast is not None):
        yield
