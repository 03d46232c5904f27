"""What a run reads: shards, the views of the two towers, and the encodings of locked ones."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from torch import Tensor, nn

from clipkit.config import Config, Family
from clipkit.encoders import DualEncoder, Tokenizer
from clipkit.errors import ClipkitError
from clipkit.pairs import (
    Augment,
    PairReader,
    PictureSpec,
    PipeSet,
    ReadPicture,
    ShardSet,
    decode_image,
    fit,
    shrink,
)
from clipkit.pairs.interactions import Corrected, InteractionSet, ReadItems, read_user
from clipkit.pairs.negatives import FIELDS, negative_field, swapped, written
from clipkit.pairs.remote import UnreachableError
from clipkit.pairs.stream import Negatives
from clipkit.pairs.views import draw_views, stacked
from clipkit.training.locked import EitherView, Progress, all_captions, lock_images, lock_texts

View = Callable[[Tensor, int], Tensor]
"""(decoded picture uint8 (3, H, W), seed) -> one view, uint8 (3, size, size)."""

_LOOKED_AT = 1000  # samples among which a paraphrase, a label or a negative is sought
_NEGATIVES: dict[str, Negatives | None] = {"none": None, "column": written, "swap": swapped, "mined": None}


@dataclass(frozen=True)
class Readers:
    """The training reader, the evaluation reader of each held-out split, and whether both towers' encodings are
    read from the cache."""

    train: PairReader
    held_out: dict[str, PairReader]
    cached: bool = False


def make_readers(
    model: DualEncoder,
    train: ShardSet,
    held_out: dict[str, ShardSet],
    config: Config,
    progress: Progress | None = None,
) -> Readers:
    """Readers for ``model``; whatever a locked tower would encode again and again is encoded here, once."""
    splits = {"train": train, **held_out}
    image, text = (model.towers.get(name) for name in ("image", "text"))
    augment = config.data.augment
    cached_images = image is not None and image.locked and augment != "crop" and not _several_views(config)
    cached_texts = text is not None and text.locked
    if isinstance(train, PipeSet) and (cached_texts or cached_images):
        raise ClipkitError(
            f"{train.name}: what a pipe holds is not known beforehand, so the encodings of a locked tower cannot be "
            f"cached; make shards of it, or lock no tower"
        )
    training = training_reader(model, train, config)
    readers = {name: plain_reader(model, shards, config) for name, shards in held_out.items()}
    if cached_images:
        locked: dict[str, ReadPicture] = {n: lock_images(model, s, progress) for n, s in splits.items()}
        readers = {name: replace(reader, picture=locked[name]) for name, reader in readers.items()}
        small = lock_images(model, train, progress, small=True) if augment == "small" else None
        training = replace(training, picture=EitherView(locked["train"], small) if small else locked["train"])
    if cached_texts:
        captions = [c for shards in splits.values() for c in all_captions(shards, training.negatives)]
        texts = lock_texts(model, captions, progress)
        readers = {name: replace(reader, texts=texts) for name, reader in readers.items()}
        training = replace(training, texts=texts, too_long=texts.too_long)
    return Readers(training, readers, (cached_images or image is None) and (cached_texts or text is None))


def training_reader(model: DualEncoder, shards: ShardSet, config: Config) -> PairReader:
    """The reader of a training step, without any cache.

    Raises:
        ClipkitError: what is compared does not fit the model.
    """
    data = config.data
    if isinstance(shards, InteractionSet):
        items, corrected = ReadItems(shards), Corrected(shards)
        return PairReader(shards, read_user, items, config.run.seed, finish=corrected)
    check_samples(model, shards, config)
    with_pictures = data.compare != "sentences"
    with_texts = not data.pictures_alone
    return PairReader(
        shards,
        _training_view(model, config) if with_pictures else None,
        partial(read_tokens, tokenizer=model.tokenizer) if with_texts else None,
        config.run.seed,
        "two" if data.compare == "sentences" else data.captions,
        too_long=model.tokenizer.too_long if with_texts else None,
        negatives=_NEGATIVES[data.negatives] if with_texts else None,
        labels=data.compare == "labels",
        guard=data.guard and with_texts,
        padding=model.tokenizer.pad_id if with_texts else 0,
    )


def check_samples(model: DualEncoder, shards: ShardSet, config: Config) -> None:
    """Refuse samples without what is compared, as far as the first ones show; a pipe's are not known beforehand.

    Raises:
        ClipkitError: they lack it, or the model has no tower for it.
    """
    if isinstance(shards, InteractionSet):
        return
    compared = config.data.compare
    model.tower("text" if compared == "sentences" else "image")
    if isinstance(shards, PipeSet):
        return
    if compared == "sentences":
        _check_versions(model, shards)
    if compared == "labels":
        _check_labels(shards)
    if compared in ("pairs", "pairs+views"):
        _check_captions(shards)
    if config.data.negatives == "column":
        _check_negatives(shards)


def without_captions(shards: ShardSet) -> int:
    """How many samples were looked at, if none of them has a caption; else 0."""
    return _looked_at_in_vain(shards, lambda _, captions: bool(captions))


def _check_captions(shards: ShardSet) -> None:
    """Refuse pictures of which none has a caption."""
    if looked_at := without_captions(shards):
        raise ClipkitError(
            f"{shards.name}: none of its first {looked_at:,} samples has a caption; put KEY.txt beside KEY.jpg, let "
            f"`clipkit prepare` make captions of labels, or take a recipe for pictures alone, such as --recipe simclr"
        )


def _check_labels(shards: ShardSet) -> None:
    """Refuse pictures of which none has a label: each would be compared with itself alone."""
    if looked_at := _looked_at_in_vain(shards, lambda record, _: record.get("label") is not None):
        raise ClipkitError(
            f"{shards.name}: none of its first {looked_at:,} samples has a label; give class folders or a column "
            f"called label, or take --recipe simclr"
        )


def _check_negatives(shards: ShardSet) -> None:
    """Refuse --negatives column for samples of which none has any."""
    if looked_at := _looked_at_in_vain(shards, lambda record, _: negative_field(record)[1] is not None):
        raise ClipkitError(
            f"{shards.name}: none of its first {looked_at:,} samples has a negative; give a column or field "
            f"called {', '.join(FIELDS[:-1])} or {FIELDS[-1]}, or pass --negatives swap or mined"
        )


def _looked_at_in_vain(shards: ShardSet, has: Callable[[dict[str, Any], tuple[str, ...]], bool]) -> int:
    """Of how many samples none has it, by its record and captions; 0 if one has. Bad ones are counted as without."""
    looked_at = min(_LOOKED_AT, len(shards))
    for i in range(looked_at):
        try:
            if has(*shards.read_record(i)):
                return 0
        except UnreachableError:
            raise
        except ClipkitError:  # a bad sample is the stream's to replace
            continue
    return looked_at


def _check_versions(model: DualEncoder, shards: ShardSet) -> None:
    """Refuse sentences without paraphrases for a tower without dropout: their two versions would be the same."""
    trunk = model.tower("text").trunk
    if any(isinstance(m, nn.Dropout) and m.p > 0 for m in trunk.modules()):
        return
    looked_at = range(min(_LOOKED_AT, len(shards)))
    if not any(len(shards.read_captions(i)) > 1 for i in looked_at):
        raise ClipkitError(
            f"{shards.name}: a sentence alone is compared with itself under other dropout, and the text tower has "
            f"none; pass a --text-model that has, or data with a column of paraphrases"
        )


def plain_reader(model: DualEncoder, shards: ShardSet, config: Config) -> PairReader:
    """An evaluation reader (one plain view, all captions, no substitutes) without any cache."""
    if isinstance(shards, InteractionSet):
        return PairReader(shards, read_user, ReadItems(shards), config.run.seed, substitute=False)
    picture = partial(read_view, spec=model.picture) if model.image is not None else None
    texts = partial(read_tokens, tokenizer=model.tokenizer) if model.text is not None else None
    return PairReader(shards, picture, texts, config.run.seed, "all", substitute=False)


def _several_views(config: Config) -> bool:
    return config.data.pictures_alone or config.data.compare == "pairs+views"


def _training_view(model: DualEncoder, config: Config) -> ReadPicture:
    """How a picture is read in training: its one view, its two views, or all three."""
    data, spec = config.data, model.picture
    if data.pictures_alone:
        return partial(read_views, spec=spec, family=data.views)
    if data.augment == "crop":
        single: View = partial(cropped, spec=spec, augment=_augment(config))
    else:
        single = partial(either_size if data.augment == "small" else whole, spec=spec)
    if _several_views(config):
        return partial(read_with_views, single=single, spec=spec, family=data.views)
    return partial(read_single, single=single)


def whole(image: Tensor, seed: int, spec: PictureSpec) -> Tensor:
    """The evaluation view: a decoded picture, uint8 (3, H, W), to uint8 (3, size, size)."""
    return fit(image, spec)


def cropped(image: Tensor, seed: int, spec: PictureSpec, augment: Augment) -> Tensor:
    """A training view drawn from ``seed``, uint8 (3, size, size)."""
    return augment(image, spec, seed)


def either_size(image: Tensor, seed: int, spec: PictureSpec) -> Tensor:
    """The evaluation view, or by ``seed`` a picture as a tiny one shows it; the same choice as ``EitherView``'s."""
    return fit(image, spec) if seed % 2 else shrink(image, spec, seed >> 1)


