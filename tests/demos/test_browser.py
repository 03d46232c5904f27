"""The pages in a real browser, as a person uses them: headless Chromium, driven by playwright.

All in one file, so that where there is no Chromium one line says so.
"""

from __future__ import annotations

import csv
import json
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

sys.path.insert(0, str(Path(__file__).parent))

from demo_helpers import CHROMIUM, add_pictures, field, open_tab

from clipkit.inference import Aligner, Index
from clipkit.inference.index_files import model_fingerprint

pytest.importorskip("playwright.sync_api", reason="no playwright: pip install playwright")
if CHROMIUM is None:
    pytest.skip("no Chromium found: apt-get install chromium", allow_module_level=True)
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


def saved(page: Any, button: str, tmp_path: Path) -> list[list[str]]:
    """The rows of the CSV that a button saves."""
    with page.expect_download() as download:
        page.get_by_role("button", name=button).locator("visible=true").click()
    download.value.save_as(tmp_path / "saved.csv")
    with (tmp_path / "saved.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.reader(file))


def test_pictures_and_captions_make_a_matrix(
    page: Any, model: Aligner, pictures: dict[str, Path], tmp_path: Path
) -> None:
    open_tab(page, "Match captions")
    chosen = [pictures["red"], pictures["blue"]]
    add_pictures(page, *chosen)
    field(page, "match-captions").fill("a red square\na blue square")
    (tmp_path / "more.csv").write_text('caption\n"grey, all of it"\n')
    page.locator("#match-file input[type=file]").set_input_files(str(tmp_path / "more.csv"))
    page.locator("#match-file").get_by_text("more").first.wait_for()
    page.get_by_role("button", name="Match", exact=True).click()
    page.wait_for_selector(".ck-matrix")
    captions = ["a red square", "a blue square", "grey, all of it"]
    expected = model.match(chosen, captions)
    assert page.locator(".ck-matrix thead th").all_inner_texts() == ["Picture", *captions]
    cells = page.locator(".ck-matrix tbody td").all_inner_texts()
    assert [re.match(r"-?[0-9.]+", cell)[0] for cell in cells] == [f"{score:.3f}" for score in expected.matrix.ravel()]
    page.get_by_text("The result as data").locator("visible=true").click()
    head, *rows = saved(page, "Download matches as CSV", tmp_path)
    assert head == ["picture", "best_caption", "score", "assigned_caption", "assigned_score"]
    assert [row[1] for row in rows] == [captions[j] for j in expected.best_caption]
    head, *rows = saved(page, "Download matrix as CSV", tmp_path)
    assert head[1:] == captions
    np.testing.assert_allclose(np.array([row[1:] for row in rows], dtype=float), expected.matrix, atol=1e-4)


def test_a_file_of_captions_that_cannot_be_read_is_told_beside_its_field(
    page: Any, pictures: dict[str, Path], tmp_path: Path
) -> None:
    (tmp_path / "words.txt").write_bytes(b"\xff\xfe\x00")
    open_tab(page, "Match captions")
    add_pictures(page, pictures["red"])
    page.locator("#match-file input[type=file]").set_input_files(str(tmp_path / "words.txt"))
    page.locator("#match-file").get_by_text("words").first.wait_for()
    page.get_by_role("button", name="Match", exact=True).click()
    page.locator("#match-file").get_by_text("words.txt: not UTF-8 text").wait_for()


def bars(page: Any) -> dict[str, str]:
    """Label -> probability of the first card."""
    card = page.locator(".ck-card").first
    texts = (card.locator(part).all_inner_texts() for part in (".ck-label", ".ck-percent"))
    return dict(zip(*texts, strict=True))


def test_another_label_changes_the_bars(page: Any, model: Aligner, pictures: dict[str, Path]) -> None:
    open_tab(page, "Classify")
    add_pictures(page, pictures["red"], pictures["green"])
    field(page, "classify-labels").fill("cat\ndog")
    page.get_by_role("button", name="Classify", exact=True).click()
    page.wait_for_selector(".ck-bars")
    two = bars(page)
    assert set(two) == {"cat", "dog"} and page.locator(".ck-card").count() == 2
    field(page, "classify-labels").fill("cat\ndog\na red wall")
    page.get_by_role("button", name="Classify", exact=True).click()
    page.get_by_text("a red wall", exact=True).first.wait_for()
    three = bars(page)
    expected = model.classifier(["cat", "dog", "a red wall"]).top_k(pictures["red"], 3)[0]
    assert three == {name: f"{p:.1%}" for name, p in expected}
    assert three["cat"] != two["cat"]
    widths = (
        page.locator(".ck-card").first.locator(".ck-track > span").evaluate_all("all => all.map(x => x.style.width)")
    )
    assert [float(w[:-1]) for w in widths] == pytest.approx([100 * p for _, p in expected], abs=0.01)


def give_calibration(page: Any, file: Path) -> None:
    open_tab(page, "Classify")
    page.get_by_text("None of these, and calibration").click()
    page.locator("#classify-file input[type=file]").set_input_files(str(file))


def test_a_file_that_is_no_calibration_is_told_beside_its_field(page: Any, tmp_path: Path) -> None:
    (tmp_path / "animals.json").write_text("{}")
    give_calibration(page, tmp_path / "animals.json")
    page.locator("#classify-file").get_by_text("animals.json: no calibration; make one").wait_for()


def test_a_calibration_brings_labels_and_none_of_these(
    page: Any, model: Aligner, pictures: dict[str, Path], tmp_path: Path
) -> None:
    (tmp_path / "animals.json").write_text(json.dumps({
        "model": "m", "fingerprint": model_fingerprint(model), "labels": ["cat", "dog"], "templates": ["a {}"],
        "temperature": 2.5, "none_below": 0.99,
    }))  # fmt: skip
    give_calibration(page, tmp_path / "animals.json")
    page.wait_for_function("document.querySelector('#classify-labels textarea').value === 'cat\\ndog'")
    assert field(page, "classify-none").input_value() == "0.99"
    assert field(page, "classify-temperature").input_value() == "2.5"
    add_pictures(page, pictures["red"])
    page.get_by_role("button", name="Classify", exact=True).click()
    page.locator(".ck-card").get_by_text("None of these").wait_for()


def test_the_map_shows_pictures_on_hover_and_by_keys_and_a_querys_neighbours(page: Any, index: Index) -> None:
    open_tab(page, "Map")
    page.wait_for_selector(".ck-plot circle")
    assert page.locator(".ck-plot circle").count() == len(index)
    tip = page.locator(".ck-tip")
    assert not tip.is_visible()
    point = page.locator("#ck-p3")
    point.hover(force=True)
    assert tip.is_visible() and index.items[3].key in tip.inner_text()
    page.wait_for_function("document.querySelector('.ck-tip img').naturalWidth > 0")
    assert index.items[3].key in (tip.locator("img").get_attribute("alt") or "")

    plot = page.locator(".ck-plot svg")
    page.mouse.move(5, 5)
    plot.focus()
    plot.press("Home")
    seen = {plot.get_attribute("aria-activedescendant")}
    for key in ("ArrowRight", "ArrowLeft", "ArrowUp", "ArrowDown") * 3:
        plot.press(key)
        seen.add(plot.get_attribute("aria-activedescendant"))
    assert len(seen) >= 3 and all(str(name).startswith("ck-p") for name in seen)
    here = page.locator(f"#{plot.get_attribute('aria-activedescendant')}").get_attribute("aria-label")
    assert page.locator(".ck-map [aria-live]").inner_text() == here

    field(page, "map-query").fill("a red square")
    field(page, "map-query").press("Enter")
    page.wait_for_selector(".ck-near li")
    first = index.search("a red square", 1)[0]
    assert page.locator(".ck-near li").first.inner_text() == f"{first.score:.3f} {first.key}"
    assert page.locator(f"#ck-p{first.row}").get_attribute("class") == "ck-hit"


def test_a_group_of_the_map_is_seen_alone(page: Any) -> None:
    open_tab(page, "Map")
    page.wait_for_selector(".ck-legend button")
    button = page.locator(".ck-legend button").nth(1)
    button.press("Enter")
    assert button.get_attribute("aria-pressed") == "true"
    dim = page.locator(".ck-plot circle.ck-dim")
    others = page.locator(".ck-plot circle:not([data-group='1'])")
    assert dim.count() == others.count() > 0
    button.press("Enter")
    assert dim.count() == 0


def test_the_model_page_shows_report_curves_and_card(page: Any) -> None:
    open_tab(page, "Model")
    page.frame_locator(".ck-report").get_by_text('"The" report').wait_for()
    assert page.locator("#model-curves svg").count() == 3
    assert "Made from" in page.locator("#model-card").inner_text()
    assert "19 steps of 32 pairs" in page.locator("#model-facts").inner_text()
