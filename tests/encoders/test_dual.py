"""The dual encoder: pieces of a batch, autocast, frozen trunks, cached outputs."""

from __future__ import annotations

import math
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from clipkit.encoders import DualEncoder, Tower
from clipkit.objectives import compare, infonce
from clipkit.pairs import PictureSpec, normalize


class Words(nn.Module):
    """Mean of word embeddings, and a layer."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.table = nn.Embedding(50, width)
        self.layer = nn.Linear(width, width)

    def forward(self, tokens: Tensor) -> Tensor:
        return torch.tanh(self.layer(self.table(tokens).mean(1)))


def dual(
    width: int = 16, dropout: float = 0.0, dtype: torch.dtype = torch.float64, batchnorm: bool = False
) -> DualEncoder:
    torch.manual_seed(0)
    layers: list[nn.Module] = [nn.Flatten(), nn.Linear(3 * 64, width), nn.GELU(), nn.Dropout(dropout)]
    trunk = nn.Sequential(*layers, *([nn.BatchNorm1d(width)] if batchnorm else []), nn.Linear(width, width))
    image, text = Tower(trunk, nn.Linear(width, 8)), Tower(Words(width), nn.Linear(width, 8, bias=False))
    spec = PictureSpec(size=8, mean=(0.5,) * 3, std=(0.5,) * 3)
    tokenizer: Any = None
    return DualEncoder(image, text, spec, tokenizer, math.log(10), -1.0, {"embed_dim": 8}).to(dtype)


def batch(n: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(n)
    images = torch.randint(0, 256, (n, 3, 8, 8), generator=generator, dtype=torch.uint8)
    return images, torch.randint(0, 50, (n, 6), generator=generator)


def gradients(model: DualEncoder, n: int, **options: Any) -> dict[str, Tensor]:
    model.zero_grad(set_to_none=True)
    embeddings = model(*batch(n), **options)
    infonce(compare(embeddings, torch.arange(n), torch.arange(n))).backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def test_embeddings_are_unit_and_shaped() -> None:
    model = dual()
    images, texts = batch(5)
    out = model(images, texts)
    assert out.images.shape == out.texts.shape == (5, 8)
    for x in (out.images, out.texts):
        torch.testing.assert_close(x.norm(dim=1), torch.ones(5, dtype=torch.float64))
    assert out.log_scale.shape == out.bias.shape == (1,)
    assert torch.equal(out.log_scale, model.log_scale) and out.log_scale.requires_grad
    assert out.log_scale is not model.log_scale, "FSDP may free the parameter's storage when forward returns"
    assert model(images).texts is None and model(texts=texts).images is None
    torch.testing.assert_close(model(images).images, model.encode_image(images))
    torch.testing.assert_close(model(texts=texts).texts, model.encode_text(texts))


def test_bytes_and_their_normalised_pixels_are_the_same() -> None:
    model = dual(dtype=torch.float32)
    images, _ = batch(3)
    torch.testing.assert_close(model.encode_image(images), model.encode_image(normalize(images, model.picture)))


@pytest.mark.parametrize("size", [1, 3, 7, 12, 13, 100])
def test_micro_batches_give_the_gradient_of_the_whole(size: int) -> None:
    model = dual()
    whole = gradients(model, 12)
    pieces = gradients(model, 12, micro_batch_size=size)
    assert set(pieces) == set(whole) == {n for n, _ in model.named_parameters()}
    for name in whole:
        torch.testing.assert_close(pieces[name], whole[name], rtol=1e-12, atol=1e-12, msg=name)


def test_micro_batches_keep_only_their_inputs() -> None:
    """What a piece's layers save for the backward pass is gone before the next piece is encoded."""
    model = dual(width=256)
    images, texts = batch(32)

    def kept(size: int | None) -> int:
        numbers: list[int] = []

        def pack(tensor: Tensor) -> Tensor:
            numbers.append(tensor.numel() if tensor.ndim > 1 and len(tensor) <= 32 else 0)  # activations, not weights
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
            model(normalize(images, model.picture), texts, size)
        return sum(numbers)

    assert kept(4) < kept(None) / 2


