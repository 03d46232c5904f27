"""Whether a run's tokenizer fits the captions that it is to read."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from clipkit.config import Config
from clipkit.errors import ClipkitError
from data_prep.checks import Finding
from data_prep.examine import Examined

_SAMPLE = 5000  # captions that are tokenized
_PER_CHARACTER = 0.7  # tokens; English has about 0.25, a script that the vocabulary does not know 1 to 3
_UNKNOWN = 0.01
_CUT = 0.01


def tokenizer_fit(data: Examined) -> Iterator[Finding]:
    """Captions that the run's tokenizer cuts, does not know, or takes apart into letters."""
    if data.config is None:
        return
    captions = [caption for row in data.of("train") for caption in data.records[row].captions]
    captions = captions[:: max(1, len(captions) // _SAMPLE)]
    try:
        ids, context, unknown_id = _tokens(data.config, captions)
    except ClipkitError as error:
        fix = "name a tokenizer that is on this machine, or fetch it"
        yield Finding("tokenizer", f"the run's tokenizer cannot be loaded: {error}", fix, 1)
        return
    model = data.config.model
    name = "the starter" if data.config.recipe == "starter" else model.text_model or model.model
    cut = [caption for caption, tokens in zip(captions, ids, strict=True) if len(tokens) > context]
    if len(cut) > _CUT * len(captions):
        yield Finding(
            "truncated captions",
            f"{len(cut) / len(captions):.0%} of the captions are longer than the {context} tokens that {name} reads",
            "shorten or split them, or take a text tower with a longer context",
            len(cut),
            [repr(caption[:60]) for caption in cut[:3]],
        )
    total = sum(map(len, ids))
    unknown = sum(tokens.count(unknown_id) for tokens in ids) if unknown_id is not None else 0
    per_character = (total - 2 * len(ids)) / max(1, sum(map(len, captions)))
    if unknown > _UNKNOWN * total or per_character > _PER_CHARACTER:
        yield Finding(
            "tokenizer",
            f"the tokenizer of {name} does not fit the captions: {per_character:.2f} tokens per character (English has "
            f"about 0.25), {unknown / max(1, total):.0%} unknown",
            "take a text tower that was made for the captions' language (--text-model)",
            unknown,
            [repr(caption[:60]) for caption in captions[:3]],
        )


def _tokens(config: Config, captions: list[str]) -> tuple[list[list[int]], int, int | None]:
    """Tokens of each caption at full length (with begin and end), the context's length, and the unknown token.

    Raises:
        ClipkitError: the tokenizer is not there.
    """
    if config.recipe == "starter" or config.model.text_model is not None:
        from clipkit.encoders import starter
        from clipkit.encoders.from_pair import CONTEXT_LENGTH
        from clipkit.encoders.tokens import transformers_tokenizer

        if config.recipe == "starter":
            tokenizer = transformers_tokenizer(starter.text_folder(), starter.CONTEXT_LENGTH)
        else:
            tokenizer = transformers_tokenizer(str(config.model.text_model), CONTEXT_LENGTH)
        ids = tokenizer.inner(captions, truncation=False)["input_ids"]
        return ids, tokenizer.context_length, tokenizer.inner.unk_token_id
    import open_clip

    # clipkit's own small model reads as CLIP does
    name = config.model.model if config.model.model in open_clip.list_models() else "ViT-B-32"
    try:
        inner: Any = open_clip.get_tokenizer(name)
    except Exception as error:  # of a tokenizer that the hub has and this machine has not
        said = " ".join(str(error).split()) or type(error).__name__
        raise ClipkitError(said[:160]) from None
    context = int(getattr(inner, "context_length", 77))
    if hasattr(inner, "encode"):
        return [[0, *inner.encode(caption), 0] for caption in captions], context, None
    return inner.tokenizer(captions)["input_ids"], context, inner.tokenizer.unk_token_id
