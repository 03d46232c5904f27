"""report.html: what a run learned, on one page that needs nothing but itself.

`write_report` reads what the run left in its directory (`config.yaml`, `metrics.jsonl`) and takes what only
the trainer has at hand: the evaluation reports and some pictures.
"""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from clipkit.errors import ClipkitError
from clipkit.evaluation.examples import PictureMatch, best_and_worst
from clipkit.training.report.html import finite, page
from clipkit.training.report.pictures import heatmap, retrievals
from clipkit.training.report.scores import classes, scores
from clipkit.training.report.sections import details, headline, thanks, training
from clipkit.training.report.style import STYLE

# A picture of the report: an image, its encoded bytes, or its path; None where there is none.
Picture = Image.Image | bytes | Path | str | None


@dataclass(frozen=True)
class PairExample:
    """A picture and one of its captions, for the heatmap."""

    image: Picture
    caption: str


@dataclass(frozen=True)
class RetrievedCaption:
    """A caption retrieved for a picture: its cosine, whether it is the picture's own, and its own picture."""

    caption: str
    score: float
    correct: bool
    image: Picture = None


@dataclass(frozen=True)
class RetrievalExample:
    """A picture, the best of its captions with its cosine and rank (from 1), and what was retrieved first."""

    image: Picture
    caption: str
    score: float
    rank: int
    retrieved: tuple[RetrievedCaption, ...] = ()


@dataclass(frozen=True)
class Examples:
    """What the report shows of single pictures; `similarity` is (captions, pictures) of `pairs`, cosine."""

    pairs: tuple[PairExample, ...] = ()
    similarity: np.ndarray | None = None
    best: tuple[RetrievalExample, ...] = ()
    worst: tuple[RetrievalExample, ...] = ()


def collect_examples(
    image_ND: np.ndarray,
    text_MD: np.ndarray,
    image_of_text_M: np.ndarray,
    captions: Sequence[str],
    picture: Callable[[int], Picture],
    *,
    n_pairs: int = 8,
    n_retrievals: int = 6,
    seed: int = 0,
) -> Examples:
    """Choose what to show from the embeddings that were evaluated.

    image_ND, text_MD, image_of_text_M: as for `clipkit.evaluation.retrieval`; captions: the M texts.
    picture: returns the picture of a row of image_ND; called only for those that are shown.
    The pairs of the heatmap are drawn at random with `seed`, each with the first of its captions: neither
    the best nor the worst, but what a reader would see on opening the data anywhere.
    """
    if len(captions) != len(text_MD):
        raise ClipkitError(f"there are {len(captions)} captions for {len(text_MD)} text embeddings")
    owner_M = np.asarray(image_of_text_M)
    best, worst = best_and_worst(image_ND, text_MD, owner_M, n=n_retrievals)

    def example(match: PictureMatch) -> RetrievalExample:
        found = tuple(
            RetrievedCaption(captions[text], score, own, picture(int(owner_M[text])))
            for text, score, own in match.retrieved
        )
        caption = captions[match.caption]
        return RetrievalExample(picture(match.picture), caption, match.score, match.rank, found)

    rng = np.random.default_rng(seed)
    chosen = np.sort(rng.choice(len(image_ND), size=min(n_pairs, len(image_ND)), replace=False))
    first = [int(np.flatnonzero(owner_M == i)[0]) for i in chosen]
    return Examples(
        pairs=tuple(PairExample(picture(int(i)), captions[t]) for i, t in zip(chosen, first, strict=True)),
        similarity=np.asarray(text_MD)[first] @ np.asarray(image_ND)[chosen].T,
        best=tuple(map(example, best)),
        # a small model of few pictures may have no misses at all
        worst=tuple(example(match) for match in worst if match.rank > 1),
    )


