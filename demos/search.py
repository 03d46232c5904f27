"""Search: words, a picture, or both in, the nearest pictures of the index out."""

from __future__ import annotations

from typing import Any

import gradio as gr

from clipkit.errors import ClipkitError
from clipkit.inference import Aligner, Hit, Index
from demos.download import csv_button, json_button
from demos.examples import Examples
from demos.fields import AT_ONCE, GROUP, check_whole, found_pictures, number_field, picture_field, text_field
from demos.inputs import MAX_CHARACTERS, check_picture, read_picture, text_of, user_errors, verdicts
from demos.thumbnails import Thumbnails

MAX_RESULTS = 60
_COUNT = "Number of results"
SIMILAR = 0.95  # cosine similarity from which two pictures count as alike
NOTHING = "There are no pictures to search; start the demo with --folder PICTURES or --index INDEX"

_ROWS = "[Object.keys(data[0] ?? {}), ...data.map(row => Object.values(row))]"

Found = tuple[list[tuple[str, str]], list[dict[str, Any]]]


def search_page(model: Aligner, index: Index | None, thumbnails: Thumbnails | None, examples: Examples) -> None:
    """Lay out the page and connect it."""

    @user_errors
    def search(
        words: str = "", picture: str | None = None, count: int = 12, without: str = "", hide_similar: bool = False
    ) -> Found:
        """Pictures of the index nearest to words, to a picture, or to both together, best first, with cosine
        similarities; what is in ``without`` is taken off, and ``hide_similar`` shows one of a burst."""
        if index is None or thumbnails is None:
            raise ClipkitError(NOTHING)
        check_query(words, picture)
        check_length(without)
        query: list[Any] = [words.strip()] if words and words.strip() else []
        if picture is not None:
            query.append(read_picture(picture, model.model.picture).pixels)
        minus = [without.strip()] if without and without.strip() else []
        alike = SIMILAR if hide_similar else None
        return results(
            thumbnails, index.search(query, check_whole(count, _COUNT, 1, MAX_RESULTS), minus=minus, hide_similar=alike)
        )

    def check(
        words: str = "", picture: str | None = None, count: int = 12, without: str = "", hide_similar: bool = False
    ) -> list[dict[str, Any]]:
        return verdicts(
            lambda: check_query(words, picture),
            lambda: check_picture(picture) if picture is not None else None,
            lambda: check_whole(count, _COUNT, 1, MAX_RESULTS),
            lambda: check_length(without),
            None,
        )

    if index is None:
        gr.Markdown(f"{NOTHING}.")
    with gr.Row():
        with gr.Column(scale=1, min_width=280):
            words = text_field("Words", placeholder="a red bird", max_lines=2, elem_id="search-words")
            picture = picture_field("and, or instead, a picture", "search-picture")
            without = text_field("Without", value="", placeholder="people", max_lines=1, elem_id="search-without")
            count = number_field(_COUNT, 1, MAX_RESULTS, 12)
            hide_similar = gr.Checkbox(value=False, label="Hide pictures that look alike", elem_id="search-alike")
            button = gr.Button("Search", variant="primary")
            shown = examples.pictures[:3]
            lists = gr.Examples(
                [[query, None, ""] for query in examples.queries] + [["", path, ""] for path in shown],
                [words, picture, without],
                example_labels=[*examples.queries, *(f"picture {i + 1}" for i in range(len(shown)))],
                label="Examples",
                visible=index is not None,
                api_visibility="private",
            )
        with gr.Column(scale=3, min_width=300):
            gallery = found_pictures("Pictures found, best first")
            with gr.Accordion("The result as data", open=False):
                data = gr.JSON(label="Rank, cosine similarity, key and caption")
                with gr.Row():
                    as_json = gr.Button("Download JSON", size="sm")
                    as_csv = gr.Button("Download CSV", size="sm")

    fields, outputs = [words, picture, count, without, hide_similar], [gallery, data]
    limits: dict[str, Any] = {"concurrency_id": GROUP, "concurrency_limit": AT_ONCE}
    asked = [button.click, words.submit, without.submit]
    gr.on(asked, search, fields, outputs, api_name="search", validator=check, **limits)
    picture.upload(search, fields, outputs, validator=check, api_visibility="private", **limits)
    lists.load_input_event.then(search, fields, outputs, api_visibility="private", **limits)
    as_json.click(None, data, None, js=json_button("clipkit-search"))
    as_csv.click(None, data, None, js=csv_button("clipkit-search", _ROWS))


def check_query(words: str | None, picture: str | None) -> None:
    """Something to look for, and words that are not endless."""
    if not text_of(words).strip() and picture is None:
        raise ClipkitError("type what you look for, or upload a picture")
    check_length(words)


def check_length(words: str | None) -> None:
    """Words that are not endless."""
    text = text_of(words).strip()
    if len(text) > MAX_CHARACTERS:
        raise ClipkitError(f"{len(text):,} characters; at most {MAX_CHARACTERS:,}")


def results(thumbnails: Thumbnails, hits: list[Hit]) -> Found:
    """Thumbnails with a line each, and the same as data. A picture whose file is gone is only in the data."""
    shown: list[tuple[str, str]] = []
    data: list[dict[str, Any]] = []
    for rank, hit in enumerate(hits, 1):
        data.append({"rank": rank, "score": round(hit.score, 4), "key": hit.key, "caption": hit.caption})
        try:
            shown.append((thumbnails.path(hit.row), f"{hit.score:.3f}  {hit.caption or hit.key}"))
        except ClipkitError:
            gr.Warning(f"{hit.key}: the file cannot be read any more; build the index again")
    return shown, data
