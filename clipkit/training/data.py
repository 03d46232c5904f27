"""What a run reads: shards, the views of the two towers, and the encodings of locked ones."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial

from torch import Tensor

from clipkit.config import Config
from clipkit.encoders import DualEncoder, Tokenizer
from clipkit.errors import ClipkitError
from clipkit.pairs import (
    Augment,
    PairReader,
    PictureSpec,
    PipeSet,
    ReadPicture,
    ReadTexts,
    ShardSet,
    TooLong,
    decode_image,
    fit,
    shrink,
)
from clipkit.training.locked import EitherView, Progress, all_captions, lock_images, lock_texts


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
    if isinstance(train, PipeSet) and (model.text.locked or (model.image.locked and config.data.augment != "crop")):
        raise ClipkitError(
            f"{train.name}: what a pipe holds is not known beforehand, so the encodings of a locked tower cannot be "
            f"cached; make shards of it, or lock no tower"
        )
    augment = config.data.augment
    cached_images = model.image.locked and augment != "crop"
    plain = partial(read_view, spec=model.picture)
    pictures: dict[str, ReadPicture] = {
        name: lock_images(model, shards, progress) if cached_images else plain for name, shards in splits.items()
    }
    if augment == "crop":
        pictures["train"] = partial(read_augmented, spec=model.picture, augment=_augment(config))
    elif augment == "small":
        tiny = (
            lock_images(model, train, progress, small=True)
            if cached_images
            else partial(read_small, spec=model.picture)
        )
        pictures["train"] = EitherView(pictures["train"], tiny)
    texts: ReadTexts = partial(read_tokens, tokenizer=model.tokenizer)
    too_long: TooLong = model.tokenizer.too_long
    if model.text.locked:
        texts = locked = lock_texts(model, [c for shards in splits.values() for c in all_captions(shards)], progress)
        too_long = locked.too_long
    readers = {
        name: PairReader(shards, pictures[name], texts, config.run.seed, "all", substitute=False)
        for name, shards in splits.items()
    }
    training = replace(
        readers.pop("train"),
        captions=config.data.captions,
        substitute=True,
        too_long=too_long,
    )
    return Readers(training, readers, cached_images and model.text.locked)


def plain_reader(model: DualEncoder, shards: ShardSet, config: Config) -> PairReader:
    """An evaluation reader (all captions, no substitutes) without any cache."""
    picture = partial(read_view, spec=model.picture)
    texts = partial(read_tokens, tokenizer=model.tokenizer)
    return PairReader(shards, picture, texts, config.run.seed, "all", substitute=False)


def read_view(shards: ShardSet, sample: int, seed: int, spec: PictureSpec) -> Tensor:
    """The evaluation view of a picture, uint8 (3, size, size)."""
    return fit(decode_image(shards.read_picture(sample), shards.where(sample)), spec)


def read_augmented(shards: ShardSet, sample: int, seed: int, spec: PictureSpec, augment: Augment) -> Tensor:
    """A training view of a picture, uint8 (3, size, size), drawn from ``seed``."""
    return augment(decode_image(shards.read_picture(sample), shards.where(sample)), spec, seed)


def _augment(config: Config) -> Augment:
    data = config.data
    return Augment(data.crop_scale, data.flip, data.color_jitter, data.rand_augment)


def read_small(shards: ShardSet, sample: int, seed: int, spec: PictureSpec) -> Tensor:
    """A picture as a tiny one shows it, uint8 (3, size, size)."""
    return shrink(decode_image(shards.read_picture(sample), shards.where(sample)), spec, seed >> 1)


def read_tokens(chosen: list[tuple[int, int, str]], tokenizer: Tokenizer) -> Tensor:
    """Tokens of a batch's captions, int64 (t, L)."""
    return tokenizer([caption for _, _, caption in chosen])
