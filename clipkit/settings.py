"""What settings make no sense, said by their flags before anything is read or computed."""

from __future__ import annotations

import math
from typing import get_args

from clipkit.config import Config, Precision
from clipkit.errors import ClipkitError


def check_settings(config: Config) -> None:
    """Refuse values that make no sense, by their flags.

    Raises:
        ClipkitError: the first of them.
    """
    flat = config.to_dict()
    if flat["batch_size"] < 2:
        raise ClipkitError(
            f"--batch-size is {flat['batch_size']}; it must be at least 2, because a pair is compared with the others"
        )
    if not -(2**63) <= flat["seed"] < 2**63:
        raise ClipkitError(f"--seed is {flat['seed']}; it must fit in 64 bits")
    for name in ("micro_batch_size", "max_steps", "save_every", "eval_every", "log_every", "keep_last",
                 "embed_dim", "image_size", "projector_hidden", "projector_dim", "predictor"):  # fmt: skip
        if flat[name] is not None and flat[name] < 1:
            raise ClipkitError(f"--{name.replace('_', '-')} is {flat[name]}; it must be at least 1")
    for name in ("workers", "wd", "grad_clip", "warmup", "queue", "hardness"):
        if flat[name] is not None and not 0 <= flat[name] < math.inf:
            raise ClipkitError(f"--{name.replace('_', '-')} is {flat[name]}; it must be 0 or more")
    for name in ("lr", "epochs", "scale_init", "scale_max", "margin", "view_temperature"):
        if flat[name] is not None and not 0 < flat[name] < math.inf:
            raise ClipkitError(f"--{name.replace('_', '-')} is {flat[name]}; it must be a number above 0")
    if config.learns_scale and flat["scale_init"] is not None and flat["scale_init"] > flat["scale_max"]:
        raise ClipkitError(
            f"--scale-init {flat['scale_init']:g} is above --scale-max {flat['scale_max']:g}, the limit in training: "
            f"raise that too, or lower the start"
        )
    for name in ("beta1", "beta2"):
        if not 0 <= flat[name] < 1:
            raise ClipkitError(f"--{name} is {flat[name]}; it must be from 0 to below 1")
    if flat["momentum"] is not None and not 0 <= flat["momentum"] <= 1:
        raise ClipkitError(f"--momentum is {flat['momentum']}; it must be from 0 to 1")
    loss = config.optim.loss
    if flat["siglip"] and flat["objective"] not in (None, "sigmoid"):
        raise ClipkitError(
            f"--siglip is --objective sigmoid, but --objective is {flat['objective']}: leave it out or pass --no-siglip"
        )
    if loss == "sigmoid" and flat["compare"] not in ("pairs", "sentences"):
        raise ClipkitError(
            f"--objective sigmoid needs a bias, which --compare {flat['compare']} has not: pass --objective infonce"
            + (" --no-siglip" if flat["siglip"] else "")
        )
    if flat["momentum"] is None and (flat["queue"] or flat["momentum_rising"]):
        raise ClipkitError("--queue and --momentum-rising need a momentum encoder: pass --momentum 0.999")
    if flat["momentum"] is None and flat["predictor"] is not None:
        raise ClipkitError(
            f"--predictor {flat['predictor']} predicts a momentum encoder's views, and there is none: leave it out, or "
            f"take --recipe byol"
        )
    if flat["momentum"] is not None:
        if flat["compare"] != "views" or loss in ("margin", "triplet"):
            what = f"--objective {loss}" if flat["compare"] == "views" else f"--compare {flat['compare']}"
            raise ClipkitError(f"--momentum makes keys of second views, which {what} does not look at: leave it out")
        if loss == "cosine" and flat["queue"]:
            raise ClipkitError(
                f"--queue {flat['queue']} holds negatives, which --objective cosine has not: pass --queue 0"
            )
        if loss != "cosine" and not flat["queue"]:
            raise ClipkitError("--queue is 0, so a view has no negatives: pass --queue 4096, or --recipe simclr")
    if not 0 <= flat["debias"] < 1:
        raise ClipkitError(f"--debias is {flat['debias']}; it must be from 0 to below 1")
    if not 0 < flat["gamma"] <= 1:
        raise ClipkitError(f"--gamma is {flat['gamma']}; it must be above 0 and at most 1")
    if flat["gamma_falling"] and loss != "global":
        raise ClipkitError("--gamma-falling is of what --objective global remembers: pass that too")
    if not 0 <= flat["mining_margin"] <= 2:
        raise ClipkitError(f"--mining-margin is {flat['mining_margin']}; it is a difference of cosines, from 0 to 2")
    if flat["negatives"] != "none" and flat["compare"] not in ("pairs", "sentences", "pairs+views"):
        raise ClipkitError(
            f"--negatives {flat['negatives']} finds texts: it goes with --compare pairs, sentences or pairs+views"
        )
    if flat["captions"] == "all" and flat["compare"] not in ("pairs", "pairs+views"):
        raise ClipkitError("--captions all is of pictures with captions: it goes with --compare pairs or pairs+views")
    if loss == "global" and (flat["negatives"] != "none" or flat["compare"] != "pairs"):
        raise ClipkitError("--objective global remembers samples: it goes with --compare pairs and --negatives none")
    low, high = flat["crop_scale"]
    if not 0 < low <= high <= 1:
        raise ClipkitError(
            f"--crop-scale is {low} {high}; it must be two shares of the area, 0 < smaller <= larger <= 1"
        )
    for name, top in (("flip", 1), ("color_jitter", 1), ("rand_augment", 30)):
        if not 0 <= flat[name] <= top:
            raise ClipkitError(f"--{name.replace('_', '-')} is {flat[name]}; it must be from 0 to {top}")
        if flat[name] and flat["augment"] != "crop":
            raise ClipkitError(f"--{name.replace('_', '-')} changes random crops; pass --augment crop with it")
    if flat["precision"] not in get_args(Precision):
        raise ClipkitError(f"--precision is {flat['precision']!r}; it is {', '.join(get_args(Precision))}")
