"""Match: several pictures and several captions in, which belongs to which out."""

from __future__ import annotations

import json
from typing import Any

import gradio as gr

from clipkit.inference import Aligner, Match
from clipkit.inference.match_sheet import COLUMNS, match_tables
from demos.download import csv_button
from demos.examples import Examples
from demos.fields import AT_ONCE, GROUP, pictures_field, text_field, text_file_field
from demos.inputs import check_pictures, read_captions, read_lines, read_pictures, user_errors, verdicts

_EXAMPLE = "a dog on a beach"
_ENDINGS = [".txt", ".csv", ".tsv"]

# the columns that `clipkit match` writes
_MATCHES = f"""[{json.dumps(COLUMNS)}, ...data.pictures.map((picture, i) => {{
  const best = data.best_caption[i], pair = data.assignment.find(pair => pair[0] === i);
  const one = pair ? [data.captions[pair[1]], data.matrix[i][pair[1]]] : ["", ""];
  return [picture, data.captions[best], data.matrix[i][best], ...one];
}})]"""
_MATRIX = '[["picture", ...data.captions], ...data.matrix.map((row, i) => [data.pictures[i], ...row])]'


def match_page(model: Aligner, examples: Examples) -> None:
    """Lay out the page and connect it."""

    @user_errors
    def match(pictures: list[str] | None, captions: str = "", file: str | None = None) -> tuple[str, dict[str, Any]]:
        """Cosine similarity of every picture with every caption (one per line, and those of a .txt or .csv file), the
        best each way, one-to-one."""
        lines = read_captions(captions, file, _EXAMPLE)
        read = read_pictures(pictures, model.model.picture)
        found = model.match([picture.pixels for picture in read], lines)
        return match_tables(found, read, lines), as_data(found, [picture.name for picture in read], lines)

    def check(pictures: list[str] | None, captions: str = "", file: str | None = None) -> list[dict[str, Any]]:
        if file is None:
            return verdicts(lambda: check_pictures(pictures), lambda: read_lines(captions, "caption", _EXAMPLE), None)
        return verdicts(lambda: check_pictures(pictures), None, lambda: read_captions(captions, file, _EXAMPLE))

    with gr.Row():
        with gr.Column(min_width=280):
            pictures = pictures_field("Pictures")
        with gr.Column(min_width=280):
            captions = text_field(
                "Captions, one per line",
                lines=6,
                max_lines=16,
                placeholder=f"{_EXAMPLE}\ntwo people at a table",
                elem_id="match-captions",
            )
            file = text_file_field("and, or instead, a file of captions (.txt, .csv)", _ENDINGS, "match-file")
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

        with gr.Row():
            as_csv = gr.Button("Download matches as CSV", size="sm")
            matrix_as_csv = gr.Button("Download matrix as CSV", size="sm")

    fields, outputs = [pictures, captions, file], [table, data]
    limits: dict[str, Any] = {"concurrency_id": GROUP, "concurrency_limit": AT_ONCE}
    button.click(match, fields, outputs, api_name="match", validator=check, **limits)
    lists.load_input_event.then(match, fields, outputs, api_visibility="private", **limits)
    as_csv.click(None, data, None, js=csv_button("clipkit-matches", _MATCHES))
    matrix_as_csv.click(None, data, None, js=csv_button("clipkit-matrix", _MATRIX))


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
