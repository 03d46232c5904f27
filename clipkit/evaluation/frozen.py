"""A frozen encoder is frozen: asserted, not assumed."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from clipkit.errors import ClipkitError


@contextmanager
def frozen(module: nn.Module) -> Iterator[nn.Module]:
    """Evaluation mode and no gradients inside; afterwards every parameter and buffer is the same to the last bit.

    A probe that updates BatchNorm's running statistics, or an encoder that goes on learning, has not measured what the
    encoder had learned. The mode of every submodule is put back at the end.

    Raises:
        ClipkitError: at the end, if a parameter or a buffer (also one that is not in the state dict) has another value,
            dtype or shape, has appeared or is gone, or if something inside was switched to training mode.

    Example:
        >>> with frozen(encoder):  # doctest: +SKIP
        ...     features = encoder(pixels)
    """
    modes = [(part, part.training) for part in module.modules()]
    before = _contents(module)
    module.eval()
    try:
        with torch.no_grad():
            yield module
        trains = [name or "itself" for name, part in module.named_modules() if part.training]
    finally:
        for part, mode in modes:
            part.training = mode
    after = _contents(module)
    changed = sorted(name for name in before.keys() | after.keys() if before.get(name) != after.get(name))
    what = type(module).__name__
    if changed:
        more = f" and {len(changed) - 1} more" if len(changed) > 1 else ""
        raise ClipkitError(
            f"the frozen {what} has changed in {changed[0]}{more}: the probe has trained what it measures; encode in "
            "evaluation mode and without an optimizer on it"
        )
    if trains:
        raise ClipkitError(
            f"the frozen {what} was switched to training mode ({trains[0]}): its dropout or BatchNorm was at work; "
            "leave its mode alone while it encodes"
        )


def frozen_features(
    module: nn.Module, encode: Callable[[Tensor], Tensor], inputs: Any, batch_size: int = 256
) -> np.ndarray:
    """Features of many inputs by a frozen module, float32 (N, F).

    Args:
        module: what has to stay as it is, asserted by ``frozen``.
        encode: a batch of inputs -> (B, F), by way of ``module``: normalise pixels in it.
        inputs: a tensor (N, ...), such as uint8 pictures (N, 3, H, W), or ``Pictures`` that are decoded when asked for.
    """
    if not len(inputs):
        raise ClipkitError("no inputs to encode: give at least one")
    with frozen(module):
        batches = torch.arange(len(inputs)).split(batch_size)
        return torch.cat([encode(inputs[rows]).float().cpu() for rows in batches]).numpy()


def _contents(module: nn.Module) -> dict[str, bytes]:
    """A digest of every parameter and buffer by its name: dtype, shape and bits, so that NaN equals itself."""
    tensors = [*module.named_parameters(remove_duplicate=False), *module.named_buffers(remove_duplicate=False)]
    found = {}
    for name, tensor in tensors:
        digest = hashlib.blake2b(f"{tensor.dtype} {tuple(tensor.shape)}".encode(), digest_size=16)
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
        found[name] = digest.digest()
    return found
