"""Search: words or a picture in, the nearest pictures of the index out."""

from __future__ import annotations

from typing import Any

import gradio as gr

from clipkit.errors import ClipkitError
from clipkit.inference import Aligner, Hit, Index
from demos.examples import Examples
from demos.fields import AT_ONCE, GROUP, found_pictures, picture_field
from demos.inputs import MAX_CHARACTERS, check_picture, read_picture, user_errors, verdicts
from demos.thumbnails import Thumbnails

MAX_RESULTS = 60
_NOTHING = "There are no pictures to search; start the demo with --folder PICTURES or --index INDEX"

Found = tuple[list[tuple[str, str]], list[dict[str, Any]]]


def search_page(model: Aligner, index: Index | None, examples: Examples) -> None:
    """Lay out the page and connect it."""
    thumbnails = Thumbnails(index) if index is not None else None

    @user_errors
    def search(words: str = "", picture: str | None = None, count: int = 12) -> Found:
        """Pictures of the index nearest to words or to a picture, best first, with cosine similarities."""
        if index is None or thumbnails is None:
            raise ClipkitError(_NOTHING)
        check_words(words, picture)
        query: Any = words.strip() if words and words.strip() else None
        if query is None and picture is not None:
            query = read_picture(picture, model.model.picture).pixels
        return results(thumbnails, index.search(query, int(count)))

    def check(words: str = "", picture: str | None = None, count: int = 12) -> list[dict[str, Any]]:
        return verdicts(
            lambda: check_words(words, picture),
            lambda: check_picture(picture) if picture is not None else None,
            None,
        )

    if index is None:
        gr.Markdown(f"{_NOTHING}.")
    with gr.Row():
        with gr.Column(scale=1, min_width=280):
            words = gr.Textbox(label="Words", placeholder="a red bird", max_lines=2, elem_id="search-words")
            picture = picture_field("or a picture")
            count = gr.Slider(1, MAX_RESULTS, value=12, step=1, label="Number of results")
            button = gr.Button("Search", variant="primary")
            shown = examples.pictures[:3]
            lists = gr.Examples(
                [[query, None] for query in examples.queries] + [["", path] for path in shown],
                [words, picture],
                example_labels=[*examples.queries, *(f"picture {i + 1}" for i in range(len(shown)))],
                label="Examples",
                visible=index is not None,
                api_visibility="private",
            )
        with gr.Column(scale=3, min_width=300):
            gallery = found_pictures("Pictures found, best first")
            with gr.Accordion("The result as data", open=False):
                data = gr.JSON(label="Rank, cosine similarity, key and caption")

    fields, outputs = [words, picture, count], [gallery, data]
    limits: dict[str, Any] = {"concurrency_id": GROUP, "concurrency_limit": AT_ONCE}
    gr.on([button.click, words.submit], search, fields, outputs, api_name="search", validator=check, **limits)
    # A query is words or a picture: giving one takes the other back, in the browser
    words.input(None, None, picture, js="() => null")
    by_picture = picture.upload(None, None, words, js="() => ''")
    by_picture.then(search, fields, outputs, validator=check, api_visibility="private", **limits)

    lists.load_input_event.then(search, fields, outputs, api_visibility="private", **limits)


def check_words(words: str | None, picture: str | None) -> None:
    """Exactly one of the two, and words that are not endless."""
    text = (words or "").strip()
    if not text and picture is None:
        raise ClipkitError("type what you look for, or upload a picture")
    if text and picture is not None:
        raise ClipkitError("words and a picture are both given; clear one of them")
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
