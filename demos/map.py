"""Map: the pictures of the index in two dimensions, by label or cluster; a query shows its neighbours there."""

from __future__ import annotations

from typing import Any

import gradio as gr

from clipkit.errors import ClipkitError
from clipkit.inference import Hit, Index
from clipkit.inference.items import Item
from demos.download import csv_button
from demos.examples import Examples
from demos.fields import AT_ONCE, GROUP, check_whole, choice_field, number_field, text_field
from demos.inputs import user_errors, verdicts
from demos.plot import SCRIPT, map_html
from demos.search import NOTHING, check_length
from demos.space import MAX_GROUPS, METHODS, Groups, Space, has_umap
from demos.thumbnails import Thumbnails

_NEIGHBOURS = 12
_COUNT = "Number of clusters"
_COLOURS = ("labels", "clusters", "nothing")
_ROWS = """[["key", "caption", "x", "y", "group"],
  ...data.points.map(point => [point.key, point.caption, point.x, point.y, point.group])]"""


def map_page(tab: gr.Tab, index: Index | None, thumbnails: Thumbnails | None, examples: Examples) -> None:
    """Lay out the page and connect it; the map is drawn when its ``tab`` is opened first."""
    space = Space(index) if index is not None else None
    by_label = space is not None and space.has_labels()

    @user_errors
    def draw(
        query: str = "",
        method: str = METHODS[0],
        colour: str = _COLOURS[0] if by_label else _COLOURS[1],
        clusters: float = 8,
    ) -> tuple[str, dict[str, Any]]:
        """The pictures of the index as points from 0 to 1, laid out by PCA or UMAP, coloured by labels, clusters
        or nothing, with the pictures nearest to the query."""
        if index is None or space is None or thumbnails is None:
            raise ClipkitError(NOTHING)
        check_length(query)
        number = check_whole(clusters, _COUNT, 2, MAX_GROUPS)
        plane, groups = space.plane(method), group(space, colour, number)
        words = (query or "").strip()
        near = space.nearest(index.model.encode_text(words), _NEIGHBOURS) if words else []
        rows = space.rows.tolist()
        found = [(point, _hit(space.items[point], rows[point], score)) for point, score in near]
        names = [space.name(point) for point in range(len(rows))]
        notes = _notes(len(rows), len(index))
        html = map_html(plane, groups, names, rows, found, thumbnails.address, notes)
        points = [
            {
                "key": item.key,
                "caption": item.caption,
                "x": round(float(x), 4),
                "y": round(float(y), 4),
                "group": groups.names[int(groups.of[point])] if groups is not None else "",
            }
            for point, (item, (x, y)) in enumerate(zip(space.items, plane.points, strict=True))
        ]
        neighbours = [{"key": h.key, "caption": h.caption, "score": round(h.score, 4)} for _, h in found]
        return html, {"about": plane.about, "of": len(index), "neighbours": neighbours, "points": points}

    def first(drawn: bool, *values: Any) -> tuple[Any, ...]:
        return (gr.skip(), gr.skip(), True) if drawn or index is None else (*draw(*values), True)

    def check(query: str = "", method: Any = None, colour: Any = None, clusters: Any = 8) -> list[dict[str, Any]]:
        return verdicts(lambda: check_length(query), None, None, lambda: check_whole(clusters, _COUNT, 2, MAX_GROUPS))

    if index is None:
        gr.Markdown(f"{NOTHING}.")
    with gr.Row():
        with gr.Column(scale=2, min_width=280):
            query = text_field(
                "Show the neighbours of", value="", placeholder="a red bird", max_lines=1, elem_id="map-query"
            )
            lists = gr.Examples(
                [[words] for words in examples.queries[:4]],
                [query],
                label="Examples",
                visible=index is not None,
                api_visibility="private",
            )
        with gr.Column(scale=2, min_width=280):
            with gr.Row():
                method = choice_field("Laid out by", METHODS if has_umap() else METHODS[:1], 140)
                colours = _COLOURS if by_label else _COLOURS[1:]
                colour = choice_field("Coloured by", colours, 240)
            count = number_field(_COUNT, 2, MAX_GROUPS, 8, visible=not by_label)
            button = gr.Button("Draw", variant="primary")
    picture = gr.HTML(label="Map", js_on_load=SCRIPT, elem_id="map")
    with gr.Accordion("The result as data", open=False):
        data = gr.JSON(label="Points from 0 to 1, and the neighbours of the query", max_height=400)
        as_csv = gr.Button("Download CSV", size="sm", elem_id="map-csv")

    drawn = gr.State(False)
    fields, outputs = [query, method, colour, count], [picture, data]
    limits: dict[str, Any] = {"concurrency_id": GROUP, "concurrency_limit": AT_ONCE}
    gr.on([button.click, query.submit], draw, fields, outputs, api_name="map", validator=check, **limits)
    colour.change(lambda c: gr.update(visible=c == "clusters"), colour, count, api_visibility="private")
    gr.on([method.input, colour.input, count.release], draw, fields, outputs, api_visibility="private", **limits)
    lists.load_input_event.then(draw, fields, outputs, api_visibility="private", **limits)
    tab.select(first, [drawn, *fields], [*outputs, drawn], api_visibility="private", **limits)
    as_csv.click(None, data, None, js=csv_button("clipkit-map", _ROWS))


def group(space: Space, colour: str, clusters: int) -> Groups | None:
    """The groups that colour the points.

    Raises:
        ClipkitError: no such colouring, or a number of clusters that cannot be.
    """
    if colour not in _COLOURS:
        raise ClipkitError(f"colour {colour!r}: choose {', '.join(_COLOURS)}")
    if colour == "labels":
        return space.labels()
    return space.clusters(clusters) if colour == "clusters" else None


def _notes(shown: int, of: int) -> list[str]:
    if shown == of:
        return [f"{of:,} pictures."]
    return [f"{shown:,} of {of:,} pictures are shown, a sample that is always the same; neighbours are among these."]


def _hit(item: Item, row: int, score: float) -> Hit:
    return Hit(score, item.path, item.key, item.caption, row)