def read_single(shards: ShardSet, sample: int, seed: int, single: View) -> Tensor:
    """One view of a picture, uint8 (3, size, size)."""
    return single(_decoded(shards, sample), seed)


def read_view(shards: ShardSet, sample: int, seed: int, spec: PictureSpec) -> Tensor:
    """The evaluation view of a picture, uint8 (3, size, size)."""
    return whole(_decoded(shards, sample), seed, spec)


def read_augmented(shards: ShardSet, sample: int, seed: int, spec: PictureSpec, augment: Augment) -> Tensor:
    """A training view of a picture, uint8 (3, size, size), drawn from ``seed``."""
    return cropped(_decoded(shards, sample), seed, spec, augment)


def read_views(shards: ShardSet, sample: int, seed: int, spec: PictureSpec, family: Family) -> Tensor:
    """Two training views of a picture, uint8 (2, 3, size, size), drawn from ``seed``."""
    return draw_views(_decoded(shards, sample), spec, seed, family)


def read_with_views(
    shards: ShardSet, sample: int, seed: int, single: View, spec: PictureSpec, family: Family
) -> Tensor:
    """The view that goes with the caption and two more, uint8 (3, 3, size, size), of a picture decoded once."""
    image = _decoded(shards, sample)
    return stacked([single(image, seed), *draw_views(image, spec, seed, family)])


def _decoded(shards: ShardSet, sample: int) -> Tensor:
    return decode_image(shards.read_picture(sample), shards.where(sample))


def _augment(config: Config) -> Augment:
    data = config.data
    return Augment(data.crop_scale, data.flip, data.color_jitter, data.rand_augment)


def read_tokens(chosen: list[tuple[int, int, str]], tokenizer: Tokenizer) -> Tensor:
    """Tokens of a batch's captions, int64 (t, L)."""
    return tokenizer([caption for _, _, caption in chosen])
