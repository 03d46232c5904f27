"""Match: several pictures and several captions in, which belongs to which out."""

from __future__ import annotations

from typing import Any

import gradio as gr

from clipkit.inference import Aligner, Match
from demos.examples import Examples
from demos.fields import AT_ONCE, GROUP, pictures_field
from demos.inputs import check_pictures, read_lines, read_pictures, user_errors, verdicts
from demos.render import match_html

_EXAMPLE = "a dog on a beach"


def match_page(model: Aligner, examples: Examples) -> None:
    """Lay out the page and connect it."""

    @user_errors
    def match(pictures: list[str] | None, captions: str) -> tuple[str, dict[str, Any]]:
        """Cosine similarity of every picture with every caption (one per line), the best each way, one-to-one."""
        lines = read_lines(captions, "caption", _EXAMPLE)
        read = read_pictures(pictures, model.model.picture)
        found = model.match([picture.pixels for picture in read], lines)
        return match_html(found, read, lines), as_data(found, [picture.name for picture in read], lines)

    def check(pictures: list[str] | None, captions: str) -> list[dict[str, Any]]:
        return verdicts(lambda: check_pictures(pictures), lambda: read_lines(captions, "caption", _EXAMPLE))

    with gr.Row():
        with gr.Column(min_width=280):
            pictures = pictures_field("Pictures")
        with gr.Column(min_width=280):
            captions = gr.Textbox(
                label="Captions, one per line",
                lines=8,
                max_lines=16,
                placeholder=f"{_EXAMPLE}\ntwo people at a table",
                elem_id="match-captions",
            )
            button = gr.Button("Match", variant="primary")
            lists = gr.Examples(
                # not in the order of the pictures, so that there is something to find
                [[examples.pictures, "\n".join(reversed(examples.captions))]],
                [pictures, captions],
                example_labels=[f"{len(examples.pictures)} pictures, {len(examples.captions)} captions"],
                label="Example",
                api_visibility="private",
            )
    table = gr.HTML(label="Matches")
    with gr.Accordion("The result as data", open=False):
        data = gr.JSON(label="Matrix (pictures x captions), best each way, one-to-one pairs (picture, caption)")

    fields, outputs = [pictures, captions], [table, data]
    limits: dict[str, Any] = {"concurrency_id": GROUP, "concurrency_limit": AT_ONCE}
    button.click(match, fields, outputs, api_name="match", validator=check, **limits)
    lists.load_input_event.then(match, fields, outputs, api_visibility="private", **limits)


def as_data(found: Match, pictures: list[str], captions: list[str]) -> dict[str, Any]:
    """A ``Match`` as JSON."""
    return {
        "pictures": pictures,
        "captions": captions,
        "matrix": [[round(float(score), 4) for score in row] for row in found.matrix],
        "best_caption": [int(j) for j in found.best_caption],
        "best_picture": [int(i) for i in found.best_image],
        "assignment": [list(pair) for pair in found.assignment],
    }
