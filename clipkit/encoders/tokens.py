"""Captions to tokens, cut to the batch's longest caption where that changes nothing."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from clipkit.errors import ClipkitError
from clipkit.pairs.captions import whole_characters

_TOKENIZER_FILES = (
    "tokenizer.json", "vocab.json", "vocab.txt", "spiece.model", "sentencepiece.bpe.model", "tokenizer.model"
)  # fmt: skip

_COUNTED = 1024  # captions whose tokens are counted together

_ONE_AT_A_TIME = threading.Lock()  # transformers' tokenizers may not be used by two threads at once


class Tokenizer:
    """Captions to int64 (n, L) tokens.

    L is the model's context length, or the longest caption's when ``cut`` is set: a causal tower that pools at the
    end token, or one that masks its padding, gives the same output and does a fifth of the work. Who may cut is
    found out by ``prove_cut`` (see ``text_length``), not assumed.

    Args:
        inner: an open_clip tokenizer, or a transformers tokenizer.
        context_length: tokens of a full row.
        pad_id: token that fills a row; open_clip's own tokenizer fills with 0.
        kind: ``open_clip`` or ``transformers``.
    """

    def __init__(self, inner: Any, context_length: int, pad_id: int, kind: str) -> None:
        self.inner = inner
        self.context_length = context_length
        self.pad_id = pad_id
        self.kind = kind
        self.cut = False

    def __call__(self, captions: Sequence[str]) -> Tensor:
        """Tokens of ``captions``; longer ones are truncated to the context."""
        if not captions:
            return torch.zeros(0, self.context_length, dtype=torch.int64)
        whole = [whole_characters(caption) for caption in captions]  # transformers' tokenizers take no others
        with _ONE_AT_A_TIME:
            tokens, length = self._open_clip(whole) if self.kind == "open_clip" else self._transformers(whole)
        return tokens[:, :length] if self.cut else tokens

    def by_length(self, captions: Sequence[str]) -> list[int]:
        """Places of ``captions``, the shortest first: by tokens where rows are cut, so that few are padded.

        Letters say too little: sorted by them, the prompts of a classifier carry a sixth more padding.
        """
        lengths = [0] * len(captions)
        for start in range(0, len(captions) if self.cut else 0, _COUNTED):
            tokens = self(captions[start : start + _COUNTED])
            places = torch.arange(1, tokens.shape[1] + 1)
            lengths[start : start + _COUNTED] = ((tokens != self.pad_id) * places).amax(dim=1).tolist()
        return sorted(range(len(captions)), key=lambda i: (lengths[i], len(captions[i])))

    def too_long(self, tokens: Tensor, captions: Sequence[str]) -> list[bool]:
        """Which of ``captions`` lost something when they became ``tokens``."""
        cut = [False] * len(captions)
        if tokens.shape[1] < self.context_length:
            return cut
        # Only rows that are full can have lost anything, and they are few.
        for row in (tokens[:, -1] != self.pad_id).nonzero().flatten().tolist():
            cut[row] = self._n_tokens(captions[row]) > self.context_length
        return cut

    def _n_tokens(self, caption: str) -> int:
        """Tokens of the whole caption, beginning and end included."""
        if self.kind == "transformers":
            with _ONE_AT_A_TIME:
                return len(self.inner(whole_characters(caption))["input_ids"])
        longer = self.inner([caption], context_length=8 * self.context_length)
        return int((longer != self.pad_id).sum())

    def _open_clip(self, captions: list[str]) -> tuple[Tensor, int]:
        tokens = self.inner(captions, context_length=self.context_length)
        used = (tokens != self.pad_id).any(dim=0).nonzero()
        return tokens, int(used[-1]) + 1 if len(used) else 1

    def _transformers(self, captions: list[str]) -> tuple[Tensor, int]:
        encoded = self.inner(
            captions,
            padding="max_length",
            truncation=True,
            max_length=self.context_length,
            return_attention_mask=True,
            return_tensors="pt",
        )
        return encoded["input_ids"], int(encoded["attention_mask"].sum(dim=1).max())

    def save(self, folder: Path) -> None:
        """Keep what is needed to make this tokenizer again without a network."""
        inner = self.inner if self.kind == "transformers" else getattr(self.inner, "tokenizer", None)
        if inner is not None and hasattr(inner, "save_pretrained"):
            inner.save_pretrained(folder)


def transformers_tokenizer(source: str | Path, context_length: int | None = None) -> Tokenizer:
    """The tokenizer at ``source`` (a transformers name or a directory).

    Raises:
        ClipkitError: there is none.
    """
    from transformers import AutoTokenizer

    folder = Path(source)
    if folder.is_dir() and not any((folder / name).is_file() for name in _TOKENIZER_FILES):
        # transformers would make an empty one, to which every word is unknown
        raise ClipkitError(f"{source}: no tokenizer in this folder (tokenizer.json, vocab.txt, ...)")
    try:
        inner = AutoTokenizer.from_pretrained(str(source))
    except Exception as error:  # transformers raises OSError, ValueError, KeyError and more
        raise ClipkitError(f"{source}: no tokenizer could be loaded ({_first_line(error)})") from None
    longest = inner.model_max_length
    length = context_length or (longest if longest < 100_000 else 512)
    if inner.pad_token_id is None:
        inner.pad_token = inner.eos_token
    return Tokenizer(inner, length, int(inner.pad_token_id or 0), "transformers")


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
