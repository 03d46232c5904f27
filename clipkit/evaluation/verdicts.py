"""From the figures of a space to sentences: what is wrong, why that usually happens, what to try."""

from __future__ import annotations

from dataclasses import dataclass

from clipkit.evaluation.health import Health, Space

# Where trained models stand: OpenAI's CLIP has a mean cosine of about 0.5 between pictures and a modality gap of 0.82
# (Liang et al. 2022); SimCLR's pictures are near 0. The bounds leave them room.
_SAME, _CONE = 0.95, 0.85  # mean cosine of two embeddings
_FEW = 0.03  # of the possible rank
_ONE_DIRECTION = 0.5  # share of the variance in the first component
_GAP = 1.0
_NO_PAIRS = 0.97  # distance of positives over the distance of all pairs
_ENOUGH = 16  # rows to judge by


@dataclass(frozen=True)
class Verdict:
    """One thing that is wrong.

    Attributes:
        kind: ``zeros``, ``collapse``, ``cone``, ``few_dimensions``, ``dead_dimensions``, ``one_direction``, ``gap`` or
            ``pairs``.
        collapsed: whether the run should be stopped: what follows cannot be learned from such embeddings.
        sentence: what is seen, its usual causes, and what to try.
    """

    kind: str
    collapsed: bool
    sentence: str


def diagnose(health: Health, names: tuple[str, str] = ("pictures", "texts")) -> list[Verdict]:
    """What is wrong with a space, worst first; an empty list if nothing is, or if there are fewer than 16 rows.

    An untrained network puts all pictures into one narrow cone, so ask after the warm-up and not at the first step.

    Args:
        names: what the two sides are called: ``("first views", "second views")`` for two views of one picture.
    """
    sides = [(names[0], health.images)] + ([(names[1], health.texts)] if health.texts is not None else [])
    if any(space.n < _ENOUGH for _, space in sides):
        return []
    found = [verdict for name, space in sides for verdict in _of_side(name, space)]
    if not any(verdict.collapsed for verdict in found):
        found += _between(health, names)
    return sorted(found, key=lambda verdict: not verdict.collapsed)


def _of_side(name: str, space: Space) -> list[Verdict]:
    rank = f"effective rank {space.effective_rank:.1f} of {space.embed_dim}"
    if space.zeros > space.n // 2:
        return [
            Verdict(
                "zeros",
                True,
                f"{space.zeros:,} of {space.n:,} {name} have an embedding of zeros: the last layer is dead; usual "
                "causes: a ReLU at the end of the head, or a learning rate that killed it; end the head with a linear "
                "layer, lower --lr, and start again",
            )
        ]
    if space.cosine > _SAME:
        return [
            Verdict(
                "collapse",
                True,
                f"all {name} get nearly the same embedding (mean cosine {space.cosine:.3f}, {rank}): the run has "
                "collapsed, or has not begun to learn; usual causes: no negatives and no stop-gradient or predictor, "
                "or too high a learning rate; lower --lr, warm up longer, or take an objective with negatives",
            )
        ]
    found = []
    possible = min(space.n, space.embed_dim)
    if space.effective_rank < max(3.0, _FEW * possible) and possible >= 8:
        found.append(
            Verdict(
                "few_dimensions",
                False,
                f"the {name} use few of their dimensions ({rank}): dimensional collapse, unless they have as few "
                "labels to tell apart; usual causes: augmentations stronger than what tells the inputs apart, or a "
                "head of one wide layer; weaken the augmentations, raise --batch-size, or put a projection head on "
                "top",
            )
        )
    elif space.cosine > _CONE:
        found.append(
            Verdict(
                "cone",
                False,
                f"the {name} lie in a narrow cone (mean cosine {space.cosine:.2f}, {rank}); usual causes: too high a "
                "temperature, too few negatives, or too short a run; raise --batch-size, or train longer",
            )
        )
    if 2 * space.dead > space.embed_dim:
        found.append(
            Verdict(
                "dead_dimensions",
                False,
                f"{space.dead:,} of {space.embed_dim:,} dimensions are the same for all {name}; usual cause: a ReLU at "
                "the end of the head; end it with a linear layer, or with fewer dimensions",
            )
        )
    # NaN, where nothing varies, is not above anything
    if space.first_component > _ONE_DIRECTION and possible >= 8:
        found.append(
            Verdict(
                "one_direction",
                False,
                f"{space.first_component:.0%} of what varies between {name} is one direction; usual cause: a shortcut, "
                "such as the overall colour or brightness of a picture or the length of a text; change it in the "
                "augmentations (colour jitter, grayscale), and look at the inputs at both ends of it",
            )
        )
    return found


def _between(health: Health, names: tuple[str, str]) -> list[Verdict]:
    found = []
    if health.alignment > _NO_PAIRS * health.distance:
        found.append(
            Verdict(
                "pairs",
                False,
                f"{names[0]} are no nearer to their own {names[1]} than to any others (squared distance "
                f"{health.alignment:.2f}, all pairs {health.distance:.2f}): nothing has been learned from the pairs; "
                "usual causes: pairs mixed up, or too low a learning rate; look at some pairs with `clipkit doctor`, "
                "or raise --lr",
            )
        )
    if health.modality_gap > _GAP:
        found.append(
            Verdict(
                "gap",
                False,
                f"{names[0]} and {names[1]} lie in two regions (modality gap {health.modality_gap:.2f} of at most 2; "
                "0.82 is usual for CLIP): usual cause: a low temperature from the start keeps the two cones of the "
                "untrained towers apart; lower --scale-init or --scale-max; comparing the two sides still works, "
                "mixing them in one index does not",
            )
        )
    return found
