"""The verbs that use a model: what each takes, and what it prints."""

from __future__ import annotations

import csv
import json
import os
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from clipkit.config import Config
from clipkit.errors import ClipkitError
from clipkit.inputs import check_output, lines_or_values, parse_flags, picture_paths, read_lines

if TYPE_CHECKING:  # a mistyped flag should not wait for torch: each verb imports what it needs when it runs
    from clipkit.inference import Aligner, Index
    from clipkit.training.console import Console

DEFAULT_RUN = "runs/starter"


@dataclass(frozen=True)
class _Model:
    model: str = DEFAULT_RUN
    """Run directory, model directory, or model name."""
    pretrained: str | None = None
    """Weights, for open_clip names."""
    device: str | None = None
    """cpu, cuda, mps. Default: the best there is."""
    precision: str = "float32"
    """float32, or bf16."""

    def load(self) -> Aligner:
        """The model."""
        from clipkit.inference import load

        if self.model == DEFAULT_RUN and not Path(DEFAULT_RUN).exists():
            raise ClipkitError(f"{DEFAULT_RUN}: no such run here; train it with `clipkit train`, or pass --model")
        return load(self.model, self.pretrained, device=self.device, precision=self.precision)


@dataclass(frozen=True)
class Search:
    """Find pictures by words or by a picture."""

    query: tyro.conf.Positional[str]
    """Words, or the path of a picture."""
    model: tyro.conf.OmitArgPrefixes[_Model] = field(default_factory=_Model)
    images: str | None = None
    """Folder of pictures to search. Default: the pictures that the run was tested on."""
    index: str | None = None
    """Index made by `clipkit index`."""
    n: Annotated[int, tyro.conf.arg(aliases=["-n"])] = 10
    """How many."""
    threshold: float | None = None
    """Leave out pictures whose cosine similarity is lower."""
    json: bool = False
    """Print JSON."""

    def run(self, console: Console) -> None:
        from clipkit.pairs.index import IMAGE_EXTENSIONS

        model = self.model.load()
        index = find_index(model, self.images, self.index, console)
        is_picture = Path(self.query).suffix.lower().lstrip(".") in IMAGE_EXTENSIONS
        hits = index.search(Path(self.query) if is_picture else self.query, self.n)
        hits = [h for h in hits if self.threshold is None or h.score >= self.threshold]
        if self.json:
            print(json.dumps([h.__dict__ for h in hits], indent=2, ensure_ascii=False))
            return
        for hit in hits:
            shown = hit.path if index.items[hit.row].offset < 0 else f"{hit.path}/{hit.key}"
            print(f"{hit.score:.3f}  {_relative(shown)}{'  ' + hit.caption if hit.caption else ''}")


@dataclass(frozen=True)
class MakeIndex:
    """Index a folder of pictures, to search it at once later."""

    folder: tyro.conf.Positional[str]
    """Folder of pictures; the folders in it too."""
    output: str | None = None
    """Where the index goes. Default: FOLDER.index beside the folder."""
    model: tyro.conf.OmitArgPrefixes[_Model] = field(default_factory=_Model)

    def run(self, console: Console) -> None:
        from clipkit.inference import Index

        index = Index.build(self.model.load(), self.folder, console.progress)
        output = self.output or f"{self.folder.rstrip('/')}.index"
        index.save(output)
        _list_skipped(index.skipped)
        print(f'{len(index):,} pictures indexed: clipkit search "..." --index {output} --model {self.model.model}')


@dataclass(frozen=True)
class Classify:
    """Name pictures with labels of your own."""

    images: tyro.conf.Positional[tuple[str, ...]]
    """Pictures, or folders of them."""
    labels: tuple[str, ...] = ()
    """Class names, or one file with a name per line."""
    templates: tuple[str, ...] = ()
    """Sentences with {} in the place of the class, or the name of a set: default, photo, none."""
    model: tyro.conf.OmitArgPrefixes[_Model] = field(default_factory=_Model)
    k: Annotated[int, tyro.conf.arg(aliases=["-k"])] = 3
    """Labels shown for each picture."""
    json: bool = False
    """Print JSON."""

    def run(self, console: Console) -> None:
        labels = lines_or_values(self.labels, "--labels")
        if self.k < 1:
            raise ClipkitError(f"-k is {self.k}; it must be at least 1")
        classifier = self.model.load().classifier(labels, _templates(self.templates))
        results = []
        bad: list[str] = []
        for path in picture_paths(self.images):
            try:
                best = classifier.top_k([path], min(self.k, len(labels)))[0]
            except ClipkitError as error:
                bad.append(str(error))
                continue
            results.append({"path": str(path), "labels": [{"label": n, "probability": p} for n, p in best]})
            if not self.json:
                print(f"{path}  " + "  ".join(f"{name} {p:.1%}" for name, p in best))
        if bad and not results:
            raise ClipkitError(bad[0] if len(bad) == 1 else f"none of {len(bad)} pictures can be read ({bad[0]})")
        if self.json:
            print(json.dumps(results, indent=2, ensure_ascii=False))
        _list_skipped(bad)


