"""Recipes: each names its pairs, its encoders, what is compared and its objective in a few lines.

There is no registry and no base class: a recipe is a value, and ``clipkit.train(my_recipe)`` runs yours. The
functions import what they need when they are called, so that ``clipkit --help`` stays instant.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from clipkit.config import Config
from clipkit.data_option import Pairs, pairs_from_config
from clipkit.errors import ClipkitError, did_you_mean

if TYPE_CHECKING:
    from clipkit.encoders import DualEncoder
    from clipkit.objectives import Compare
    from clipkit.training.step import Objective


def compare_from_config(config: Config) -> Compare:
    """The tables that ``--compare`` and ``--momentum`` ask for."""
    from clipkit import objectives

    compared = config.data.compare
    if config.optim.loss == "triplet" and compared in ("pairs", "pairs+views"):
        both = compared == "pairs+views"
        return objectives.pairs_both_ways_and_views_table if both else objectives.pairs_both_ways_table
    if compared == "views" and config.optim.momentum is not None:
        return objectives.targets_table if config.optim.loss == "cosine" else objectives.momentum_table
    return {
        "pairs": objectives.pairs_table,
        "views": objectives.views_table,
        "labels": objectives.labels_table,
        "sentences": objectives.sentences_table,
        "pairs+views": objectives.pairs_and_views_table,
        "interactions": objectives.pairs_table,
    }[compared]


def encoders_from_config(config: Config) -> DualEncoder:
    """The towers that what is compared needs, with the heads of its views."""
    from clipkit.encoders import TwoViewsSettings, add_two_views, build

    data, optim = config.data, config.optim
    towers = {"views": ("image",), "labels": ("image",), "sentences": ("text",)}.get(data.compare, ("image", "text"))
    model = build(
        config.model,
        sigmoid=optim.loss == "sigmoid",
        scale_init=optim.scale_init,
        seed=config.run.seed,
        towers=towers,
    )
    by_distance = optim.loss in ("margin", "triplet")  # which are of the embedding itself
    if data.compare in ("views", "labels", "pairs+views") and not by_distance:
        settings = TwoViewsSettings(
            config.model.projector_hidden,
            config.model.projector_dim,
            optim.view_temperature,
            config.model.predictor,
            optim.momentum,
            optim.momentum_rising,
            optim.queue,
            optim.symmetric or optim.momentum is None,
            config.model.projector_norm,
        )
        add_two_views(model, settings)
    if not config.learns_scale:
        model.log_scale.requires_grad_(False)  # constant, or of no use: DDP would wait for its gradient
    return model


def objective_from_config(config: Config) -> Objective:
    """The loss that ``--objective`` asks for, with its settings."""
    from clipkit import objectives

    optim, compared = config.optim, config.data.compare
    if optim.loss == "sigmoid":
        return objectives.sigmoid
    if optim.loss == "margin":
        return partial(objectives.margin, margin=optim.margin or 0.5)
    if optim.loss == "triplet":
        return partial(objectives.triplet, margin=optim.margin or 0.2, mining=optim.mining)
    if optim.loss == "cosine":
        return objectives.negative_cosine
    if optim.loss == "global":  # of how many samples it remembers something, the run's data say
        return objectives.GlobalContrastive(gamma=optim.gamma)
    # A sentence's first version is the query; a view is a query and a key anyway.
    one_way = compared in ("views", "labels", "sentences", "interactions")
    if optim.loss == "hard":
        return partial(
            objectives.hard_infonce,
            beta=optim.hardness,
            tau_plus=optim.debias,
            directions="rows" if one_way else "both",
        )
    return partial(objectives.infonce, directions="rows") if one_way else objectives.infonce


@dataclass(frozen=True)
class Recipe:
    """A method of the contrastive family.

    Attributes:
        name: run directories are called after it.
        summary: one line for people.
        defaults: its settings; a run file and the command line go over them.
        pairs: config -> the data.
        encoders: config -> the dual encoder, with what is frozen frozen.
        objective: config -> the loss over a table.
        compare: config -> the tables of a step; see ``clipkit.objectives.tables``.
    """

    name: str
    summary: str
    defaults: Config
    pairs: Callable[[Config], Pairs] = pairs_from_config
    encoders: Callable[[Config], DualEncoder] = encoders_from_config
    objective: Callable[[Config], Objective] = objective_from_config
    compare: Callable[[Config], Compare] = compare_from_config


def _starter_pairs(config: Config) -> Pairs:
    from clipkit.pairs import open_shards

    if config.data.train_data is not None:
        return pairs_from_config(config)
    from data_prep import cached_shards

    folder = cached_shards("openmoji", show_progress=sys.stderr.isatty())
    train, val, test = (open_shards(folder / split, f"openmoji {split}") for split in ("train", "val", "test"))
    return Pairs(train, {"val": val, "test": test})


def _starter_towers(config: Config) -> DualEncoder:
    from clipkit.encoders.starter import starter_encoder

    if config.optim.loss == "sigmoid":
        raise ClipkitError("--objective sigmoid needs a bias, which the starter has not: pass --recipe siglip")
    return starter_encoder(config.optim.scale_init or 5.0)


def _interaction_pairs(config: Config) -> Pairs:
    from clipkit.row_tables import open_interactions

    if config.data.compare != "interactions" or config.data.val_data is not None:
        what = f"--compare {config.data.compare}" if config.data.val_data is None else "--val-data"
        raise ClipkitError(f"{what} does not go with --recipe two_tower, which holds out each user's last items itself")
    splits = open_interactions(config.data)
    return Pairs(splits.pop("train"), dict(splits))


def _interaction_towers(config: Config) -> DualEncoder:
    import torch

    from clipkit.encoders.from_tables import Vocabulary, from_tables
    from clipkit.row_tables import open_interactions, plain_table

    train = open_interactions(config.data)["train"]
    tables = {"users": train.users, "items": train.items}
    vocabulary = Vocabulary({name: plain_table(table) for name, table in tables.items()})
    torch.manual_seed(config.run.seed)
    sizes = {name: table.sizes for name, table in tables.items()}
    return from_tables(sizes, config.model.embed_dim, vocabulary, config.optim.scale_init or 1 / 0.07)


_CLIP = Config(recipe="clip")
_VIEWS = Config().replace(compare="views", lr=1e-3, wd=1e-4, grad_clip=0)

starter = Recipe(
    "starter",
    "the offline default: two locked towers from packages, a head that learns emoji in a minute",
    Config(recipe="starter").replace(
        lock_image=True,
        lock_text=True,
        augment="small",
        epochs=60,
        lr=2e-3,
        wd=0.0,
        scale_init=5.0,  # a soft start: at 20 the held-out categories are a quarter worse
        eval_every=120,
        save_every=1000,
    ),
    _starter_pairs,
    _starter_towers,
)

clip = Recipe(
    "clip",
    "two towers, symmetric InfoNCE with a learnable temperature (Radford et al. 2021)",
    _CLIP,
)

siglip = Recipe(
    "siglip",
    "two towers, pairwise sigmoid loss with a learnable bias (Zhai et al. 2023)",
    _CLIP.replace(recipe="siglip", siglip=True),
)

lit = Recipe(
    "lit",
    "locked image tower, only the text tower learns (Zhai et al. 2022)",
    _CLIP.replace(recipe="lit", lock_image=True, augment="none"),
)

slip = Recipe(
    "slip",
    "CLIP and SimCLR at once: captions, and two more views of each picture (Mu et al. 2022)",
    _CLIP.replace(recipe="slip", compare="pairs+views"),
)

simclr = Recipe(
    "simclr",
    "two views of each picture, NT-Xent (Chen et al. 2020)",
    _VIEWS.replace(recipe="simclr"),
)

moco = Recipe(
    "moco",
    "two views, the second through a momentum encoder, with a queue of past keys (He et al. 2020; v2)",
    _VIEWS.replace(recipe="moco", views="moco", momentum=0.99, queue=4096, symmetric=False, view_temperature=0.2),
)

byol = Recipe(
    "byol",
    "two views, each predicts the momentum encoder's of the other, no negatives (Grill et al. 2020)",
    _VIEWS.replace(
        recipe="byol", views="byol", objective="cosine", momentum=0.996, momentum_rising=True, predictor=512
    ),
)

supcon = Recipe(
    "supcon",
    "two views, and pictures of one label belong together (Khosla et al. 2020)",
    _VIEWS.replace(recipe="supcon", compare="labels"),
)

margin = Recipe(
    "margin",
    "pairs close together, others a margin apart (contrastive loss, Hadsell et al. 2006)",
    _CLIP.replace(recipe="margin", objective="margin"),
)

triplet = Recipe(
    "triplet",
    "each query nearer to its own than to its hardest other, by a margin (FaceNet, Schroff et al. 2015; VSE++)",
    _CLIP.replace(recipe="triplet", objective="triplet"),
)

simcse = Recipe(
    "simcse",
    "sentences with their paraphrases, or with themselves under other dropout (Gao et al. 2021)",
    _CLIP.replace(recipe="simcse", compare="sentences", scale_init=20.0, lr=3e-5, epochs=1),
)

two_tower = Recipe(
    "two_tower",
    "users with the items that they chose, popularity corrected (Yi et al. 2019)",
    Config(recipe="two_tower").replace(
        compare="interactions", lr=3e-3, wd=0.0, embed_dim=64, batch_size=512, epochs=20, workers=0
    ),
    _interaction_pairs,
    _interaction_towers,
)

RECIPES: dict[str, Recipe] = {
    recipe.name: recipe
    for recipe in (starter, clip, siglip, lit, slip, simclr, moco, byol, supcon, margin, triplet, simcse, two_tower)
}


def find_recipe(name: str) -> Recipe:
    """The recipe called ``name``.

    Raises:
        ClipkitError: there is none.
    """
    if name not in RECIPES:
        hint = did_you_mean(name, list(RECIPES)) or f"; recipes are {', '.join(RECIPES)}"
        raise ClipkitError(f"no recipe is called {name!r}{hint}")
    return RECIPES[name]