@pytest.mark.parametrize(
    ("given", "texts", "images"),
    [("both", 2 * 4, 2 * 4 - 1), ("images", 0, 2 * 4 - 1), ("texts", 2 * 4 - 1, 0), ("views", 2 * 4, 3 * 2 * 4 - 1),
     ("locked", 2 * 4 - 1, 2 * 4 - 1)],
)  # fmt: skip
def test_all_pieces_but_the_very_last_are_encoded_twice(given: str, texts: int, images: int) -> None:
    """The backward pass begins with the last piece, so its graph may stay; any other's would add to the peak."""
    model, calls = dual(), {"image": 0, "text": 0}
    pixels, tokens = batch(12)
    for name, tower in model.towers.items():
        tower.trunk.register_forward_hook(lambda *_, name=name: calls.__setitem__(name, calls[name] + 1))
    if given == "locked":
        model.image.lock()
    if given == "views":
        pixels = pixels[:, None].repeat(1, 3, 1, 1, 1)  # the picture of the text, and two more views
    out = model(None if given == "texts" else pixels, None if given == "images" else tokens, micro_batch_size=3)
    sum(x.square().sum() + x.sum() for x in (out.images, out.texts, out.views) if x is not None).backward()
    assert calls == {"image": images, "text": texts}


@pytest.mark.parametrize("size", [1, 5])
def test_without_a_graph_pieces_are_only_pieces(size: int) -> None:
    model = dual()
    images, texts = batch(12)
    with torch.no_grad():
        whole, pieces = model(images, texts), model(images, texts, micro_batch_size=size)
    torch.testing.assert_close(pieces.images, whole.images, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(pieces.texts, whole.texts, rtol=1e-12, atol=1e-12)


def test_dropout_is_replayed() -> None:
    """The second encoding of a piece must draw the masks of the first."""
    model = dual(dropout=0.5).train()
    n, size = 12, 4
    torch.manual_seed(7)
    got = gradients(model, n, micro_batch_size=size)
    torch.manual_seed(7)
    model.zero_grad(set_to_none=True)
    images, texts = batch(n)
    unit_images = torch.cat([model.encode_image(piece) for piece in images.split(size)])
    unit_texts = torch.cat([model.encode_text(piece) for piece in texts.split(size)])
    scores = model.log_scale.exp() * unit_images @ unit_texts.T
    ((F.cross_entropy(scores, torch.arange(n)) + F.cross_entropy(scores.T, torch.arange(n))) / 2).backward()
    for name, parameter in model.named_parameters():
        if name != "bias":
            torch.testing.assert_close(got[name], parameter.grad, rtol=1e-12, atol=1e-12, msg=name)


def relative_error(got: dict[str, Tensor], exact: dict[str, Tensor]) -> float:
    error = sum(float((got[n].double() - exact[n].double()).square().sum()) for n in exact)
    return math.sqrt(error / sum(float(exact[n].double().square().sum()) for n in exact))


def summed_gradients(model: DualEncoder, n: int, **options: Any) -> dict[str, Tensor]:
    """Of the sum of one coordinate over the batch: all rows pull the same way, so lost low bits add up."""
    model.zero_grad(set_to_none=True)
    out = model(*batch(n), **options)
    (out.images[:, 0].sum() + out.texts[:, 0].sum()).backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("outer", [None, False, True])
def test_bf16_in_many_pieces_is_as_exact_as_in_one(outer: bool | None) -> None:
    """Pieces' gradients are added up in float32, also when somebody (Accelerate) has entered autocast outside: a
    disabled one is enough to keep the cache of bf16 weights alive from piece to piece."""
    model, n = dual(width=32, dtype=torch.float32), 256
    exact = summed_gradients(dual(width=32), n)
    one = relative_error(summed_gradients(model, n, autocast=torch.bfloat16), exact)
    around = nullcontext() if outer is None else torch.autocast("cpu", dtype=torch.bfloat16, enabled=outer)
    with around:
        many = relative_error(summed_gradients(model, n, autocast=torch.bfloat16, micro_batch_size=1), exact)
    assert 1e-4 < one < 0.01, "bf16 was not used, or not only in the towers"
    assert many < 1.5 * one


def test_autocast_gives_float32_embeddings() -> None:
    model = dual(dtype=torch.float32)
    out = model(*batch(4), autocast=torch.bfloat16)
    assert out.images.dtype == out.texts.dtype == torch.float32
    assert float((out.images.norm(dim=1) - 1).abs().max()) < 1e-6
    exact = model(*batch(4))
    assert 0 < float((out.images - exact.images).abs().max()) < 0.02


@pytest.mark.parametrize("size", [None, 3])
def test_a_locked_trunk_gets_no_gradient_and_stays_in_evaluation(size: int | None) -> None:
    model = dual(dropout=0.5, batchnorm=True)
    model.image.lock()
    before = {k: v.clone() for k, v in model.image.trunk.state_dict().items()}
    model.train()
    assert not any(m.training for m in model.image.trunk.modules())
    assert not any(p.requires_grad for p in model.image.trunk.parameters()), "the optimizer would decay them"
    assert model.image.training and model.image.head.training and model.text.trunk.training
    found = gradients(model, 9, micro_batch_size=size)
    assert set(found) == {n for n, _ in model.named_parameters() if not n.startswith("image.trunk")}
    assert all(torch.equal(v, before[k]) for k, v in model.image.trunk.state_dict().items())
    images, _ = batch(4)
    assert torch.equal(model.encode_image(images), model.encode_image(images))
    model.eval().train()
    assert not model.image.trunk.training and not model.image.encode_trunk(images.double().flatten(1)).requires_grad


def test_both_trunks_locked_still_train_heads_and_temperature() -> None:
    model = dual()
    model.image.lock()
    model.text.lock()
    whole, pieces = gradients(model, 9), gradients(model, 9, micro_batch_size=2)
    assert set(whole) == {"image.head.weight", "image.head.bias", "text.head.weight", "log_scale", "bias"}
    for name in whole:
        torch.testing.assert_close(pieces[name], whole[name], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("size", [None, 4])
def test_cached_trunk_outputs_pass_to_the_head(size: int | None) -> None:
    model = dual(dtype=torch.float32)
    model.image.lock()
    model.text.lock()
    images, texts = batch(9)
    cached_images = model.image.encode_trunk(normalize(images, model.picture))
    cached_texts = model.text.encode_trunk(texts)
    assert cached_images.shape == cached_texts.shape == (9, 16)
    expected, got = model(images, texts, size), model(cached_images, cached_texts, size)
    torch.testing.assert_close(got.images, expected.images)
    torch.testing.assert_close(got.texts, expected.texts)


def test_fingerprints_tell_trunks_apart() -> None:
    one, same = dual(), dual()
    assert one.image.fingerprint() == same.image.fingerprint()
    before = same.image.fingerprint()
    with torch.no_grad():
        same.image.head.weight.add_(1)  # type: ignore[operator, union-attr]
    assert same.image.fingerprint() == before, "the head is not part of what is cached"
    with torch.no_grad():
        next(same.image.trunk.parameters()).flatten()[0].add_(1e-9)
    assert same.image.fingerprint() != before
    assert dual(dtype=torch.float32).image.fingerprint() != before
    bn = dual(batchnorm=True)
    before = bn.image.fingerprint()
    bn.image.trunk[4].running_mean.add_(1)  # type: ignore[index]
    assert bn.image.fingerprint() != before, "buffers count too"
    assert dual(dtype=torch.bfloat16).image.fingerprint()


def test_fingerprints_see_what_no_weight_shows() -> None:
    """Equal fingerprints promise equal encodings: pooling and padding are no weights, and change every one."""
    from clipkit.encoders.from_pair import PooledText

    class Encoder(nn.Module):
        def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Any:
            raise NotImplementedError

    variants = [(0, "mean"), (0, "cls"), (1, "mean")]
    prints = {Tower(PooledText(Encoder(), pad, pooling)).fingerprint() for pad, pooling in variants}
    assert len(prints) == len(variants)


def test_ddp_and_optimizers_see_one_element_parameters() -> None:
    model = dual()
    assert model.log_scale.shape == (1,) and model.bias is not None and model.bias.shape == (1,)
    assert float(model.log_scale.exp()) == pytest.approx(10)
