"""open_clip's towers through clipkit: equal to open_clip's own, and cut only where that is proven."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from clipkit.config import ModelConfig
from clipkit.encoders import DualEncoder, build
from clipkit.encoders.text_length import prove_cut
from clipkit.errors import ClipkitError

KINDS = ["vit", "quick", "timm", "siglip"]
Config = Callable[[str], Path]


def theirs(path: Path, seed: int = 11) -> Any:
    """open_clip's own model of a config, as its factory makes it."""
    from open_clip.model import CLIP, CustomTextCLIP

    config = json.loads(path.read_text())
    torch.manual_seed(seed)
    custom = config.pop("custom_text", False)
    net = (CustomTextCLIP if custom else CLIP)(**config).eval()
    with torch.no_grad():
        net.logit_scale.fill_(3.0)
    return net


@pytest.fixture(scope="module")
def pair(
    open_clip_config: Config, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], tuple[Any, DualEncoder, Path]]:
    """open_clip's model, clipkit's with its weights, and the file of the weights."""
    made: dict[str, tuple[Any, DualEncoder, Path]] = {}

    def make(kind: str) -> tuple[Any, DualEncoder, Path]:
        if kind not in made:
            net = theirs(open_clip_config(kind))
            weights = tmp_path_factory.mktemp("weights") / f"{kind}.pt"
            torch.save(net.state_dict(), weights)
            config = ModelConfig(model=str(open_clip_config(kind)), pretrained=str(weights))
            made[kind] = net, build(config, sigmoid=kind == "siglip").eval(), weights
        return made[kind]

    return make


def tokens_of(captions: list[str]) -> Tensor:
    from open_clip.tokenizer import SimpleTokenizer

    return SimpleTokenizer(context_length=24)(captions)


@torch.no_grad()
@pytest.mark.parametrize("kind", KINDS)
def test_embeddings_are_open_clips(kind: str, pair: Any, captions: list[str], pixels: Tensor) -> None:
    net, model, _ = pair(kind)
    torch.testing.assert_close(model.encode_image(pixels), net.encode_image(pixels, normalize=True), rtol=0, atol=1e-5)
    tokens = tokens_of(captions)
    expected = net.encode_text(tokens, normalize=True)
    assert float(F.cosine_similarity(expected[:1], expected[1:2])) < 0.999, "a tower that says the same of everything"
    torch.testing.assert_close(model.encode_text(tokens), expected, rtol=0, atol=1e-5)
    torch.testing.assert_close(model.encode_text(model.tokenizer(captions)), expected, rtol=0, atol=1e-5)
    assert float(model.log_scale) == pytest.approx(3.0)
    assert (model.bias is not None) == (kind == "siglip")
    if kind == "siglip":
        assert float(model.bias) == pytest.approx(-10)


@torch.no_grad()
@pytest.mark.parametrize("kind", KINDS)
def test_tokens_are_open_clips_cut_where_it_is_exact(kind: str, pair: Any, captions: list[str]) -> None:
    _, model, _ = pair(kind)
    expected, got = tokens_of(captions), model.tokenizer(captions)
    assert got.dtype == torch.int64
    assert torch.equal(got, expected[:, : got.shape[1]]) and not expected[:, got.shape[1] :].any()
    if kind == "siglip":
        assert got.shape[1] == 24 and not model.tokenizer.cut
    else:
        assert got.shape[1] < 24 and expected[:, got.shape[1] - 1].any()
        for n in (1, 3):  # each row as if it were alone
            alone = model.encode_text(model.tokenizer(captions[n : n + 1]))
            together = model.encode_text(model.tokenizer(captions))[n : n + 1]
            torch.testing.assert_close(alone, together, rtol=0, atol=1e-5)
    long = model.tokenizer(["red bird " * 50])
    assert torch.equal(long, tokens_of(["red bird " * 50])) and long.shape == (1, 24)
    assert model.tokenizer([]).shape[0] == 0


