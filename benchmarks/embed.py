"""Building an index and a zero-shot head, beside open_clip with the same model, weights and inputs.

    python benchmarks/embed.py FOLDER [--models ViT-B-32 small] [--pictures 64] [--classes 10] [--threads 2]

FOLDER holds pictures. A model is one that open_clip knows, or clipkit's own ``small``; both sides read it from a folder
in open_clip's format, with random weights, which cost what trained ones cost. Beside ``Index.build`` stands the usual
loop: PIL, open_clip's own preprocessing, batches of 32. Beside ``model.classifier`` stands
``open_clip.build_zero_shot_classifier`` with the 80 templates that open_clip has for ImageNet, on the first classes of
ImageNet whose prompts are the same by both (clipkit writes "an" before a vowel). Each runs in a process of its own;
pictures per second are of the clock and want an idle machine; CPU seconds are disturbed little by other programs.
``tower`` is the image tower alone for as many pictures: on a CPU no loop can be faster than that.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from isolated import in_process, measured, pin_threads
from machine import write

BATCH = 32


def names_and_templates(n: int) -> tuple[list[str], list[str]]:
    """n class names, and 80 templates with {}."""
    import open_clip

    from clipkit.evaluation import fill

    templates = [template("{}") for template in open_clip.OPENAI_IMAGENET_TEMPLATES]
    same = [c for c in open_clip.IMAGENET_CLASSNAMES if all(fill(t, c) == t.format(c) for t in templates)]
    return same[:n], templates


def theirs(arguments: dict[str, Any]) -> Any:
    """open_clip's model with the weights, its preprocessing, and its tokenizer."""
    import open_clip

    name = f"local-dir:{arguments['model']}"
    model, _, preprocess = open_clip.create_model_and_transforms(name)
    return model.eval(), preprocess, open_clip.get_tokenizer(name)


def one(arguments: dict[str, Any]) -> dict[str, Any]:
    """One of the four, or the tower alone, in this process; what it made is saved as ``output``."""
    import torch

    torch.set_num_threads(arguments["threads"])
    run = {"pictures clipkit": pictures_clipkit, "pictures open_clip": pictures_open_clip, "tower": tower,
           "head clipkit": head_clipkit, "head open_clip": head_open_clip}[arguments["what"]](arguments)  # fmt: skip
    made: list[Any] = []
    figures = measured(lambda: made.append(run()))
    if made[0] is not None:
        np.save(arguments["output"], made[0])
    return figures


def pictures_clipkit(arguments: dict[str, Any]) -> Any:
    """``Index.build``."""
    import clipkit

    model = clipkit.load(arguments["model"], device="cpu")
    model.encode_image(np.zeros((64, 64, 3), dtype=np.uint8))
    return lambda: clipkit.Index.build(model, arguments["folder"]).embeddings


def pictures_open_clip(arguments: dict[str, Any]) -> Any:
    """The usual loop."""
    import torch
    from PIL import Image

    model, preprocess, _ = theirs(arguments)
    paths = sorted(Path(arguments["folder"]).iterdir())

    def run() -> Any:
        rows = []
        with torch.inference_mode():
            for start in range(0, len(paths), BATCH):
                pixels = torch.stack([preprocess(Image.open(path)) for path in paths[start : start + BATCH]])
                rows.append(model.encode_image(pixels, normalize=True))
        return torch.cat(rows).numpy()

    return run


def tower(arguments: dict[str, Any]) -> Any:
    """The image tower alone, on pixels that are there."""
    import torch

    model, preprocess, _ = theirs(arguments)
    size = preprocess.transforms[0].size
    pixels = torch.randn(BATCH, 3, size, size) if isinstance(size, int) else torch.randn(BATCH, 3, *size)
    n = len(list(Path(arguments["folder"]).iterdir()))

    def run() -> None:
        with torch.inference_mode():
            for start in range(0, n, BATCH):
                model.encode_image(pixels[: n - start])

    return run


def head_clipkit(arguments: dict[str, Any]) -> Any:
    """``model.classifier``."""
    import clipkit
    from clipkit.evaluation import classifier_weights

    model = clipkit.load(arguments["model"], device="cpu")
    names, templates = names_and_templates(arguments["classes"])
    model.encode_text("a")
    return lambda: classifier_weights(model.encode_text, names, templates)


