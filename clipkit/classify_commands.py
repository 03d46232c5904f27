"""``clipkit classify`` and ``clipkit calibrate``."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from clipkit.errors import ClipkitError, one_line
from clipkit.inputs import as_templates, check_output, lines_or_values, picture_paths, write_output
from clipkit.model_option import ModelOption, list_skipped

if TYPE_CHECKING:
    from clipkit.inference import Classifier
    from clipkit.training.console import Console

NONE = "none of these"


@dataclass(frozen=True)
class Classify:
    """Name pictures with labels of your own."""

    images: tyro.conf.Positional[tuple[str, ...]]
    """Pictures, or folders of them."""
    labels: tuple[str, ...] = ()
    """Class names, or one file with a name per line."""
    templates: tuple[str, ...] = ()
    """Sentences with {} in the place of the class, or the name of a set: default, photo, none."""
    calibration: str | None = None
    """File made by `clipkit calibrate`: its labels, its probabilities, and "none of these"."""
    model: tyro.conf.OmitArgPrefixes[ModelOption] = field(default_factory=ModelOption)
    k: Annotated[int, tyro.conf.arg(aliases=["-k"])] = 3
    """Labels shown for each picture."""
    json: bool = False
    """Print JSON."""

    def run(self, console: Console) -> None:
        if self.k < 1:
            raise ClipkitError(f"-k is {self.k}; it must be at least 1")
        if self.calibration is not None:
            if self.labels or self.templates:
                raise ClipkitError("--calibration brings its labels and templates; leave --labels and --templates out")
            classifier = _calibrated(self.model, self.calibration)
        else:
            labels = lines_or_values(self.labels, "--labels")
            classifier = self.model.load().classifier(labels, as_templates(self.templates))
        results = []
        bad: list[str] = []
        for path in picture_paths(self.images):
            try:
                best = classifier.top_k([path], min(self.k, len(classifier.classes_)))[0]
            except ClipkitError as error:
                bad.append(str(error))
                continue
            none = classifier.none_below is not None and best[0][1] < classifier.none_below
            found: dict[str, Any] = {"path": str(path), "labels": [{"label": n, "probability": p} for n, p in best]}
            results.append(found if classifier.none_below is None else {**found, "none_of_these": none})
            if not self.json:
                named = "  ".join(f"{name} {p:.1%}" for name, p in best)
                print(one_line(f"{path}  " + (f"{NONE} ({named})" if none else named)))
        if bad and not results:
            raise ClipkitError(bad[0] if len(bad) == 1 else f"none of {len(bad)} pictures can be read ({bad[0]})")
        if self.json:
            print(json.dumps(results, indent=2, ensure_ascii=False))
        list_skipped(bad)


@dataclass(frozen=True)
class Calibrate:
    """Make the probabilities of `clipkit classify` mean what they say, on a few labelled pictures."""

    folder: tyro.conf.Positional[str]
    """Folder with a folder of pictures for each class; one called none holds pictures that are none of them."""
    none: str = "none"
    """Name of that folder."""
    templates: tuple[str, ...] = ()
    """Sentences with {} in the place of the class, or the name of a set: default, photo, none."""
    output: str = "calibration.json"
    """File for `clipkit classify --calibration`."""
    model: tyro.conf.OmitArgPrefixes[ModelOption] = field(default_factory=ModelOption)

    def run(self, console: Console) -> None:
        from clipkit.inference.index_files import model_fingerprint

        check_output(self.output)
        root = Path(self.folder)
        there = sorted(root.iterdir()) if root.is_dir() else []
        folders = [f for f in there if f.is_dir() and not f.name.startswith(".")]
        names = [f.name for f in folders if f.name != self.none]
        if len(names) < 2:
            raise ClipkitError(
                f"{root}: {len(names)} folders of classes; a folder of pictures for each class is needed"
            )
        paths: list[Path] = []
        labels: list[str | None] = []
        for folder in folders:
            found = picture_paths([str(folder)])
            paths += found
            labels += [None if folder.name == self.none else folder.name] * len(found)
        bad = _unreadable(paths)
        list_skipped(list(bad.values()))
        whole = [(path, label) for path, label in zip(paths, labels, strict=True) if path not in bad]
        model = self.model.load()
        classifier = model.classifier(names, as_templates(self.templates))
        report = classifier.calibrate([path for path, _ in whole], [label for _, label in whole])
        written = {"model": model.name, "fingerprint": model_fingerprint(model), "labels": names,
                   "templates": list(classifier.templates), **report.to_dict()}  # fmt: skip
        write_output(self.output, json.dumps(written, indent=2, ensure_ascii=False))
        print(
            f"{report.n} pictures of {len(names)} classes, {report.n_none} of none; {report.accuracy:.1%} named right"
        )
        print(
            f"expected calibration error {report.ece_before:.1%} before, {report.ece_after:.1%} after (cross-validated)"
        )
        others = f", {report.none_found:.1%} of the others are found" if report.none_found is not None else ""
        print(f"{NONE} below {report.none_below:.1%}: {report.known_kept:.1%} of the classes' pictures stay{others}")
        print(f"try next  clipkit classify PICTURES --calibration {self.output} --model {self.model.model}")


def _unreadable(paths: list[Path]) -> dict[Path, str]:
    """Of ``paths`` those that hold no whole picture, and why."""
    from clipkit.inference.pictures import read_file
    from clipkit.pairs import decode_image

    found: dict[Path, str] = {}
    for path in paths:
        try:
            decode_image(read_file(path), str(path))
        except (OSError, ClipkitError) as error:
            found[path] = str(error)
    return found


def _calibrated(option: ModelOption, path: str) -> Classifier:
    """The classifier that was calibrated.

    Raises:
        ClipkitError: no such file, another file, or another model.
    """
    from clipkit.inference.calibration import read_calibration

    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise ClipkitError(f"{path}: cannot be read ({error.strerror}); make it with clipkit calibrate") from None
    model = option.load()
    saved = read_calibration(data, path, model)
    classifier = model.classifier(saved.labels, saved.templates)
    classifier.temperature, classifier.none_below = saved.temperature, saved.none_below
    return classifier
