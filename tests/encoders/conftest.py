"""Tiny models made on the spot: configs for open_clip, directories for transformers. Nothing is fetched."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

WORDS = [
    "a",
    "the",
    "photo",
    "of",
    "red",
    "small",
    "bird",
    "dog",
    "dogs",
    "two",
    "run",
    "on",
    "branch",
    "in",
    "front",
    "white",
    "wall",
    "cat",
    "sleeps",
    "under",
    "table",
]

CAPTIONS = [
    "a bird",
    "two dogs run",
    "a photo of a small red bird on a branch in front of a white wall",
    "the cat sleeps under the table",
]


@pytest.fixture(scope="session")
def captions() -> list[str]:
    """Captions of several lengths, whose words the tiny tokenizers know."""
    return CAPTIONS


@pytest.fixture(scope="session")
def pixels() -> torch.Tensor:
    """float32 (4, 3, 32, 32)."""
    return torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(3))


def _text(**changes: Any) -> dict[str, Any]:
    return {"context_length": 24, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2, **changes}


VIT = {"image_size": 32, "layers": 2, "width": 32, "head_width": 16, "patch_size": 16}
OPEN_CLIP = {
    "vit": {"embed_dim": 24, "vision_cfg": VIT, "text_cfg": _text()},
    "quick": {"embed_dim": 24, "quick_gelu": True, "vision_cfg": VIT, "text_cfg": _text()},
    "timm": {
        "embed_dim": 24,
        "vision_cfg": {
            "timm_model_name": "test_convnext", "timm_model_pretrained": False, "timm_pool": "",
            "timm_proj": "linear", "image_size": 32,
        },
        "text_cfg": _text(),
    },
    "siglip": {
        "embed_dim": 32,
        "init_logit_bias": -10,
        "init_logit_scale": 2.3,
        "custom_text": True,
        "vision_cfg": {**VIT, "pool_type": "avg", "no_ln_pre": True},
        "text_cfg": _text(no_causal_mask=True, pool_type="last", proj_type="none"),
    },
}  # fmt: skip


@pytest.fixture(scope="session")
def open_clip_config(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """``open_clip_config(kind)``: the JSON file of a tiny model: vit, quick, timm or siglip."""
    folder = tmp_path_factory.mktemp("configs")
    for kind, config in OPEN_CLIP.items():
        (folder / f"tiny-{kind}.json").write_text(json.dumps(config))
    return lambda kind: folder / f"tiny-{kind}.json"


def _tokenizer(kind: str, length: int) -> Any:
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    special = {"bert": ["[PAD]", "[UNK]", "[CLS]", "[SEP]"], "clip": ["<pad>", "<unk>", "<bos>", "<eos>"]}
    special["siglip"] = special["clip"]
    pad, unk, first, last = special[kind]
    # the end token has the highest number, as CLIP's pooling wants it
    vocabulary = {word: n for n, word in enumerate([pad, unk, first, *WORDS, last])}
    inner = Tokenizer(models.WordLevel(vocabulary, unk_token=unk))
    inner.normalizer = normalizers.Lowercase()
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    template = f"$A {last}" if kind == "siglip" else f"{first} $A {last}"
    specials = [(token, vocabulary[token]) for token in (first, last)]
    inner.post_processor = processors.TemplateProcessing(single=template, special_tokens=specials)
    roles = {"cls_token": first, "sep_token": last} if kind == "bert" else {"bos_token": first, "eos_token": last}
    return PreTrainedTokenizerFast(
        tokenizer_object=inner, model_max_length=length, pad_token=pad, unk_token=unk, **roles
    )


TOWER = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48}


@pytest.fixture(scope="session")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Directory of a BERT with random weights and a tokenizer of 24 words."""
    from transformers import BertConfig, BertModel

    folder = tmp_path_factory.mktemp("tiny-bert")
    tokenizer = _tokenizer("bert", 40)
    tokenizer.save_pretrained(folder)
    torch.manual_seed(1)
    config = BertConfig(**TOWER, vocab_size=len(tokenizer), max_position_embeddings=40, pad_token_id=0)
    BertModel(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def transformers_model(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """``transformers_model("clip" | "siglip")``: a directory with weights, tokenizer and processor."""
    folders: dict[str, Path] = {}

    def make(kind: str) -> Path:
        if kind in folders:
            return folders[kind]
        import transformers as t

        folder = folders[kind] = tmp_path_factory.mktemp(f"tiny-{kind}")
        tokenizer = _tokenizer(kind, 24)
        tokenizer.save_pretrained(folder)
        last = tokenizer.eos_token_id
        text = {**TOWER, "vocab_size": len(tokenizer), "max_position_embeddings": 24, "eos_token_id": last}
        text |= {"bos_token_id": tokenizer.bos_token_id, "pad_token_id": 0}
        vision = {**TOWER, "image_size": 32, "patch_size": 16}
        torch.manual_seed(2)
        if kind == "clip":
            config: Any = t.CLIPConfig(text_config=text, vision_config=vision, projection_dim=24)
            model: Any = t.CLIPModel(config)
            processor: Any = t.CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
        else:
            config = t.SiglipConfig(text_config=text, vision_config=vision)
            model = t.SiglipModel(config)
            processor = t.SiglipImageProcessor(size={"height": 32, "width": 32})
        with torch.no_grad():  # their initial weights are so small that all captions look alike
            for parameter in model.parameters():
                if parameter.ndim > 1:
                    parameter.normal_(std=0.3)
            model.logit_scale.fill_(2.5)
            if kind == "siglip":
                model.logit_bias.fill_(-7.0)
        model.eval().save_pretrained(folder)
        processor.save_pretrained(folder)
        return folder

    return make
