"""The map and the model page: what the API says, what the SVG shows, and which files are served."""

from __future__ import annotations

import io
import re
import sys
import urllib.request
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gradio_client import Client
from PIL import Image

sys.path.insert(0, str(Path(__file__).parent))

from demo_helpers import ERRORS, a_run, get

from clipkit.inference import Aligner, Index
from clipkit.inference.items import Item
from demos.app import build_app
from demos.model import parts
from demos.plot import map_html
from demos.run import data_card, data_folder
from demos.space import Groups, Plane, Space
from demos.thumbnails import Thumbnails


def test_the_map_has_every_picture_and_the_neighbours_of_a_query(client: Client, index: Index) -> None:
    html, data = client.predict("a red square", "PCA", "clusters", 3, api_name="/map")
    assert [point["key"] for point in data["points"]] == [item.key for item in index.items]
    expected = Space(index).plane("PCA")
    np.testing.assert_allclose([(p["x"], p["y"]) for p in data["points"]], expected.points, atol=1e-4)
    assert len({point["group"] for point in data["points"]}) == 3
    hits = index.search("a red square", len(index))
    assert [n["key"] for n in data["neighbours"]] == [hit.key for hit in hits]
    assert [n["score"] for n in data["neighbours"]] == pytest.approx([hit.score for hit in hits], abs=1e-4)
    assert html.count("<circle") == len(index) and html.count('class="ck-hit"') == len(index)
    html, data = client.predict(api_name="/map")
    assert data["neighbours"] == [] and "ck-hit" not in html


def test_map_errors(client: Client, model: Aligner) -> None:
    for arguments, message in (
        (("x" * 2000, "PCA", "nothing", 3), "at most 1,000"),
        (("", "UMAP", "nothing", 3), "at least 10 pictures, here are 6|pip install"),
        (("", "PCA", "moods", 3), "choose labels, clusters, nothing"),
    ):
        with pytest.raises(ERRORS, match=message):
            client.predict(*arguments, api_name="/map")
    draw = next(fn for fn in build_app(model).fns.values() if fn.api_name == "map")
    with pytest.raises(Exception, match="--folder PICTURES"):
        draw.fn()


def test_points_lie_where_they_should_and_names_are_escaped() -> None:
    plane = Plane(np.array([[0, 0], [1, 1], [0.5, 0.5]], dtype=np.float32), "How & why.")
    groups = Groups(["<a>", "b"], np.array([0, 1, 0]))
    names = ["first", '"second"', "<third>"]
    html = map_html(plane, groups, names, [7, 8, 9], [], lambda row: f"thumbnail/{row}.webp", [])
    svg = ET.fromstring(re.findall(r"<svg.*?</svg>", html, flags=re.S)[0])
    circles = {c.get("id"): c for c in svg}
    place = {
        i: (float(circles[f"ck-p{i}"].get("cx") or 0), float(circles[f"ck-p{i}"].get("cy") or 0)) for i in range(3)
    }
    assert place[0][0] < place[2][0] < place[1][0] and place[0][1] > place[2][1] > place[1][1], "y points upwards"
    assert [c.get("aria-label") for c in svg] == ["first (<a>)", '"second" (b)', "<third> (<a>)"]
    assert [c.get("data-src") for c in svg] == [f"thumbnail/{row}.webp" for row in (7, 8, 9)]
    assert len({circles[f"ck-p{i}"].get("fill") for i in (0, 2)}) == 1
    assert "<third>" not in html and "&lt;a&gt;" in html and "How &amp; why." in html


