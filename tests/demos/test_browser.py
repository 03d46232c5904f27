"""The pages in a real browser, as a person uses them: headless Chromium, driven by playwright."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from clipkit.inference import Aligner, Index

playwright = pytest.importorskip("playwright.sync_api", reason="no playwright: pip install playwright")
CHROMIUM = next(
    (found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))), None
)
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium found: apt-get install chromium"),
]
_TIME = 60_000  # ms


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def page(browser: Any, address: str) -> Iterator[Any]:
    """The open app; at its end, nothing may have gone wrong in it, or have been asked of another host."""
    page = browser.new_page(viewport={"width": 1280, "height": 1000}, accept_downloads=True)
    page.set_default_timeout(_TIME)
    wrong: list[str] = []
    hosts: set[str] = set()
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("request", lambda request: hosts.add(request.url.split("/")[2]) if "//" in request.url else None)
    page.goto(address)
    page.wait_for_selector("#search-words textarea, #search-words input")
    yield page
    page.close()
    assert wrong == [] and hosts == {address.split("/")[2]}


def words(page: Any, name: str) -> Any:
    return page.locator(f"#{name} textarea, #{name} input").first


def test_a_query_typed_in_shows_the_right_picture_first(page: Any, index: Index) -> None:
    words(page, "search-words").fill("a red square")
    words(page, "search-words").press("Enter")
    page.wait_for_selector(".ck-found img")
    hit = index.search("a red square", 1)[0]
    first = page.locator(".ck-found button, .ck-found figure").filter(has=page.locator("img")).first
    assert f"{hit.score:.3f}" in first.inner_text() and hit.key in first.inner_text()
    assert page.locator(".ck-found img").first.get_attribute("alt"), "a screen reader is told what is there"


def test_the_result_is_saved_as_it_is_shown(page: Any, index: Index, tmp_path: Path) -> None:
    words(page, "search-words").fill("a square")
    words(page, "search-without").fill("red")
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


def test_pictures_and_captions_make_a_matrix(page: Any, model: Aligner, pictures: dict[str, Path]) -> None:
    page.get_by_role("tab", name="Match captions").click()
    chosen = [pictures["red"], pictures["blue"]]
    captions = ["a red square", "a blue square", "grey"]
    page.locator("input[type=file]:visible, .ck-upload input[type=file]").nth(1).set_input_files(
        [str(p) for p in chosen]
    )
    words(page, "match-captions").fill("\n".join(captions))
    page.get_by_role("button", name="Match", exact=True).click()
    page.wait_for_selector(".ck-matrix")
    expected = model.match(chosen, captions)
    cells = page.locator(".ck-matrix tbody td").all_inner_texts()
    assert [cell[:5] for cell in cells] == [f"{score:.3f}"[:5] for score in expected.matrix.ravel()]


def test_a_mistake_is_told_beside_the_field(page: Any) -> None:
    page.get_by_role("button", name="Search", exact=True).click()
    page.get_by_text("type what you look for").wait_for()


def test_it_fits_a_phone(page: Any) -> None:
    page.set_viewport_size({"width": 390, "height": 800})
    words(page, "search-words").fill("a square")
    words(page, "search-words").press("Enter")
    page.wait_for_selector(".ck-found img")
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
