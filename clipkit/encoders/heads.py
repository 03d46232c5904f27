"""What sits between a trunk and the shared space."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from clipkit.errors import ClipkitError


class ClassesHead(nn.Module):
    """Features to the shared space by way of the classes that a trunk was trained on.

    The trunk's own classifier gives probabilities over its classes, and the output is the mean of the class names'
    text embeddings under them (ConSE: Norouzi et al. 2014, "Zero-shot learning by convex combination of semantic
    embeddings"). Started so, the head knows photographs before it has seen a pair; training moves the embedding
    of each class and leaves the classifier as it is.

    Args:
        width: features F of the trunk.
        classes: C of its classifier.
        embed_dim: D of the shared space.
        temperature: softens the probabilities, so that a picture of something new is a mixture and not one class.
    """

    weight: Tensor
    bias: Tensor
    start: Tensor

    def __init__(self, width: int, classes: int, embed_dim: int, temperature: float = 2.0) -> None:
        super().__init__()
        self.temperature = temperature
        self.register_buffer("weight", torch.zeros(classes, width))
        self.register_buffer("bias", torch.zeros(classes))
        self.register_buffer("start", torch.zeros(classes, embed_dim))
        self.embeddings = nn.Parameter(torch.zeros(classes, embed_dim))

    @torch.no_grad()
    def begin(self, weight: Tensor, bias: Tensor, embeddings: Tensor) -> None:
        """Start from a classifier, weight (C, F) and bias (C,), and its class names' embeddings (C, D)."""
        self.weight.copy_(weight)
        self.bias.copy_(bias)
        self.start.copy_(embeddings)
        self.reset()

    @torch.no_grad()
    def reset(self) -> None:
        """Back to the start, which has seen no pair: what training has to beat."""
        self.embeddings.copy_(self.start)

    def forward(self, features: Tensor) -> Tensor:
        """(B, F) -> (B, D)."""
        logits_BC = nn.functional.linear(features, self.weight, self.bias)
        return (logits_BC / self.temperature).softmax(dim=-1) @ self.embeddings


def make_head(description: dict[str, Any]) -> nn.Module:
    """The head that ``description`` names: ``{"kind": "identity"}``, ``{"kind": "linear", "width": F, "embed_dim": D}``
    or ``{"kind": "classes", "width": F, "classes": C, "embed_dim": D}``."""
    kind = description.get("kind")
    if kind == "identity":
        return nn.Identity()
    if kind == "linear":
        head = nn.Linear(description["width"], description["embed_dim"], bias=False)
        nn.init.normal_(head.weight, std=description["width"] ** -0.5)
        return head
    if kind == "classes":
        return ClassesHead(description["width"], description["classes"], description["embed_dim"])
    raise ClipkitError(f"unknown head {kind!r} in the model's description")
