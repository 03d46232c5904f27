"""Classify: pictures and labels in, a probability for each label and "none of these" out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gradio as gr

from clipkit.errors import ClipkitError
from clipkit.evaluation.templates import check_class_names, check_templates
from clipkit.inference import Aligner
from clipkit.inference.calibration import SavedCalibration, read_calibration
from demos.download import csv_button
from demos.examples import Examples
from demos.fields import AT_ONCE, GROUP, pictures_field, real_field, text_field, text_file_field
from demos.inputs import check_pictures, check_text, read_lines, read_pictures, user_errors, verdicts
from demos.render import bars_html

_NOTES = {
    "softmax": "The probabilities of a picture add up to 100 %: one of the labels is taken to be right.",
    "sigmoid": "This model judges each label by itself: the probabilities of a picture need not add up to 100 %.",
}
_ROWS = """[["picture", "none_of_these", "label", "probability"], ...data.flatMap(row => row.labels.map(
  best => [row.picture, row.none_of_these ?? "", best.label, best.probability]))]"""


def classify_page(model: Aligner, examples: Examples, calibration: SavedCalibration | None = None) -> None:
    """Lay out the page and connect it.

    Args:
        calibration: what the fields start with; by default the model's own templates and no threshold.
    """
    start = "\n".join(calibration.templates if calibration else check_templates(model.model.templates))

    @user_errors
    def classify(
        pictures: list[str] | None,
        labels: str,
        templates: str = start,
        none_below: float | None = 0,
        temperature: float | None = 1,
    ) -> tuple[str, list[dict[str, Any]]]:
        """A probability of every label (one per line) for every picture; templates hold {} where the label goes. A
        picture whose best probability is lower than ``none_below`` (0 to 1) is none of these; logits are divided by
        ``temperature``."""
        names, prompts = read_labels(labels), read_templates(templates)
        threshold = check_threshold(none_below)
        read = read_pictures(pictures, model.model.picture)
        classifier = model.classifier(names, prompts)
        classifier.temperature = check_temperature(temperature)
        best = classifier.top_k([picture.pixels for picture in read], len(names))
        data: list[dict[str, Any]] = [
            {"picture": picture.name, "labels": [{"label": name, "probability": float(f"{p:.5g}")} for name, p in row]}
            for picture, row in zip(read, best, strict=True)
        ]
        if threshold:
            for entry, row in zip(data, best, strict=True):
                entry["none_of_these"] = row[0][1] < threshold
        return bars_html(read, best, _NOTES[model.kind], threshold), data

    def check(
        pictures: list[str] | None,
        labels: str,
        templates: str = start,
        none_below: float | None = 0,
        temperature: float | None = 1,
    ) -> list[dict[str, Any]]:
        return verdicts(
            lambda: check_pictures(pictures),
            lambda: read_labels(labels),
            lambda: read_templates(templates),
            lambda: check_threshold(none_below),
            lambda: check_temperature(temperature),
        )

    def read_file(path: str | None) -> SavedCalibration | None:
        return read_calibration(check_text(path), Path(path).name, model) if path is not None else None

    @user_errors
    def use(path: str | None) -> tuple[Any, ...]:
        """What is in a calibration file, into the fields."""
        saved = read_file(path)
        if saved is None:
            return (gr.skip(),) * 4
        return "\n".join(saved.labels), "\n".join(saved.templates), saved.none_below, saved.temperature

    with gr.Row():
        with gr.Column(min_width=280):
            pictures = pictures_field("Pictures")
        with gr.Column(min_width=280):
            labels = text_field(
                "Labels, one per line",
                value="\n".join(calibration.labels) if calibration else "",
                lines=6,
                max_lines=16,
                placeholder="cat\ndog",
                elem_id="classify-labels",
            )
            with gr.Accordion("Templates: the sentences that a label is put into", open=False):
                templates = text_field(
                    "Templates, one per line, {} stands for the label",
                    value=start,
                    lines=start.count("\n") + 1,
                    max_lines=16,
                    elem_id="classify-templates",
                )
            with gr.Accordion("None of these, and calibration", open=calibration is not None):
                with gr.Row():
                    none_below = real_field(
                        calibration.none_below if calibration else 0,
                        label="None of these below",
                        info="probability from 0 to 1; 0: never",
                        step=0.01,
                        min_width=120,
                        elem_id="classify-none",
                    )
                    temperature = real_field(
                        calibration.temperature if calibration else 1,
                        label="Temperature",
                        info="1: as the model is; more: less sure",
                        step=0.1,
                        min_width=120,
                        elem_id="classify-temperature",
                    )
                file = text_file_field("A file made by clipkit calibrate", [".json"], "classify-file")
            button = gr.Button("Classify", variant="primary")
            lists = gr.Examples(
                [[examples.pictures, "\n".join(examples.labels)]],
                [pictures, labels],
                example_labels=[f"{len(examples.pictures)} pictures: {', '.join(examples.labels)}"],
                label="Example",
                api_visibility="private",
            )
    bars = gr.HTML(label="Probabilities")
    with gr.Accordion("The result as data", open=False):
        data = gr.JSON(label="Labels of each picture, best first")
        as_csv = gr.Button("Download CSV", size="sm", elem_id="classify-csv")

    fields, outputs = [pictures, labels, templates, none_below, temperature], [bars, data]
    limits: dict[str, Any] = {"concurrency_id": GROUP, "concurrency_limit": AT_ONCE}
    button.click(classify, fields, outputs, api_name="classify", validator=check, **limits)
    lists.load_input_event.then(classify, fields, outputs, api_visibility="private", **limits)
    file.upload(
        use,
        file,
        [labels, templates, none_below, temperature],
        validator=lambda path: verdicts(lambda: read_file(path))[0],  # not a list where there is one field
        api_visibility="private",
    )
    as_csv.click(None, data, None, js=csv_button("clipkit-classes", _ROWS))


def read_labels(text: str | None) -> list[str]:
    """Class names, one per line, none twice."""
    names = read_lines(text, "label", "cat")
    twice = next((name for i, name in enumerate(names) if name in names[:i]), None)
    if twice is not None:
        raise ClipkitError(f"the label {twice!r} is there twice; leave one out")
    return check_class_names(names)


def read_templates(text: str | None) -> list[str]:
    """Sentences with one {} each."""
    return list(check_templates(read_lines(text, "template", "a photo of a {}.")))


def check_threshold(value: float | None) -> float:
    """A probability; an empty field is 0."""
    share = _number(value, 0.0, "none of these below")
    if not 0 <= share <= 1:
        raise ClipkitError(f"none of these below {share:g}: a probability is a number from 0 to 1")
    return share


def check_temperature(value: float | None) -> float:
    """A number above 0; an empty field is 1."""
    temperature = _number(value, 1.0, "temperature")
    if not 1e-6 <= temperature <= 1e6:  # beyond, probabilities are 0, 1, or no numbers
        raise ClipkitError(f"temperature {temperature:g}: give a number above 0; 1 leaves the model as it is")
    return temperature


def _number(value: Any, empty: float, what: str) -> float:
    if value is None or value == "":
        return empty
    try:
        return float(value)
    except (TypeError, ValueError, OverflowError):
        raise ClipkitError(f"{what}: {value!r} is no number") from None
