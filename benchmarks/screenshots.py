"""The demo's pages as pictures: docs/search.png, match.png, classify.png, map.png, model.png.

    python benchmarks/screenshots.py [RUN] [--folder PICTURES] [--output docs]

Serves the demo on a free port and drives it with Chromium through playwright. Without --folder it shows the pictures
that the run was tested on; those of the starter run are OpenMoji's (CC BY-SA 4.0), whose credit is part of each page.
"""

from __future__ import annotations

import argparse
import io
import shutil
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

WIDTH, HIGHEST = 1200, 1900  # pixels
MOST = 250_000  # bytes of a file


def main() -> None:
    """Take the pictures, and say how large they are."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", nargs="?", default="runs/starter")
    parser.add_argument("--folder", type=Path, default=None)
    parser.add_argument("--output", type=Path, default=Path(__file__).parent.parent / "docs")
    options = parser.parse_args()
    chromium = next((found for name in ("chromium", "chromium-browser", "google-chrome")
                     if (found := shutil.which(name))), None)  # fmt: skip
    if chromium is None:
        raise SystemExit("no Chromium found: apt-get install chromium")
    from playwright.sync_api import sync_playwright

    from clipkit.inference import load
    from demos.__main__ import find_index
    from demos.app import build_app, serve

    model = load(options.run)
    app = build_app(model, find_index(model, options.run, options.folder, None))
    address = serve(app, port=free_port(), block=False)
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": WIDTH, "height": HIGHEST}, color_scheme="light")
        page.goto(address)
        page.wait_for_selector("#search-words textarea, #search-words input")
        page.add_style_tag(content="footer { display: none !important; } * { caret-color: transparent !important; }")
        for name, show in PAGES.items():
            show(page)
            page.wait_for_timeout(1500)  # pictures decode, transitions end
            file = options.output / f"{name}.png"
            file.write_bytes(small(page.screenshot(clip=area(page))))
            size = file.stat().st_size
            print(f"{file}  {size / 1000:.0f} kB")
            if size > MOST:
                raise SystemExit(f"{file}: {size:,} bytes, more than {MOST:,}: show less on the page")
        browser.close()
    app.close(verbose=False)


def search(page: Any) -> None:
    """Words, and what they find."""
    page.locator("#search-alike input").check()
    field(page, "search-words").fill("a car")
    field(page, "search-words").press("Enter")
    page.wait_for_selector(".ck-found img")


def match(page: Any) -> None:
    """The example's matrix."""
    page.get_by_role("tab", name="Match captions").click()
    example(page)
    page.wait_for_selector(".ck-matrix")


def classify(page: Any) -> None:
    """The example with a threshold for none of these."""
    page.get_by_role("tab", name="Classify").click()
    page.get_by_text("None of these, and calibration").click()
    field(page, "classify-none").fill("0.3")
    example(page)
    page.wait_for_selector(".ck-bars")
    page.get_by_role("button", name="Classify", exact=True).click()
    page.wait_for_selector(".ck-unknown, .ck-track i")
    page.get_by_text("None of these, and calibration").click()


def map_(page: Any) -> None:
    """A query's neighbours, and the picture of the best one."""
    page.get_by_role("tab", name="Map").click()
    page.wait_for_selector(".ck-plot circle")
    field(page, "map-query").fill("a bird")
    field(page, "map-query").press("Enter")
    page.wait_for_selector(".ck-near li")
    page.locator(".ck-near li").first.hover()


def model(page: Any) -> None:
    """Facts and the report's first screen."""
    page.get_by_role("tab", name="Model").click()
    page.wait_for_selector(".ck-report")
    page.mouse.move(0, 0)


PAGES: dict[str, Callable[[Any], None]] = {
    "search": search, "match": match, "classify": classify, "map": map_, "model": model,
}  # fmt: skip


def field(page: Any, name: str) -> Any:
    """The field with that id."""
    return page.locator(f"#{name} textarea, #{name} input").first


def example(page: Any) -> None:
    """Click the first example of the page that is open."""
    page.locator("[role=tabpanel]:visible .gallery-item").first.click()


def area(page: Any) -> dict[str, int]:
    """The page from its top to the end of what is on it, if it is not too long."""
    ends = page.locator(".ck-note").last.bounding_box()
    height = HIGHEST if ends is None else min(int(ends["y"] + ends["height"]) + 24, HIGHEST)
    return {"x": 0, "y": 0, "width": WIDTH, "height": height}


def small(png: bytes) -> bytes:
    """The picture in 256 colours: those that cover most, so that a legend's rare ones stay, moved to their means."""
    from PIL import Image

    buffer = io.BytesIO()
    image = Image.open(io.BytesIO(png)).convert("RGB")
    image = image.quantize(256, Image.Quantize.MAXCOVERAGE, kmeans=4, dither=Image.Dither.NONE)
    image.save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def free_port() -> int:
    """A port of this machine that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


if __name__ == "__main__":
    main()
