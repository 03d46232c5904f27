"""Tiny models with random weights, made offline, and pictures of every usual kind."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from clipkit.inference import Index

WORDS = ["a", "photo", "of", "the", "red", "green", "blue", "bird", "dog", "cat", "on", "in", "two", "small", "wall"]
VISION = {"image_size": 32, "layers": 2, "width": 32, "head_width": 16, "patch_size": 16}
TEXT = {"context_length": 24, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2}
CONFIGS: dict[str, dict[str, Any]] = {
    "clip": {"embed_dim": 24, "vision_cfg": VISION, "text_cfg": TEXT},
    "sigmoid": {
        "embed_dim": 32, "init_logit_bias": -10, "init_logit_scale": 2.3, "custom_text": True,
        "vision_cfg": {**VISION, "pool_type": "avg", "no_ln_pre": True},
        "text_cfg": {**TEXT, "no_causal_mask": True, "pool_type": "last", "proj_type": "none"},
    },
}  # fmt: skip


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CLIPKIT_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str], tuple[Path, Path]]:
    """``checkpoint("clip" | "sigmoid", "pt" | "safetensors")``: JSON config and weights, as open_clip has them."""
    made: dict[tuple[str, str], tuple[Path, Path]] = {}
    folder = tmp_path_factory.mktemp("open-clip")

    def make(kind: str = "clip", ending: str = "safetensors") -> tuple[Path, Path]:
        if (kind, ending) in made:
            return made[kind, ending]
        import open_clip
        from safetensors.torch import save_file

        config = folder / f"tiny-{kind}.json"
        config.write_text(json.dumps(CONFIGS[kind]))
        open_clip.add_model_config(config)
        torch.manual_seed(5)
        model = open_clip.create_model(f"tiny-{kind}")
        with torch.no_grad():  # what training would change, so that a weight that is not loaded shows
            for parameter in model.parameters():
                parameter.add_(0.02 * torch.randn_like(parameter))
        path = folder / f"tiny-{kind}.{ending}"
        state = {k: v.contiguous() for k, v in model.state_dict().items()}
        save_file(state, path) if ending == "safetensors" else torch.save(state, path)
        made[kind, ending] = config, path
        return config, path

    return make


@pytest.fixture(scope="session")
def theirs(checkpoint: Any) -> Callable[[str], tuple[Any, Any, Any]]:
    """``theirs(kind)``: open_clip's own model with the same weights, its preprocessing and its tokenizer."""
    import open_clip

    def make(kind: str = "clip") -> tuple[Any, Any, Any]:
        _, path = checkpoint(kind, "safetensors")
        name = f"tiny-{kind}"
        model, _, preprocess = open_clip.create_model_and_transforms(name, pretrained=str(path))
        return model.eval(), preprocess, open_clip.get_tokenizer(name)

    return make


@pytest.fixture(scope="session")
def model(checkpoint: Any) -> Any:
    """A tiny CLIP through ``clipkit.load``."""
    import clipkit

    config, path = checkpoint("clip", "safetensors")
    return clipkit.load(config, pretrained=path, device="cpu")


@pytest.fixture(scope="session")
def sigmoid_model(checkpoint: Any) -> Any:
    """A tiny SigLIP through ``clipkit.load``."""
    import clipkit

    config, path = checkpoint("sigmoid", "safetensors")
    return clipkit.load(config, pretrained=path, device="cpu")


@pytest.fixture(scope="session")
def transformers_clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Directory of a tiny transformers CLIP with its processor and tokenizer, as save_pretrained leaves it."""
    import transformers as t
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

    folder = tmp_path_factory.mktemp("tiny-clip")
    vocabulary = {word: n for n, word in enumerate(["<pad>", "<unk>", "<bos>", *WORDS, "<eos>"])}
    inner = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    inner.normalizer = normalizers.Lowercase()
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    inner.post_processor = processors.TemplateProcessing(
        single="<bos> $A <eos>", special_tokens=[(token, vocabulary[token]) for token in ("<bos>", "<eos>")]
    )
    tokenizer = t.PreTrainedTokenizerFast(
        tokenizer_object=inner, model_max_length=20, pad_token="<pad>", unk_token="<unk>", bos_token="<bos>",
        eos_token="<eos>",
    )  # fmt: skip
    tower = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48}
    config = t.CLIPConfig(
        text_config={
            **tower, "vocab_size": len(vocabulary), "max_position_embeddings": 20, "pad_token_id": 0,
            "bos_token_id": vocabulary["<bos>"], "eos_token_id": vocabulary["<eos>"],
        },
        vision_config={**tower, "image_size": 32, "patch_size": 16},
        projection_dim=24,
    )  # fmt: skip
    torch.manual_seed(3)
    t.CLIPModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    t.CLIPImageProcessor(
        size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}, image_mean=[0.4, 0.5, 0.6],
        image_std=[0.2, 0.3, 0.25],
    ).save_pretrained(folder)  # fmt: skip
    return folder


def _picture(seed: int, size: tuple[int, int] = (47, 38), mode: str = "RGB") -> Image.Image:
    """Smooth colours, as photographs have them: what a resize does with noise says little."""
    small = np.random.default_rng(seed).integers(0, 256, (5, 6, 3)).astype(np.uint8)
    image = Image.fromarray(small).resize(size, Image.Resampling.BICUBIC)
    if mode in ("RGBA", "LA"):
        image = image.convert(mode)
        image.putalpha(Image.fromarray(np.tile(np.linspace(0, 255, size[0]), (size[1], 1)).astype(np.uint8)))
        return image
    return image.convert(mode)


@pytest.fixture(scope="session")
def picture() -> Callable[..., Image.Image]:
    """``picture(seed, (width, height), mode)``."""
    return _picture


@pytest.fixture(scope="session")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Six pictures: JPEG and PNG, several shapes, grey, transparent, turned by EXIF."""
    folder = tmp_path_factory.mktemp("files")
    kinds = [
        ("plain.jpg", (47, 38), "RGB"), ("tall.jpg", (33, 90), "RGB"), ("plain.png", (64, 64), "RGB"),
        ("grey.jpg", (50, 40), "L"), ("clear.png", (40, 41), "RGBA"), ("turned.jpg", (60, 40), "RGB"),
    ]  # fmt: skip
    for seed, (name, size, mode) in enumerate(kinds):
        image = _picture(seed, size, mode)
        options: dict[str, Any] = {"quality": 95} if name.endswith("jpg") else {}
        if name == "turned.jpg":
            exif = Image.Exif()
            exif[0x0112] = 6
            options["exif"] = exif
        image.save(folder / name, **options)
    return [folder / name for name, _, _ in kinds]


@pytest.fixture(scope="session")
def png() -> Callable[[Image.Image], bytes]:
    """A picture's PNG bytes."""

    def encode(image: Image.Image) -> bytes:
        buffer = io.BytesIO()
        image.save(buffer, "PNG")
        return buffer.getvalue()

    return encode


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, picture: Any) -> Path:
    """Twelve pictures, some in folders, and what is no picture."""
    root = tmp_path_factory.mktemp("pictures")
    for i in range(12):
        path = root / ("deep/er" if i % 3 == 0 else ".") / f"{i:02d}.{'jpg' if i % 2 else 'PNG'}"
        path.parent.mkdir(parents=True, exist_ok=True)
        picture(i).save(path)
    (root / "note.txt").write_text("no picture")
    return root


@pytest.fixture(scope="module")
def index(model: Any, folder: Path) -> Index:
    return Index.build(model, folder)