def write_report(
    run_dir: Path | str,
    *,
    evaluation: Mapping[str, Any] | None = None,
    examples: Examples | None = None,
    environment: Mapping[str, Any] | None = None,
    notes: Sequence[str] = (),
    credits: Sequence[str] = (),
    title: str | None = None,
) -> Path:
    """Write `run_dir/report.html` and return its path.

    evaluation: title → a RetrievalReport or ZeroShotReport, or its to_dict(). A dict may carry "baseline",
        the same report of the model that was not trained, and "baseline_name" to say what that is.
        Shown in the given order; the first one makes the headline.
    examples: pictures to show, see `collect_examples`.
    environment: what the run ran on; default: the versions of Python and the main libraries.
    notes: sentences about the run (samples that could not be read, …).
    credits: whose the pictures are, and on what terms they are shown.
    title: the line above the headline, default the directory's name.

    The page has no addresses to load from, adapts to light and dark and to a phone, and is replaced
    atomically. Missing or half-written records are left out, not an error: a report of a run that was
    killed is still worth reading.
    """
    run_dir = Path(run_dir)
    if not run_dir.is_dir():
        raise ClipkitError(f"{run_dir} is not a directory: a report is written into a run directory")
    records = read_metrics(run_dir / "metrics.jsonl")
    train = [record for record in records if record.get("kind") == "train" and finite(record.get("step"))]
    evals = [record for record in records if record.get("kind") == "eval" and finite(record.get("step"))]
    reports = {name: _plain(report) for name, report in (evaluation or {}).items()}
    examples = examples or Examples()
    encode = thumbnail_encoder()

    config_path = run_dir / "config.yaml"
    config = config_path.read_text(encoding="utf-8", errors="replace") if config_path.is_file() else ""
    body = [
        headline(title or run_dir.resolve().name, train, reports, notes),
        scores(reports),
        heatmap(examples.pairs, examples.similarity, encode),
        retrievals(examples.best, examples.worst, encode),
        classes(reports),
        training(train, evals),
        details(config, dict(environment) if environment is not None else _environment()),
        thanks(credits),
    ]
    document = page(title or run_dir.resolve().name, STYLE, body)
    path = run_dir / "report.html"
    partial = path.with_name(f".report.html.{os.getpid()}")
    with partial.open("w", encoding="utf-8") as file:
        file.write(document)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)
    return path


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The records of a metrics.jsonl; a line that is no JSON object (a run killed mid-line) is left out."""
    if not path.is_file():
        return []
    records = []
    for line in path.read_text(encoding="utf-8", errors="replace").split("\n"):
        try:
            record = json.loads(line)
        except ValueError:
            continue
        if isinstance(record, dict):
            records.append(record)
    return records


def thumbnail_encoder(size: int = 128) -> Callable[[Picture], str]:
    """A function from a picture to a data: address of at most size × size pixels; "" if it cannot be read.

    A picture that is shown in several places is encoded once. Transparency becomes white, as on paper.
    """
    known: dict[Any, str] = {}
    alive = []  # id() names an object only while it lives

    def encode(picture: Picture) -> str:
        if picture is None:
            return ""
        key = id(picture) if isinstance(picture, Image.Image) else picture
        if key not in known:
            alive.append(picture)
            known[key] = _thumbnail(picture, size)
        return known[key]

    return encode


def _thumbnail(picture: Image.Image | bytes | Path | str, size: int) -> str:
    import base64

    try:
        if not isinstance(picture, Image.Image):
            picture = Image.open(BytesIO(picture) if isinstance(picture, bytes) else picture)
        image = picture.convert("RGBA")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return ""
    image.thumbnail((size, size), Image.Resampling.LANCZOS)
    flat = Image.new("RGB", image.size, "white")
    flat.paste(image, mask=image.getchannel("A"))
    buffer = BytesIO()
    flat.save(buffer, "JPEG", quality=82, optimize=True)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()


def _plain(report: Any) -> dict[str, Any]:
    """A report as a dict, with its baseline as a dict too."""
    plain = dict(report.to_dict() if hasattr(report, "to_dict") else report)
    if plain.get("baseline") is not None:
        plain["baseline"] = _plain(plain["baseline"])
    return plain


def _environment() -> dict[str, str]:
    found = {"Python": platform.python_version(), "system": f"{platform.system()} {platform.machine()}"}
    found["processors"] = str(os.cpu_count())
    for name in ("torch", "torchvision", "open_clip_torch", "timm", "transformers", "accelerate", "numpy"):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found