@pytest.mark.parametrize("clean", ["lower", "whitespace", "canonicalize"])
def test_any_text_becomes_open_clips_tokens(clean: str, tmp_path: Path, open_clip_config: Config) -> None:
    """Plain text takes a way of its own; every sign of ASCII, alone and among letters, and what ftfy mends."""
    from open_clip.tokenizer import SimpleTokenizer

    config = json.loads(open_clip_config("vit").read_text())
    config["text_cfg"]["tokenizer_kwargs"] = {"clean": clean}
    path = tmp_path / "model.json"
    path.write_text(json.dumps(config))
    model = build(ModelConfig(model=str(path)))
    draw = np.random.default_rng(0)
    texts = [chr(n) for n in range(256)] + [f"A {chr(n)} Cat{chr(n)}s &{chr(n)}; B" for n in range(256)]
    texts += ["".join(map(chr, draw.integers(32, 127, 30))) for _ in range(300)]
    texts += ["caf\u00c3\u00a9", "\ufb01sh \u201cquoted\u201d", "&amp;amp; co", "&lt;b&gt; <i>", " two\tspaces  \n"]
    length = model.tokenizer.context_length
    wanted = SimpleTokenizer(context_length=length, clean=clean)(texts)
    found = model.tokenizer(texts)
    assert torch.equal(found, wanted[:, : found.shape[1]]) and not wanted[:, found.shape[1] :].any()


def test_cutting_is_refused_to_a_tower_that_reads_its_padding(pair: Any) -> None:
    for kind in KINDS:
        _, model, _ = pair(kind)
        difference = prove_cut(model.text, model.tokenizer)
        assert (difference > 1e-3) == (kind == "siglip") == (not model.tokenizer.cut)
        assert difference < 1e-5 or kind == "siglip"
        assert not model.text.training


def test_gradients_flow_through_a_cut_row(pair: Any, captions: list[str]) -> None:
    net, model, _ = pair("vit")
    tokens = model.tokenizer(captions)
    assert tokens.shape[1] < 24
    direction = torch.randn(4, 24, generator=torch.Generator().manual_seed(0))
    (model.encode_text(tokens) * direction).sum().backward()
    (net.encode_text(tokens_of(captions), normalize=True) * direction).sum().backward()
    found = dict(model.text.named_parameters())
    for name in ("token_embedding.weight", "positional_embedding", "transformer.resblocks.0.attn.in_proj_weight"):
        (mine,) = [p for n, p in found.items() if n.endswith(name)]
        (other,) = [p for n, p in net.named_parameters() if n.endswith(name) and not n.startswith("visual")]
        torch.testing.assert_close(mine.grad, other.grad, rtol=1e-4, atol=1e-5)
    model.zero_grad(set_to_none=True)
    net.zero_grad(set_to_none=True)


@pytest.mark.parametrize("kind", KINDS)
def test_the_reference_view_is_open_clips(kind: str, pair: Any) -> None:
    from open_clip.transform import PreprocessCfg, image_transform_v2

    _, model, _ = pair(kind)
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (50, 70, 3)).astype(np.uint8))
    transform = image_transform_v2(PreprocessCfg(size=32), is_train=False)
    assert model.picture.size == 32 and model.picture.reference is not None
    assert torch.equal(model.picture.reference(image), transform(image))


def test_a_hub_configs_preprocessing_is_kept(open_clip_config: Config, tmp_path: Path) -> None:
    """An open_clip_config.json holds preprocess_cfg beside model_cfg; SigLIP's differs from the default."""
    wanted = {"mean": [0.5] * 3, "std": [0.25] * 3, "interpolation": "bilinear", "resize_mode": "squash"}
    whole = {"model_cfg": json.loads(open_clip_config("vit").read_text()), "preprocess_cfg": wanted}
    path = tmp_path / "open_clip_config.json"
    path.write_text(json.dumps(whole))
    spec = build(ModelConfig(model=str(path))).picture
    assert (spec.size, spec.mean, spec.std) == (32, (0.5,) * 3, (0.25,) * 3)
    assert (spec.interpolation, spec.resize) == ("bilinear", "squash")


def test_fresh_weights_are_a_function_of_the_seed(open_clip_config: Config) -> None:
    config = ModelConfig(model=str(open_clip_config("vit")))
    states = [build(config, seed=seed).state_dict() for seed in (0, 0, 1)]
    assert all(torch.equal(states[0][n], states[1][n]) for n in states[0])
    assert any(not torch.equal(states[0][n], states[2][n]) for n in states[0])


