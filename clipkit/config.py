"""The configuration of a run: a tree of frozen dataclasses, to and from YAML.

The command line is made from these classes (flags have no prefix: ``--batch-size``, not ``--optim.batch-size``), so
a field's docstring is its ``--help``. Three layers meet in a run, the later over the earlier: the recipe's
defaults, a YAML file given as ``--config``, the command line.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any, Literal

from clipkit.errors import ClipkitError, did_you_mean

Precision = Literal["auto", "float32", "bf16"]
Family = Literal["simclr", "simclr-small", "moco", "moco-small", "byol"]


@dataclass(frozen=True)
class DataConfig:
    """Where the pairs come from and how a batch is read."""

    train_data: str | None = None
    """WebDataset shards (a folder, a tar, a glob or {000..009} pattern), or a CSV, TSV, JSONL or parquet table of
    picture paths and captions, or a folder of pictures; tables and folders become shards in a cache on first use.
    Shards may lie behind a URL (https://, s3://, ...). Several sources: A::B, or in YAML {A: weight, B: weight}."""
    train_weights: tuple[float, ...] = ()
    """Weights of the sources A::B of --train-data. Default: their numbers of samples."""
    val_data: str | None = None
    """Held-out data in any of the same forms. Default: the `val` split beside `train`, if there is one."""
    image_column: str | None = None
    """Column of a table that holds the picture's path. Default: the first known name (filepath, image, path, ...)."""
    caption_column: str | None = None
    """Column of a table that holds the caption. Default: the first known name (caption, text, title, ...)."""
    separator: str | None = None
    """Column separator of a CSV. Default: found from the header line."""
    image_root: str | None = None
    """Folder that the picture paths of a table start from. Default: the table's own folder."""
    user_column: str | None = None
    """Column of a table of interactions that holds the user. Default: the first known name (user, user_id, ...)."""
    item_column: str | None = None
    """Column that holds the item. Default: the first known name (item, item_id, product, movie_id, ...)."""
    time_column: str | None = None
    """Column that orders a user's interactions. Default: timestamp, time or date, else the file's order."""
    user_features: str | None = None
    """Table with what is known about users, a row for each, joined on the user column."""
    item_features: str | None = None
    """Table with what is known about items, joined on the item column."""
    encoding: str | None = None
    """Text encoding of a table or of captions in files, such as latin-1. Default: UTF-8, or UTF-16 with a byte order
    mark."""
    compare: Literal["pairs", "views", "labels", "sentences", "pairs+views", "interactions"] = "pairs"
    """What is compared: pictures with their captions; two views of each picture; two views, and pictures of one label
    belong together; a caption with another of the same sample (or, alone, with itself under other dropout); pictures
    with captions and two views of each picture as well; or users with the items that they chose."""
    views: Family = "simclr"
    """How the two views are drawn: as in the SimCLR paper (simclr-small: its settings for CIFAR-10), as MoCo v2
    (moco-small: without its blur, for pictures as small) or as BYOL."""
    negatives: Literal["none", "column", "swap", "mined"] = "none"
    """Hard negatives, captions that are compared with every picture besides the batch's own: those in the samples'
    `negative` field, made by rule from the caption (a colour, number, side or word order exchanged), or other samples'
    captions that the model itself found nearest in the epoch before."""
    mining_margin: float = 0.05
    """A mined caption's cosine is at least this much below that of the picture's own, else it probably belongs too."""
    guard: bool = True
    """False-negative guard: a caption that says the same as a picture's own, or that belongs to a copy of the picture,
    is not its negative."""
    captions: Literal["one", "all"] = "one"
    """Captions of a picture in a batch: one, drawn anew each epoch, or all of them, every one a positive."""
    augment: Literal["none", "crop", "small"] = "crop"
    """Training views of pictures: the evaluation view, a random resized crop, or (for tiny pictures) the evaluation
    view half of the time scaled down to 32-63 pixels first. A locked image tower caches none and small."""
    crop_scale: tuple[float, float] = (0.9, 1.0)
    """Smallest and largest share of the picture's area in a random crop."""
    flip: float = 0.0
    """Share of the crops that are mirrored. Captions that tell left from right become wrong."""
    color_jitter: float = 0.0
    """Strength of random brightness, contrast and saturation (0.4 is usual), and a quarter of it of hue."""
    rand_augment: int = 0
    """Magnitude (0-30, 9 is usual) of two random operations on each crop (RandAugment)."""
    workers: int = 2
    """Processes that read and decode. 0 reads in the training process. The batches do not depend on it."""

    @property
    def pictures_alone(self) -> bool:
        """Whether no caption is read."""
        return self.compare in ("views", "labels")


@dataclass(frozen=True)
class ModelConfig:
    """The two towers."""

    model: str = "small"
    """`small` (clipkit's own, learns from scratch on a CPU), an open_clip model name, or a JSON file in open_clip's
    format."""
    pretrained: str | None = None
    """Weights for --model: an open_clip tag, or a checkpoint file."""
    image_model: str | None = None
    """timm name of the image tower; with --text-model (alone for recipes of pictures) it replaces --model."""
    text_model: str | None = None
    """transformers name or local directory of the text tower; with --image-model (alone for recipes of sentences)."""
    image_pretrained: bool = True
    """Start --image-model from timm's weights (fetched by timm on first use)."""
    text_pretrained: bool = True
    """Start --text-model from its weights; otherwise only its architecture and tokenizer are used."""
    embed_dim: int = 512
    """Dimensions of the shared space, for a pair of towers."""
    image_size: int | None = None
    """Side of the square picture in pixels. Default: the model's own."""
    lock_image: bool = False
    """Freeze the image tower. Unless views are cropped, every picture is encoded once and cached."""
    lock_text: bool = False
    """Freeze the text tower; every caption is encoded once and cached."""
    projector_hidden: int = 512
    """Hidden width of the projection head over which views are compared."""
    projector_dim: int = 128
    """Output of the projection head."""
    projector_norm: bool = False
    """End the projection head with a BatchNorm without gain and bias (SimSiam, MoCo v3)."""
    predictor: int | None = None
    """Hidden width of the head that predicts the other view's projection (BYOL). Default: none."""


@dataclass(frozen=True)
class OptimConfig:
    """The batch and the update."""

    objective: Literal["infonce", "sigmoid", "margin", "triplet", "cosine", "hard", "global", None] = None
    """The loss over the comparison: infonce (CLIP, NT-Xent, SupCon, MoCo; the default), sigmoid (SigLIP), margin
    (contrastive, Hadsell et al. 2006), triplet, cosine (BYOL: only positives), hard (infonce whose negatives weigh the
    more the nearer they are, Robinson et al. 2021), or global (SogCLR: negatives of all the data, remembered sample by
    sample, for small batches)."""
    siglip: bool = False
    """The same as --objective sigmoid."""
    margin: float | None = None
    """Margin of --objective margin (default 0.5) or triplet (0.2)."""
    mining: Literal["all", "hardest", "semihard"] = "hardest"
    """Triplets that count: all that violate the margin, each query's hardest, or those of FaceNet."""
    hardness: float = 1.0
    """How much --objective hard prefers near negatives (the paper's beta); 0 weighs all alike."""
    debias: float = 0.0
    """Share of the negatives that --objective hard takes for unknown positives (Chuang et al. 2020's tau plus)."""
    gamma: float = 0.8
    """Share of a step in what --objective global remembers."""
    gamma_falling: bool = False
    """Let that share fall from 1 over the first half of the run, epoch by epoch, along a half cosine (FastCLIP)."""
    view_temperature: float = 0.1
    """Temperature of the comparison of views; constant."""
    momentum: float | None = None
    """Share of the momentum encoder that stays in a step (MoCo 0.999, BYOL 0.996). Default: no momentum encoder."""
    momentum_rising: bool = False
    """Let that share rise to 1 over the run, along a half cosine."""
    queue: int = 0
    """Keys of past steps that are negatives as well (MoCo)."""
    symmetric: bool = True
    """With a momentum encoder: both views are queries in turn, or the first one only."""
    optimizer: Literal["adamw", "sgd"] = "adamw"
    """AdamW, or SGD with momentum 0.9."""
    batch_size: int = 256
    """Pairs that are compared with one another in a step, over all processes together."""
    micro_batch_size: int | None = None
    """Pairs per process that are encoded at a time: less memory, same gradient; BatchNorm layers then keep their stored
    statistics. Default: all at once."""
    epochs: float = 10.0
    """Passes over the training data."""
    max_steps: int | None = None
    """At most this many steps, though --epochs would go on."""
    lr: float = 5e-4
    """Peak learning rate."""
    wd: float = 0.1
    """Weight decay; not on gains, biases, position embeddings and the temperature."""
    beta1: float = 0.9
    """AdamW's first-moment decay."""
    beta2: float = 0.98
    """AdamW's second-moment decay."""
    warmup: int | None = None
    """Steps of linear warm-up. Default: a tenth of the run, at most 2,000; never more than the run."""
    grad_clip: float = 1.0
    """Largest norm of the whole gradient; 0 switches clipping off."""
    exchange: Literal["gather", "ring"] = "gather"
    """How texts reach other processes' pictures: gather holds all of them on every process; ring hands them round, so
    that no process holds more than two pieces, for very large worlds. The gradient is the same."""
    scale_init: float | None = None
    """Starting value of the temperature's inverse. Default: 1/0.07 (InfoNCE), 10 (sigmoid), or the weights' own."""
    scale_max: float = 100.0
    """Upper limit of the temperature's inverse where it is learned."""
    precision: Precision = "auto"
    """float32, bf16 (autocast), or auto: bf16 on CUDA devices that have it, else float32."""

    @property
    def loss(self) -> str:
        """The objective's name, ``--siglip`` and the default considered."""
        return "sigmoid" if self.siglip else self.objective or "infonce"


@dataclass(frozen=True)
class RunConfig:
    """The run itself: where it goes, what it keeps, when it looks."""

    output: str | None = None
    """Run directory. Default: runs/RECIPE."""
    seed: int = 0
    """Seed of weights, order, views and dropout."""
    resume: str | None = None
    """`auto` takes the newest whole checkpoint of the run directory, or a checkpoint directory."""
    overwrite: bool = False
    """Replace an existing run directory."""
    save_every: int | None = None
    """Steps between checkpoints. Default: once an epoch, and at the end."""
    keep_last: int = 2
    """Checkpoints kept besides the best one."""
    keep_best: bool = True
    """Also keep the checkpoint that is best on the validation data (recall@1, neighbours or NDCG), and end with it."""
    eval_every: int | None = None
    """Steps between evaluations on the validation data. Default: once an epoch."""
    log_every: int = 10
    """Steps between training records."""
    log_with: str | None = None
    """Tracker through Accelerate besides metrics.jsonl: tensorboard, wandb, mlflow, ..."""
    dry_run: bool = False
    """Print the plan (steps, memory, time) and stop."""


@dataclass(frozen=True)
class Config:
    """Everything that defines a run. ``recipe`` names where the defaults came from."""

    recipe: str = "starter"
    """Method: clip, simclr, moco, ...; see clipkit train --help."""
    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    run: RunConfig = field(default_factory=RunConfig)

    @property
    def learns_scale(self) -> bool:
        """Whether the temperature is learned: that of views and of sentences is constant, distances have none."""
        constant = self.data.compare in ("views", "labels", "sentences")
        return not constant and self.optim.loss not in ("margin", "triplet", "cosine")

    def replace(self, **changes: Any) -> Config:
        """A copy with fields changed by their flat names: ``config.replace(lr=1e-3, seed=1)``.

        Raises:
            ClipkitError: a name is no setting.
        """
        home_of = homes()
        grouped: dict[str, dict[str, Any]] = {}
        top: dict[str, Any] = {}
        for name, value in changes.items():
            if name == "recipe":
                top[name] = value
            elif name in home_of:
                grouped.setdefault(home_of[name], {})[name] = value
            else:
                raise ClipkitError(f"no setting is called {name!r}{did_you_mean(name, list(home_of))}")
        parts = {part: dataclasses.replace(getattr(self, part), **values) for part, values in grouped.items()}
        return dataclasses.replace(self, **top, **parts)

    def to_dict(self) -> dict[str, Any]:
        """Flat names to plain values, in the order of the classes."""
        flat: dict[str, Any] = {"recipe": self.recipe}
        for part in PARTS:
            for name, value in dataclasses.asdict(getattr(self, part)).items():
                flat[name] = list(value) if isinstance(value, tuple) else value
        return flat


PARTS: dict[str, type] = {"data": DataConfig, "model": ModelConfig, "optim": OptimConfig, "run": RunConfig}


def homes() -> dict[str, str]:
    """Each setting's name, and the name in ``PARTS`` of the class that it belongs to."""
    return {f.name: part for part, cls in PARTS.items() for f in dataclasses.fields(cls)}
