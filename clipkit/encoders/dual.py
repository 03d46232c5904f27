"""The dual encoder: an image tower, a text tower, the temperature and the bias."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from clipkit.encoders.tokens import Tokenizer
from clipkit.encoders.two_views import TwoViews, unit_rows
from clipkit.errors import ClipkitError
from clipkit.pairs import PictureSpec, normalize


class Tower(nn.Module):
    """A trunk, which may be frozen and cached, and a head on top of it.

    A frozen trunk stays in evaluation mode (its dropout and BatchNorm too) and runs without a graph, whatever mode
    the model is in.
    """

    def __init__(self, trunk: nn.Module, head: nn.Module | None = None) -> None:
        super().__init__()
        self.trunk = trunk
        self.head = head if head is not None else nn.Identity()
        self.locked = False

    def lock(self) -> None:
        """Freeze the trunk."""
        self.locked = True
        self.trunk.requires_grad_(False)
        self.trunk.eval()

    def train(self, mode: bool = True) -> Tower:
        super().train(mode)
        if self.locked:
            self.trunk.eval()
        return self

    def fingerprint(self) -> str:
        """Hash of the trunk's weights and of what it is: equal fingerprints give equal encodings."""
        digest = hashlib.blake2b(repr(self.trunk).encode(), digest_size=16)
        for name, tensor in sorted(self.trunk.state_dict().items()):
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
        return digest.hexdigest()

    def encode_trunk(self, x: Tensor) -> Tensor:
        """Trunk output (B, F): what the cache of a locked tower holds."""
        with torch.no_grad() if self.locked else nullcontext():
            return self.trunk(x)

    def forward(self, x: Tensor) -> Tensor:
        """Pixels or tokens, or a cached trunk output (B, F) in floating point -> (B, D), not normalised."""
        cached = x.ndim == 2 and x.is_floating_point()
        return self.head(x if cached else self.encode_trunk(x))


class Embeddings(NamedTuple):
    """Output of a ``DualEncoder``; a tuple, so that DDP and FSDP find the tensors in it.

    Attributes:
        images: (B, D) float, unit norm; None if no images were given.
        texts: (T, D) float, unit norm; None if no texts were given.
        log_scale: (1,) logarithm of the inverse temperature.
        bias: (1,), or None for an encoder without one.
        views: (v, B, P) float, unit norm: projections of the pictures' views, if they were given several.
        targets: (v, B, P) float, unit norm, without a gradient: the momentum encoder's, if there is one.
        queue: (M, P) past targets, if they are kept.
        view_scale: (1,) as ``log_scale``, of the views.
    """

    images: Tensor | None
    texts: Tensor | None
    log_scale: Tensor
    bias: Tensor | None
    views: Tensor | None = None
    targets: Tensor | None = None
    queue: Tensor | None = None
    view_scale: Tensor | None = None