def test_only_thumbnails_of_the_index_are_served(address: str, client: Client, pictures: dict[str, Path]) -> None:
    html, _ = client.predict(api_name="/map")
    sources = re.findall(r'data-src="([^"]+)"', html)
    assert len(sources) == len(pictures)
    with urllib.request.urlopen(address + sources[0], timeout=30) as response:
        assert (
            response.headers["content-type"] == "image/webp" and "'self'" in response.headers["content-security-policy"]
        )
        image = Image.open(io.BytesIO(response.read())).convert("RGB")
    row = min(pictures)  # the index is in the order of names
    expected = Image.open(pictures[row]).convert("RGB").getpixel((80, 60))
    assert np.abs(np.subtract(image.getpixel((80, 60)), expected)).max() < 8
    folder = sources[0].rsplit("/", 1)[0]
    for wrong in ("99.webp", "-1.webp", "x.webp", "..%2f..%2f0.webp", "0.png", "0.webp/..", "1e0.webp"):
        assert get(f"{address}{folder}/{wrong}")[0] == 404, wrong
    assert get(f"{address}thumbnail/other/0.webp")[0] == 404


def test_a_picture_that_is_gone_is_no_server_error(model: Aligner, tmp_path: Path) -> None:
    from starlette.applications import Starlette
    from starlette.testclient import TestClient

    x = np.ones((1, model.embed_dim), dtype=np.float32)
    gone = Index(model, x, [Item(str(tmp_path / "gone.png"), "gone.png")])
    thumbnails = Thumbnails(gone)
    answer = TestClient(Starlette(routes=[thumbnails.route()])).get("/" + thumbnails.address(0))
    assert answer.status_code == 404 and str(tmp_path) not in answer.text


def test_the_model_page_tells_what_the_run_holds(model: Aligner, tmp_path: Path) -> None:
    facts, curves, report, card, sheet = parts(model, a_run(tmp_path))
    assert ">clip<" in facts and "19 steps of 32 pairs" in facts and f"{model.embed_dim} dimensions" in facts
    labels = re.findall(r'<svg [^>]*aria-label="([^"]+)"', curves)
    assert [label.split()[0] for label in labels] == ["Loss", "Recall", "Learning"]
    assert 'sandbox=""' in report and "&lt;p class=&quot;x&quot;&gt;&quot;The&quot; report" in report
    assert card == "Made from `a <b>`.\n\n\n## Samples" and "base64,anBlZw==" in sheet


def test_a_run_that_has_nothing_to_tell_says_so(model: Aligner, tmp_path: Path) -> None:
    facts, curves, report, card, sheet = parts(model, tmp_path)
    assert "dimensions" in facts and "Trained" not in facts and sheet == ""
    for said, text in (("No training curves", curves), ("No evaluation report", report), ("No data card", card)):
        assert said in text
    (tmp_path / "dataset.json").write_text("{}")
    assert data_card(tmp_path) == (None, None)


def test_the_data_are_found_through_the_index_of_the_run(model: Aligner, tmp_path: Path) -> None:
    shards = tmp_path / "shards" / "test"
    shards.mkdir(parents=True)
    (tmp_path / "shards" / "dataset.json").write_text("{}")
    x = np.ones((1, model.embed_dim), dtype=np.float32)
    Index(model, x, [Item(str(shards / "0.tar"), "k", (), 0, 9)]).save(tmp_path / "run" / "index")
    assert data_folder(tmp_path / "run", {"train_data": None}) == tmp_path / "shards"
    assert data_folder(tmp_path / "nowhere", {"train_data": "pipe:cat x"}) is None


def test_prepared_data_without_a_card_get_one(tmp_path: Path) -> None:
    from data_prep.prepare import prepare

    Image.new("RGB", (40, 30), "red").save(tmp_path / "red.png")
    (tmp_path / "data.csv").write_text("filepath,caption\nred.png,a red wall\n")
    prepare(str(tmp_path / "data.csv"), tmp_path / "shards", processes=1)
    written = data_card(tmp_path / "shards")
    for name in ("data_card.md", "contact_sheet.jpg"):
        (tmp_path / "shards" / name).unlink()
    made: tuple[Any, Any] = data_card(tmp_path / "shards")
    assert made[0] == written[0] and "| pictures | 1 |" in made[0]
    assert made[1] is not None and made[1][:2] == b"\xff\xd8"
