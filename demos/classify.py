"""Classify: pictures and labels in, a probability for each label out."""

from __future__ import annotations

from typing import Any

import gradio as gr

from clipkit.errors import ClipkitError
from clipkit.evaluation import TEMPLATES
from clipkit.evaluation.templates import check_class_names, check_templates
from clipkit.inference import Aligner
from demos.examples import Examples
from demos.fields import AT_ONCE, GROUP, pictures_field
from demos.inputs import check_pictures, read_lines, read_pictures, user_errors, verdicts
from demos.render import bars_html

_DEFAULT_TEMPLATES = "\n".join(TEMPLATES["default"])
_NOTES = {
    "softmax": "The probabilities of a picture add up to 100 %: one of the labels is taken to be right.",
    "sigmoid": "This model judges each label by itself: the probabilities of a picture need not add up to 100 %.",
}


def classify_page(model: Aligner, examples: Examples) -> None:
    """Lay out the page and connect it."""

    @user_errors
    def classify(
        pictures: list[str] | None, labels: str, templates: str = _DEFAULT_TEMPLATES
    ) -> tuple[str, list[dict[str, Any]]]:
        """A probability of every label (one per line) for every picture; templates hold {} where the label goes."""
        names, prompts = read_labels(labels), read_templates(templates)
        read = read_pictures(pictures, model.model.picture)
        best = model.classifier(names, prompts).top_k([picture.pixels for picture in read], len(names))
        data = [
            {"picture": picture.name, "labels": [{"label": name, "probability": round(p, 5)} for name, p in row]}
            for picture, row in zip(read, best, strict=True)
        ]
        return bars_html(read, best, _NOTES[model.kind]), data

    def check(pictures: list[str] | None, labels: str, templates: str = _DEFAULT_TEMPLATES) -> list[dict[str, Any]]:
        return verdicts(
            lambda: check_pictures(pictures), lambda: read_labels(labels), lambda: read_templates(templates)
        )

    with gr.Row():
        with gr.Column(min_width=280):
            pictures = pictures_field("Pictures")
        with gr.Column(min_width=280):
            labels = gr.Textbox(
                label="Labels, one per line", lines=6, max_lines=16, placeholder="cat\ndog", elem_id="classify-labels"
            )
            with gr.Accordion("Templates: the sentences that a label is put into", open=False):
                templates = gr.Textbox(
                    label="Templates, one per line, {} stands for the label",
                    value=_DEFAULT_TEMPLATES,
                    lines=len(TEMPLATES["default"]),
                    max_lines=16,
                    elem_id="classify-templates",
                )
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

    fields, outputs = [pictures, labels, templates], [bars, data]
    limits: dict[str, Any] = {"concurrency_id": GROUP, "concurrency_limit": AT_ONCE}
    button.click(classify, fields, outputs, api_name="classify", validator=check, **limits)
    lists.load_input_event.then(classify, fields, outputs, api_visibility="private", **limits)


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