class DualEncoder(nn.Module):
    """Two towers into one space of ``embed_dim`` dimensions, or one of them alone.

    Args:
        image, text: the towers; a model of one modality has but one.
        picture: what the image tower wants to see.
        tokenizer: captions to tokens for the text tower.
        log_scale: start of the log inverse temperature.
        bias: start of the sigmoid loss' bias, or None.
        description: plain data from which ``clipkit.encoders.rebuild`` makes the same architecture again.
        parts: configs and processors that ``rebuild`` needs besides the tokenizer, saved by their own
            ``save_pretrained``.

    Attributes:
        two_views: what a method of two views trains beside the image tower, or None.
    """

    def __init__(
        self,
        image: Tower | None,
        text: Tower | None,
        picture: PictureSpec,
        tokenizer: Tokenizer | None,
        log_scale: float,
        bias: float | None,
        description: dict[str, Any],
        parts: tuple[Any, ...] = (),
    ) -> None:
        super().__init__()
        self.image = image
        self.text = text
        self.two_views: TwoViews | None = None
        self.log_scale = nn.Parameter(torch.tensor([float(log_scale)]))
        self.bias = nn.Parameter(torch.tensor([float(bias)])) if bias is not None else None
        self.picture = picture
        self._tokenizer = tokenizer
        self.description = description
        self.parts = parts

    @property
    def tokenizer(self) -> Tokenizer:
        """Captions to tokens.

        Raises:
            ClipkitError: the model takes no text.
        """
        if self._tokenizer is None:
            raise ClipkitError("the model takes no text: it has no tokenizer")
        return self._tokenizer

    @property
    def has_tokenizer(self) -> bool:
        """Whether the model takes text."""
        return self._tokenizer is not None

    @property
    def towers(self) -> dict[str, Tower]:
        """The towers that there are, by name (``image``, ``text``)."""
        both = {"image": self.image, "text": self.text}
        return {name: tower for name, tower in both.items() if tower is not None}

    def tower(self, name: str) -> Tower:
        """The tower called ``name``.

        Raises:
            ClipkitError: the model has none of that name.
        """
        if name not in self.towers:
            raise ClipkitError(_MISSING.format(has="texts" if name == "image" else "pictures", tower=name))
        return self.towers[name]

    @property
    def of_interactions(self) -> bool:
        """Whether users and items are in the places of pictures and texts."""
        return self.description.get("kind") == "tables"

    def picture_tower(self) -> Tower:
        """The image tower.

        Raises:
            ClipkitError: the model has none, or it takes users.
        """
        if self.of_interactions:
            raise ClipkitError("the model knows users and items, not pictures")
        return self.tower("image")

    @property
    def embed_dim(self) -> int:
        """Dimensions of the shared space."""
        return int(self.description["embed_dim"])

    @property
    def templates(self) -> str | None:
        """Name of the prompts (in ``clipkit.evaluation.TEMPLATES``) that suit the text tower, if it prefers any."""
        return self.description.get("templates")

    @property
    def device(self) -> torch.device:
        """Where the parameters are."""
        return self.log_scale.device

    def encode_image(self, images: Tensor) -> Tensor:
        """Unit-norm embeddings (B, D).

        Args:
            images: uint8 (B, 3, H, W) pictures, float (B, 3, H, W) preprocessed pixels, or float (B, F) cached
                trunk outputs.
        """
        return unit_rows(self.tower("image")(self._pixels(images)))

    def encode_text(self, texts: Tensor) -> Tensor:
        """Unit-norm embeddings (B, D) of int64 (B, L) tokens or of float (B, F) cached trunk outputs."""
        return unit_rows(self.tower("text")(texts))

    def encode_view(self, images: Tensor) -> Tensor:
        """Unit-norm projections (B, P) of views, uint8 or float (B, 3, H, W); without heads, their embeddings."""
        if self.two_views is None:
            return self.encode_image(images)
        return self.two_views.project(self.tower("image").encode_trunk(self._pixels(images)))

    def _pixels(self, images: Tensor) -> Tensor:
        if images.dtype == torch.uint8:
            images = normalize(images, self.picture)
        return images.to(self.log_scale.dtype) if images.ndim == 4 else images

    def forward(
        self,
        images: Tensor | None = None,
        texts: Tensor | None = None,
        micro_batch_size: int | None = None,
        autocast: torch.dtype | None = None,
        most: tuple[int, int] = (0, 0),
    ) -> Embeddings:
        """Both towers; see ``encode_image`` and ``encode_text`` for the inputs.

        Args:
            micro_batch_size: rows encoded at a time. The graph keeps only the inputs of each piece but the very last
                and encodes it again in the backward pass, so the gradient is that of the whole batch while the memory
                is that of a piece. None encodes all rows at once.
            autocast: compute dtype of the towers, entered inside each piece: one autocast around all of them would
                add the pieces' gradients up in that dtype.
            most: rows of ``images`` and ``texts`` that the process with the most has. Where weights are sharded every
                piece is an exchange, so all processes have to cut into as many pieces as that one.
        """
        run = partial(_in_pieces, size=micro_batch_size, autocast=autocast, most=most[0])
        views = None
        if images is not None and images.ndim == 5:
            views = images.transpose(0, 1)
            # With texts, the first view is the picture that they belong to.
            images, views = (None, views) if texts is None else (views[0], views[1:])
        # The backward pass starts with what was encoded last, so only that may keep a piece's graph. It is pictures,
        # which cost most to encode again, unless their trunk has no graph.
        learn = images is not None and not self.tower("image").locked
        ends = not learn and views is None
        encoded_texts = None if texts is None else run(self.encode_text, texts, most=most[1], last=ends)
        encoded_images = None if images is None else run(self.encode_image, images, last=views is None)
        # Copies, for FSDP may free the parameters themselves when this returns.
        return Embeddings(
            encoded_images,
            encoded_texts,
            self.log_scale.clone(),
            None if self.bias is None else self.bias.clone(),
            *(self._encode_views(views, run) if views is not None else ()),
        )

    def _encode_views(self, views: Tensor, run: Callable[..., Tensor]) -> tuple[Tensor | None, ...]:
        """The last fields of ``Embeddings``. Each view is a batch of its own, as in the papers' programs: BatchNorms
        see one view at a time."""
        heads = self.two_views
        both = heads is None or heads.settings.symmetric
        seen = views if both else views[:1]
        queries = torch.stack([run(self.encode_view, view, last=i == len(seen) - 1) for i, view in enumerate(seen)])
        if heads is None:
            return queries, None, None, self.log_scale.clone()
        targets = queue = None
        if heads.momentum is not None:
            keys = views if both else views[1:]
            with torch.no_grad():
                targets = torch.stack([run(lambda v: heads.target(self._pixels(v)), view, last=True) for view in keys])
            queue = heads.queue.clone() if heads.settings.queue else None
        return queries, targets, queue, heads.log_scale.clone()

    def after_step(self, embeddings: Embeddings, progress: float) -> None:
        """What follows an update of the weights: the momentum encoder moves, its keys join the queue.

        Args:
            embeddings: of the step; if there is a queue, with all processes' targets.
            progress: share of the run that is done.
        """
        if self.two_views is not None:
            self.two_views.follow(self.tower("image"), progress)
            if embeddings.targets is not None:
                self.two_views.enqueue(embeddings.targets.flatten(0, 1))