def test_the_small_model_is_found_and_works(captions: list[str]) -> None:
    model = build(ModelConfig(model="small")).eval()
    images = torch.randint(0, 256, (2, 3, model.picture.size, model.picture.size), dtype=torch.uint8)
    with torch.no_grad():
        out = model(images, model.tokenizer(captions[:2]))
    assert out.images.shape == out.texts.shape == (2, 256) and model.tokenizer.cut


def test_image_size(open_clip_config: Config) -> None:
    model = build(ModelConfig(model=str(open_clip_config("vit")), image_size=48))
    assert model.picture.size == 48
    with torch.no_grad():
        assert model.encode_image(torch.zeros(1, 3, 48, 48)).shape == (1, 24)


def message(function: Callable[..., object], *arguments: object, **options: object) -> str:
    with pytest.raises(ClipkitError) as caught:
        function(*arguments, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_unknown_models_and_bad_configs(tmp_path: Path) -> None:
    assert "ViT-B-32" in message(build, ModelConfig(model="ViT-B-23"))
    assert "vit_b_32" in message(build, ModelConfig(model="vit_b_32"))
    assert "smal" in message(build, ModelConfig(model="smal"))
    assert "gone.json" in message(build, ModelConfig(model=str(tmp_path / "gone.json")))
    for text, words in (
        ("{", ["not valid JSON"]),
        ("{}", ["embed_dim", "vision_cfg", "text_cfg"]),
        ("[1]", ["embed_dim"]),
        ('{"embed_dim": 8, "vision_cfg": {}}', ["text_cfg"]),
        ('{"embed_dim": 8, "vision_cfg": {"layers": "x"}, "text_cfg": {"layerz": 2}}', []),
        ('{"embed_dim": 8, "vision_cfg": {}, "text_cfg": {}, "multimodal_cfg": {}}', ["CoCa"]),
    ):
        path = tmp_path / "model.json"
        path.write_text(text)
        said = message(build, ModelConfig(model=str(path)))
        assert "model" in said and all(word in said for word in words), said


def test_weights_that_cannot_be_had(open_clip_config: Config, tmp_path: Path, pair: Any) -> None:
    vit = str(open_clip_config("vit"))
    assert "gone.pt" in message(build, ModelConfig(model=vit, pretrained=str(tmp_path / "gone.pt")))
    said = message(build, ModelConfig(model="ViT-B-32", pretrained="openay"))
    assert "openay" in said and "openai" in said
    (tmp_path / "junk.pt").write_bytes(b"junk")
    assert "junk.pt" in message(build, ModelConfig(model=vit, pretrained=str(tmp_path / "junk.pt")))
    said = message(build, ModelConfig(model=vit, pretrained=str(pair("timm")[2])))  # another model's weights
    assert "timm.pt" in said


def test_a_pickle_is_not_executed(open_clip_config: Config, tmp_path: Path) -> None:
    trap = tmp_path / "trap"

    class Bomb:
        def __reduce__(self) -> tuple[Any, ...]:
            return (Path.touch, (trap,))

    torch.save({"state_dict": Bomb()}, tmp_path / "evil.pt")
    message(build, ModelConfig(model=str(open_clip_config("vit")), pretrained=str(tmp_path / "evil.pt")))
    assert not trap.exists()


@torch.no_grad()
def test_weights_in_safetensors_and_clipkits_own(
    open_clip_config: Config, tmp_path: Path, pair: Any, pixels: Tensor, captions: list[str]
) -> None:
    from safetensors.torch import save_file

    net, model, _ = pair("vit")
    save_file({k: v.contiguous() for k, v in net.state_dict().items()}, tmp_path / "theirs.safetensors")
    save_file({k: v.contiguous() for k, v in model.state_dict().items()}, tmp_path / "model.safetensors")
    for name in ("theirs", "model"):
        path = tmp_path / f"{name}.safetensors"
        again = build(ModelConfig(model=str(open_clip_config("vit")), pretrained=str(path))).eval()
        torch.testing.assert_close(again.encode_image(pixels), model.encode_image(pixels), rtol=0, atol=1e-6)
        tokens = model.tokenizer(captions)
        torch.testing.assert_close(again.encode_text(tokens), model.encode_text(tokens), rtol=0, atol=1e-6)


def test_weights_that_cannot_be_fetched_are_told_once(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ClipkitError, match="laion2b_s34b_b79k"):
        build(ModelConfig("ViT-B-32", pretrained="laion2b_s34b_b79k"))
    assert capfd.readouterr().err == ""