@dataclass(frozen=True)
class MatchPairs:
    """Match pictures with captions: the best caption of each picture, and the one-to-one assignment."""

    images: tyro.conf.Positional[str]
    """Folder of pictures, or one picture."""
    captions: tyro.conf.Positional[str]
    """File with a caption per line."""
    output: str | None = None
    """CSV for the result. Default: printed."""
    model: tyro.conf.OmitArgPrefixes[_Model] = field(default_factory=_Model)

    def run(self, console: Console) -> None:
        paths, captions = picture_paths([self.images]), read_lines(self.captions)
        check_output(self.output)
        match = self.model.load().match(paths, captions)
        assigned = dict(match.assignment)
        rows: list[list[str]] = []
        for i, path in enumerate(paths):
            best = int(match.best_caption[i])
            one = assigned.get(i)
            rows.append(
                [
                    str(path),
                    captions[best],
                    f"{match.matrix[i, best]:.4f}",
                    captions[one] if one is not None else "",
                    f"{match.matrix[i, one]:.4f}" if one is not None else "",
                ]
            )
        header = ["picture", "best_caption", "score", "assigned_caption", "assigned_score"]
        if self.output:
            with open(self.output, "w", newline="", encoding="utf-8") as file:
                csv.writer(file).writerows([header, *rows])
            print(f"{len(rows)} pictures and {len(captions)} captions matched: {self.output}")
        else:
            csv.writer(sys.stdout, lineterminator="\n").writerows([header, *rows])


@dataclass(frozen=True)
class Evaluate:
    """Measure a model: retrieval on pictures with captions, zero-shot classification on pictures with labels."""

    model_name: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="MODEL")] = DEFAULT_RUN
    """Run directory, model directory, or model name."""
    data: str | None = None
    """Shards, a table of pictures and captions, or a folder with a folder of pictures per class. Default: the run's
    own held-out data."""
    split: str | None = None
    """Split of the data, if it has several. Default: test, else val."""
    templates: tuple[str, ...] = ()
    """Prompts for classes: sentences with {}, or the name of a set: default, photo, none."""
    languages: tuple[str, ...] = ()
    """Also measure text to image with the names in these languages (codes as de fr ja, or all), if the data has any."""
    image_column: str | None = None
    """Column of a table that holds the picture's path."""
    caption_column: str | None = None
    """Column of a table that holds the caption."""
    pretrained: str | None = None
    """Weights, for open_clip names."""
    device: str | None = None
    """cpu, cuda, mps."""
    precision: str = "float32"
    """float32, or bf16."""
    output: str | None = None
    """JSON file for all figures."""

    def run(self, console: Console) -> None:
        from clipkit.measure import measure

        check_output(self.output)
        model = _Model(self.model_name, self.pretrained, self.device, self.precision).load()
        config = Config().replace(image_column=self.image_column, caption_column=self.caption_column)
        templates = _templates(self.templates)
        measured = measure(model, self.data, self.split, config, templates, list(self.languages), console)
        if self.output:
            Path(self.output).write_text(json.dumps(measured, indent=2, ensure_ascii=False), encoding="utf-8")
            print(f"figures: {self.output}")


@dataclass(frozen=True)
class Embed:
    """Write the embeddings of pictures, or of the lines of a text file, for other tools."""

    inputs: tyro.conf.Positional[tuple[str, ...]]
    """Pictures, folders of pictures, or one .txt file."""
    output: str = "embeddings"
    """OUTPUT.npy (float32, unit norm, a row each) and OUTPUT.parquet (what each row is)."""
    model: tyro.conf.OmitArgPrefixes[_Model] = field(default_factory=_Model)

    def run(self, console: Console) -> None:
        import numpy as np
        import pyarrow as pa
        import pyarrow.parquet as pq

        check_output(self.output)
        model = self.model.load()
        if len(self.inputs) == 1 and self.inputs[0].endswith(".txt"):
            names = read_lines(self.inputs[0])
            rows = model.encode_text(names)
        else:
            paths = picture_paths(self.inputs)
            names, rows = [str(p) for p in paths], model.encode_image(paths, show_progress=console.terminal)
        np.save(f"{self.output}.npy", rows)
        pq.write_table(pa.table({"input": names}), f"{self.output}.parquet")
        print(f"{len(names)} embeddings of {model.embed_dim} dimensions: {self.output}.npy, {self.output}.parquet")


_VERBS: dict[str, Any] = {
    "search": Search,
    "index": MakeIndex,
    "classify": Classify,
    "match": MatchPairs,
    "evaluate": Evaluate,
    "embed": Embed,
}


def run(name: str, arguments: list[str]) -> int:
    """Parse ``arguments`` for the verb ``name`` and run it."""
    verb = parse_flags(_VERBS[name], arguments, f"clipkit {name}")
    from clipkit.training.console import Console

    verb.run(Console(speaks=True))
    return 0


def find_index(model: Aligner, images: str | None, index: str | None, console: Console) -> Index:
    """The index to search: a saved one, one of a folder made on the spot, or the run's own."""
    from clipkit.inference import Index
    from clipkit.training.checkpoint import FOLDER

    if index is not None:
        return Index.open(index, model)
    if images is not None:
        built = Index.build(model, images, console.progress)
        _list_skipped(built.skipped)
        return built
    own = Path(model.name) / "index"
    if not (Path(model.name) / FOLDER).is_dir() or not own.is_dir():
        raise ClipkitError("nothing to search: pass --images FOLDER, or --index made by `clipkit index`")
    return Index.open(own, model)


def _templates(values: tuple[str, ...]) -> str | list[str] | None:
    if not values:
        return None
    return values[0] if len(values) == 1 else list(values)


def _list_skipped(reasons: list[str]) -> None:
    for reason in reasons[:5]:
        print(f"clipkit: skipped {reason}", file=sys.stderr)
    if len(reasons) > 5:
        print(f"clipkit: skipped {len(reasons) - 5} more", file=sys.stderr)


def _relative(path: str) -> str:
    """``path`` from here, if that is shorter."""
    relative = os.path.relpath(path)
    return relative if len(relative) < len(path) else path