_MISSING = "the model knows {has} only: it has no {tower} tower"


def _in_pieces(
    encode: Callable[[Tensor], Tensor],
    x: Tensor,
    size: int | None,
    autocast: torch.dtype | None,
    most: int,
    last: bool,
) -> Tensor:
    """``encode`` of pieces of ``size`` rows. All but the last of the ``last`` ones of a step are encoded again in the
    backward pass; that one is the first to be asked for its gradient, so its graph takes no memory that the others'
    would not."""

    def run(piece: Tensor) -> Tensor:
        # Without its cache of cast weights, which outlives the piece whenever any autocast is around the model: the
        # pieces' gradients would meet in that copy and be added up in bf16.
        with torch.autocast(x.device.type, autocast, cache_enabled=False) if autocast else nullcontext():
            return encode(piece)

    if size is None:
        return run(x)
    pieces = x.split(size)
    if (missing := math.ceil(most / size) - len(pieces)) > 0:
        # some go through the tower for the exchange alone: their rows are cut off again
        pieces = (*pieces, *[x[:1]] * missing)
    if len(pieces) == 1:
        return run(x)
    again = len(pieces) - last if torch.is_grad_enabled() else 0
    encoded = [checkpoint(run, piece, use_reentrant=False) for piece in pieces[:again]]
    return torch.cat([*encoded, *(run(piece) for piece in pieces[again:])])[: len(x)]