def head_open_clip(arguments: dict[str, Any]) -> Any:
    """``open_clip.build_zero_shot_classifier``."""
    import open_clip

    model, _, tokenizer = theirs(arguments)
    names, templates = names_and_templates(arguments["classes"])
    return lambda: open_clip.build_zero_shot_classifier(
        model, tokenizer, names, [lambda c, t=t: t.format(c) for t in templates], num_classes_per_batch=10
    ).numpy().T  # fmt: skip


def picture_links(folder: Path, source: str, n: int) -> Path:
    """A folder of links to the first ``n`` pictures of ``source``."""
    from clipkit.inputs import picture_paths

    folder.mkdir()
    for i, path in enumerate(picture_paths([source])[:n]):
        (folder / f"{i:06d}{path.suffix.lower()}").symlink_to(path.resolve())
    return folder


def model_folder(folder: Path, name: str) -> Path:
    """Config and random weights of ``name`` in open_clip's format."""
    import open_clip
    import torch
    from safetensors.torch import save_file

    from clipkit.encoders.from_open_clip import CONFIGS

    if name == "small":
        open_clip.add_model_config(CONFIGS / f"{name}.json")
    torch.manual_seed(0)
    model = open_clip.create_model(name)
    folder.mkdir()
    described = {"model_cfg": open_clip.get_model_config(name), "preprocess_cfg": model.visual.preprocess_cfg}
    (folder / "open_clip_config.json").write_text(json.dumps(described))
    save_file({k: v.contiguous() for k, v in model.state_dict().items()}, folder / "open_clip_model.safetensors")
    return folder


def compared(name: str, folder: Path, pictures: Path, classes: int, threads: int) -> dict[str, Any]:
    """Both sides' figures with the model ``name``, printed on the way."""
    model = model_folder(folder / name, name)
    figures: dict[str, Any] = {}
    made: dict[str, Any] = {}
    for what in ("pictures clipkit", "pictures open_clip", "tower", "head clipkit", "head open_clip"):
        output = folder / f"{name} {what}.npy"
        arguments = {"what": what, "model": str(model), "output": str(output), "folder": str(pictures),
                     "classes": classes, "threads": threads}  # fmt: skip
        got = in_process(__file__, arguments)
        if got is None:
            raise SystemExit(f"{what} failed")
        figures[what] = got
        made[what] = np.load(output) if output.exists() else None
        print(f"{name:10} {what:20} {got['cpu_seconds']:8.1f} CPU s {got['wall_seconds']:8.1f} s", flush=True)
    cosine = (made["pictures clipkit"] * made["pictures open_clip"]).sum(axis=1)
    n = len(made["pictures clipkit"])
    ratios = {
        "pictures_per_second": n / figures["pictures clipkit"]["wall_seconds"],
        "pictures_ratio": figures["pictures open_clip"]["wall_seconds"] / figures["pictures clipkit"]["wall_seconds"],
        "pictures_cpu_ratio": figures["pictures open_clip"]["cpu_seconds"] / figures["pictures clipkit"]["cpu_seconds"],
        "pictures_cosine_min": float(cosine.min()),
        "head_ratio": figures["head open_clip"]["wall_seconds"] / figures["head clipkit"]["wall_seconds"],
        "head_cpu_ratio": figures["head open_clip"]["cpu_seconds"] / figures["head clipkit"]["cpu_seconds"],
        "head_difference": float(np.abs(made["head clipkit"] - made["head open_clip"]).max()),
    }
    for key, value in ratios.items():
        print(f"{name:10} {key:24}{value:.5g}")
    return figures | ratios


def main() -> None:
    """Measure all, print the ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="?")
    parser.add_argument("--models", nargs="+", default=["ViT-B-32", "small"])
    parser.add_argument("--pictures", type=int, default=64)
    parser.add_argument("--classes", type=int, default=10)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--one", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(one(json.loads(options.one))))
        return
    pin_threads(options.threads)
    figures: dict[str, Any] = {"threads": options.threads, "pictures": options.pictures, "classes": options.classes,
                               "templates": 80, "models": {}}  # fmt: skip
    with tempfile.TemporaryDirectory(prefix="clipkit-embed-") as temporary:
        pictures = picture_links(Path(temporary) / "pictures", options.folder, options.pictures)
        for name in options.models:
            figures["models"][name] = compared(name, Path(temporary), pictures, options.classes, options.threads)
            write("embed", figures)


if __name__ == "__main__":
    main()
