"""The pages in a real browser, as a person uses them: headless Chromium, driven by playwright."""

from __future__ import annotations

import csv
import json
import sys
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from demo_helpers import add_pictures, field, open_tab

from clipkit.inference import Index

pytestmark = pytest.mark.slow
PAGES = ("Search", "Match captions", "Classify", "Map", "Model")


def test_a_query_typed_in_shows_the_right_picture_first(page: Any, index: Index) -> None:
    field(page, "search-words").fill("a red square")
    field(page, "search-words").press("Enter")
    page.wait_for_selector(".ck-found img")
    hit = index.search("a red square", 1)[0]
    first = page.locator(".ck-found button, .ck-found figure").filter(has=page.locator("img")).first
    assert f"{hit.score:.3f}" in first.inner_text() and hit.key in first.inner_text()
    assert page.locator(".ck-found img").first.get_attribute("alt"), "a screen reader is told what is there"


def test_the_result_is_saved_as_it_is_shown(page: Any, index: Index, tmp_path: Path) -> None:
    field(page, "search-words").fill("a square")
    field(page, "search-without").fill("red")
    page.get_by_role("button", name="Search", exact=True).click()
    page.wait_for_selector(".ck-found img")
    page.get_by_text("The result as data").click()
    for ending in ("json", "csv"):
        with page.expect_download() as download:
            page.get_by_role("button", name=f"Download {ending.upper()}").click()
        download.value.save_as(tmp_path / f"found.{ending}")
    hits = index.search("a square", 12, minus="red")
    rows = json.loads((tmp_path / "found.json").read_text())
    assert [row["key"] for row in rows] == [hit.key for hit in hits]
    with (tmp_path / "found.csv").open(newline="") as file:
        assert [row["key"] for row in csv.DictReader(file)] == [hit.key for hit in hits]


def test_a_mistake_is_told_beside_the_field(page: Any) -> None:
    page.get_by_role("button", name="Search", exact=True).click()
    page.locator("#search-words").get_by_text("type what you look for").wait_for()


def test_an_unreadable_upload_is_told_beside_the_field(page: Any, tmp_path: Path) -> None:
    broken = tmp_path / "broken.png"
    broken.write_text("no picture")
    page.locator("#search-picture input[type=file]").set_input_files(str(broken))
    page.locator("#search-picture").get_by_text("broken.png: not a picture").wait_for()
    open_tab(page, "Match captions")
    add_pictures(page, broken)
    field(page, "match-captions").fill("a cat")
    page.get_by_role("button", name="Match", exact=True).click()
    page.locator("[role=tabpanel]:visible .ck-several").get_by_text("broken.png: not a picture").wait_for()


def test_a_bomb_is_refused_beside_the_field(page: Any, tmp_path: Path) -> None:
    from PIL import Image

    bomb = tmp_path / "bomb.png"
    Image.new("1", (9000, 9000)).save(bomb)
    page.locator("#search-picture input[type=file]").set_input_files(str(bomb))
    page.locator("#search-picture").get_by_text("9000x9000 pixels").wait_for()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_page_fits_a_phone_and_can_be_read(page: Any, scheme: str) -> None:
    page.emulate_media(color_scheme=scheme)
    page.set_viewport_size({"width": 390, "height": 800})
    page.reload()
    field(page, "search-words").fill("a square")
    field(page, "search-words").press("Enter")
    page.wait_for_selector(".ck-found img")
    for name, ready in zip(PAGES, ("body", ".ck-matrix", ".ck-bars", ".ck-plot circle", ".ck-report"), strict=True):
        open_tab(page, name)
        if name in ("Match captions", "Classify"):  # with its example, one click
            page.locator("[role=tabpanel]:visible button.example, [role=tabpanel]:visible .gallery-item").first.click()
        page.wait_for_selector(ready)
        assert page.evaluate("document.documentElement.scrollWidth") <= 390, name
    ink, paper = page.evaluate(
        """() => { const style = getComputedStyle(document.querySelector(".gradio-container"));
        return [style.color, getComputedStyle(document.body).backgroundColor].map(
          colour => colour.match(/[0-9.]+/g).slice(0, 3).reduce((sum, part) => sum + Number(part), 0) / 765); }"""
    )
    assert (ink < 0.35 and paper > 0.9) if scheme == "light" else (ink > 0.8 and paper < 0.2)


def test_every_picture_says_what_it_is_and_every_field_what_it_is_for(page: Any) -> None:
    field(page, "search-words").fill("a square")
    field(page, "search-words").press("Enter")
    page.wait_for_selector(".ck-found img")
    for name, ready in zip(PAGES, ("body", ".ck-matrix", ".ck-bars", ".ck-plot circle", ".ck-report"), strict=True):
        open_tab(page, name)
        if name in ("Match captions", "Classify"):
            page.locator("[role=tabpanel]:visible button.example, [role=tabpanel]:visible .gallery-item").first.click()
        page.wait_for_selector(ready)
        silent = page.evaluate("""() => [...document.querySelectorAll("[role=tabpanel] img")].filter(
            image => image.checkVisibility() && !image.alt).map(image => image.outerHTML.slice(0, 200))""")
        assert silent == [], name
        nameless = page.evaluate(
            """() => [...document.querySelectorAll("[role=tabpanel] :is(button, textarea, input)")].filter(
            part => part.checkVisibility() && !(part.innerText || part.ariaLabel || part.title || part.labels?.length ||
              part.getAttribute("aria-labelledby"))).map(part => part.outerHTML.slice(0, 200))"""
        )
        assert nameless == [], name
