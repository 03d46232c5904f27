"""Whether a text tower gives the same output when its input is cut to the longest caption."""

from __future__ import annotations

import torch

from clipkit.encoders.dual import Tower
from clipkit.encoders.tokens import Tokenizer

TOLERANCE = 1e-4  # of a unit-norm embedding; float32 noise is below 1e-5, a tower that reads padding is off by 1e-2

_PROBES = ["a", "two dogs run", "a photo of a small red bird on a branch in front of a white wall"]


@torch.no_grad()
def prove_cut(tower: Tower, tokenizer: Tokenizer) -> float:
    """Encode a few captions at full and at cut length, and let ``tokenizer`` cut if nothing changes.

    Exact for causal towers that pool at the end token (CLIP) and for towers that mask their padding (BERT,
    RoBERTa, MPNet); not for SigLIP and CoCa, which read the padding and keep the full length.

    Returns:
        The largest difference of a unit-norm embedding's coordinate; infinite if the tower refuses a cut row.
    """
    tokenizer.cut = False
    was_training = tower.training
    tower.eval()
    try:
        full = tokenizer(_PROBES)
        device = next(tower.parameters()).device
        tokenizer.cut = True
        cut = tokenizer(_PROBES)
        if cut.shape[1] >= full.shape[1]:
            tokenizer.cut = False
            return 0.0
        expected = torch.nn.functional.normalize(tower(full.to(device)).float(), dim=-1)
        # One by one and together: a row must depend neither on its own padding nor on that of its neighbours.
        rows = [cut, *(tokenizer([caption]) for caption in _PROBES)]
        outputs = [torch.nn.functional.normalize(tower(r.to(device)).float(), dim=-1) for r in rows]
        got = torch.stack([outputs[0], torch.cat(outputs[1:])])
        difference = float((got - expected).abs().max())
        difference = difference if difference == difference else float("inf")
    except (RuntimeError, ValueError, IndexError):
        difference = float("inf")
    finally:
        tower.train(was_training)
    tokenizer.cut = difference <= TOLERANCE
    return difference
