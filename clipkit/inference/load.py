"""``clipkit.load``: a run, an open_clip model or a transformers model, as an ``Aligner``."""

from __future__ import annotations

from pathlib import Path

import torch

from clipkit.encoders import DualEncoder, from_open_clip, from_transformers
from clipkit.encoders.from_open_clip import CONFIGS
from clipkit.errors import ClipkitError, did_you_mean
from clipkit.inference.aligner import Aligner


def load(
    source: str | Path, pretrained: str | None = None, *, device: str | None = None, precision: str = "float32"
) -> Aligner:
    """A model, ready to encode.

    Args:
        source: a run directory (its best or newest checkpoint), a checkpoint folder, an open_clip name with
            ``pretrained``, a transformers name such as ``openai/clip-vit-base-patch32``, or a local directory in
            transformers' or open_clip's format.
        pretrained: an open_clip tag or a checkpoint file, for open_clip names.
        device: where it runs; default: the accelerator if there is one, else the CPU.
        precision: ``float32``, or ``bf16`` for autocast.

    Raises:
        ClipkitError: nothing of that name, weights that cannot be fetched, or an unknown device.

    Example:
        >>> model = clipkit.load("runs/starter")
        >>> model = clipkit.load("ViT-B-32", pretrained="laion2b_s34b_b79k")
    """
    if precision not in ("float32", "bf16"):
        raise ClipkitError(f"precision is {precision!r}; it is 'float32' or 'bf16'")
    model = _find(str(source), pretrained)
    target = device or ("cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu")
    try:
        model = model.to(torch.device(target))
    except (RuntimeError, AssertionError) as error:
        raise ClipkitError(f"device {target!r} cannot be used: {str(error).splitlines()[0]}") from None
    return Aligner(model, str(source), torch.bfloat16 if precision == "bf16" else None)


def _find(source: str, pretrained: str | None) -> DualEncoder:
    from clipkit.training.checkpoint import FOLDER, load_model
    from clipkit.training.kept import find_checkpoint

    path = Path(source)
    brings_weights = [
        name for name in (FOLDER, "state.json", "config.json", "open_clip_config.json") if (path / name).exists()
    ]
    if pretrained is not None and brings_weights:
        raise ClipkitError(f"{source} brings its own weights; leave pretrained={pretrained!r} out")
    if (path / FOLDER).is_dir() or (path / "state.json").is_file():
        return load_model(find_checkpoint(path))
    if (path / "config.json").is_file():
        return from_transformers(path)
    if (path / "open_clip_config.json").is_file():
        weights = next((p for p in sorted(path.iterdir()) if p.suffix in (".safetensors", ".bin", ".pt")), None)
        if weights is None:
            raise ClipkitError(f"{path}: an open_clip config without weights beside it")
        return from_open_clip(str(path / "open_clip_config.json"), str(weights))
    if path.is_dir():
        raise ClipkitError(f"{path}: neither a run (no {FOLDER}/) nor a model directory (no config.json)")
    import open_clip

    if source in open_clip.list_models() or (CONFIGS / f"{source}.json").is_file() or path.suffix == ".json":
        if pretrained is None:
            tags = open_clip.list_pretrained_tags_by_model(source)
            known = f"one of {', '.join(tags)}" if tags else "a checkpoint file"
            raise ClipkitError(f"{source} needs weights: pass pretrained={known}")
        return from_open_clip(source, pretrained)
    if "/" in source and not source.startswith((".", "/", "~")) and source.count("/") == 1 and not path.suffix:
        try:
            return from_transformers(source)
        except ClipkitError as error:
            raise ClipkitError(f"{source}: no run or folder of that name here, and as a hub name: {error}") from None
    hint = did_you_mean(source, open_clip.list_models())
    raise ClipkitError(
        f"{source}: no such run, model directory or model{hint or '; train one with `clipkit train` or give a name'}"
    )
