"""The served app, as its page and as a client of its API see it."""

from __future__ import annotations

import asyncio
import json
import re
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from gradio_client import Client, handle_file
from PIL import Image

sys.path.insert(0, str(Path(__file__).parent))

from demo_helpers import ERRORS, Pictures, get, uploads

import demos
from clipkit.errors import ClipkitError
from clipkit.inference import Aligner, Index
from demos.app import build_app, serve
from demos.fields import picture_field, pictures_field, text_file_field


def test_endpoints_have_stable_names(client: Client) -> None:
    named = client.view_api(return_format="dict", print_info=False)["named_endpoints"]
    assert {name: [p["parameter_name"] for p in end["parameters"]] for name, end in named.items()} == {
        "/search": ["words", "picture", "count", "without", "hide_similar"],
        "/match": ["pictures", "captions", "file"],
        "/map": ["query", "method", "colour", "clusters"],
        "/classify": ["pictures", "labels", "templates", "none_below", "temperature"],
    }


def test_search_by_words_gives_what_the_index_gives(client: Client, index: Index) -> None:
    gallery, data = client.predict("a red square", None, 4, api_name="/search")
    hits = index.search("a red square", 4)
    assert [row["key"] for row in data] == [hit.key for hit in hits]
    assert [row["score"] for row in data] == pytest.approx([hit.score for hit in hits], abs=1e-4)
    assert [item["caption"] for item in gallery] == [f"{hit.score:.3f}  {hit.key}" for hit in hits]


def test_search_by_picture_finds_the_picture(client: Client, pictures: Pictures) -> None:
    _, data = client.predict("", handle_file(str(pictures["blue"])), 2, api_name="/search")
    assert data[0]["key"] == "blue.png"
    assert data[0]["score"] == pytest.approx(1, abs=1e-4)


def test_search_by_words_and_a_picture_without_something(client: Client, index: Index, pictures: Pictures) -> None:
    _, data = client.predict("a square", handle_file(str(pictures["blue"])), 6, "red", False, api_name="/search")
    hits = index.search(["a square", pictures["blue"]], 6, minus="red")
    assert [row["key"] for row in data] == [hit.key for hit in hits]
    assert [row["score"] for row in data] == pytest.approx([hit.score for hit in hits], abs=1e-4)


def test_look_alikes_are_hidden(client: Client, index: Index) -> None:
    _, data = client.predict("a square", None, 6, "", True, api_name="/search")
    assert [row["key"] for row in data] == [hit.key for hit in index.search("a square", 6, hide_similar=0.95)]
    with pytest.raises(ERRORS, match="at most 1,000"):
        client.predict("red", None, 3, "x" * 2000, api_name="/search")


@pytest.mark.parametrize("sent", [["cat", "dog"], {"cat": 1}, 5, True])
def test_what_is_no_text_is_refused_beside_its_field(client: Client, pictures: Pictures, sent: object) -> None:
    red = uploads(pictures["red"])
    for name, arguments in (
        ("words", (sent, None, 3)), ("without", ("red", None, 3, sent)), ("query", (sent,)), ("captions", (red, sent)),
        ("labels", (red, sent)), ("templates", (red, "cat", sent)),
    ):  # fmt: skip
        page = {"words": "search", "without": "search", "query": "map", "captions": "match"}.get(name, "classify")
        with pytest.raises(ERRORS, match=f"{name}: a {type(sent).__name__} is no text"):
            client.predict(*arguments, api_name=f"/{page}")


def test_half_an_emoji_is_answered_in_whole_characters(model: Aligner, index: Index, pictures: Pictures) -> None:
    """Gradio's own client cannot send it; JSON that another one has written can."""
    ask = {fn.api_name: fn.fn for fn in build_app(model, index).fns.values()}
    red = [str(pictures["red"])]
    answers = [
        ask["match"](red, "a\ud83d"), ask["classify"](red, "a\ud83d", "a {}"), ask["search"]("a\ud83d"),
        ask["map"]("a\ud83d"),
    ]  # fmt: skip
    json.dumps(answers, ensure_ascii=False).encode()
    assert answers[0][1]["captions"] == ["a\ufffd"] and answers[1][1][0]["labels"][0]["label"] == "a\ufffd"


def test_match_gives_what_the_model_gives(client: Client, model: Aligner, pictures: Pictures) -> None:
    paths = [pictures["red"], pictures["green"], pictures["grey"]]
    captions = ["a red square", "<b>green</b>"]
    html, data = client.predict(uploads(*paths), "a red square\n\n  <b>green</b> \n", api_name="/match")
    expected = model.match(paths, captions)
    np.testing.assert_allclose(data["matrix"], expected.matrix, atol=1e-4)
    assert data["captions"] == captions
    assert data["best_caption"] == expected.best_caption.tolist()
    assert data["best_picture"] == expected.best_image.tolist()
    assert [tuple(pair) for pair in data["assignment"]] == expected.assignment
    assert f"{expected.matrix[0, 0]:.3f}" in html
    assert "&lt;b&gt;green" in html and "<b>green" not in html


def test_captions_come_from_a_file_too(client: Client, pictures: Pictures, tmp_path: Path) -> None:
    table, lines = tmp_path / "own captions.csv", tmp_path / "lines.txt"
    table.write_text('n,caption\n1,"green, mostly"\n2,grey\n')
    lines.write_text("blue\n")
    _, data = client.predict(uploads(pictures["red"]), "red", handle_file(str(table)), api_name="/match")
    assert data["captions"] == ["red", "green, mostly", "grey"]
    _, data = client.predict(uploads(pictures["red"]), "", handle_file(str(lines)), api_name="/match")
    assert data["captions"] == ["blue"]


def test_files_of_captions_that_are_refused(client: Client, pictures: Pictures, tmp_path: Path) -> None:
    red = uploads(pictures["red"])
    for data, message in (
        (b"\xff\xfe", r"file: words\.txt: not UTF-8"),
        (b"a\n" * 101, "101 captions; at most 100"),
        (b"x" * (2 << 20), r"words\.txt: 2\.0 MB; more than 1 MB"),
    ):
        file = tmp_path / "words.txt"
        file.write_bytes(data)
        with pytest.raises(ERRORS, match=message):
            client.predict(red, "", handle_file(str(file)), api_name="/match")
    with pytest.raises(ERRORS, match="addresses are not fetched"):
        client.predict(red, "", handle_file("https://example.com/captions.txt"), api_name="/match")


@pytest.mark.slow
def test_twenty_users_at_the_same_time_get_their_own_answers(
    client: Client, model: Aligner, index: Index, pictures: Pictures
) -> None:
    """Of every function in turn; each user's words and picture are their own."""
    names = sorted(pictures)

    def ask(user: int) -> tuple[float, float]:
        """What the app answers, and what the model does."""
        words, name = f"user {user}", names[user % len(names)]
        picture = uploads(pictures[name])
        if user % 4 == 0:
            row = client.predict(words, None, 1, api_name="/search")[1][0]
            return row["score"], index.search(words, 1)[0].score
        if user % 4 == 1:
            data = client.predict(picture, f"{words}\nother", api_name="/match")[1]
            assert data["pictures"] == [f"{name}.png"] and data["captions"] == [words, "other"]
            return data["matrix"][0][0], float(model.similarity(pictures[name], words)[0, 0])
        if user % 4 == 2:
            best = client.predict(picture, f"{words}\nother", "a {}", api_name="/classify")[1][0]["labels"]
            expected = model.classifier([words, "other"], "a {}").predict_proba(pictures[name])[0, 0]
            return next(entry["probability"] for entry in best if entry["label"] == words), float(expected)
        row = client.predict(words, "PCA", "nothing", 3, api_name="/map")[1]["neighbours"][0]
        return row["score"], index.search(words, 1)[0].score

    with ThreadPoolExecutor(20) as pool:
        answers = list(pool.map(ask, range(20)))
    assert [found for found, _ in answers] == pytest.approx([expected for _, expected in answers], abs=1e-3)
    assert len({round(found, 4) for found, _ in answers}) > 10, "they asked for different things"


@pytest.mark.parametrize(
    ("words", "picture", "message"),
    [
        ("  ", None, "type what you look for"),
        ("x" * 2000, None, "at most 1,000"),
        ("", "broken", "broken.png: not a picture"),
    ],
)
def test_search_errors(
    client: Client, pictures: Pictures, tmp_path: Path, words: str, picture: str | None, message: str
) -> None:
    broken = tmp_path / "broken.png"
    broken.write_text("no picture")
    path = {None: None, "broken": broken}.get(picture) or (pictures[picture] if picture else None)
    with pytest.raises(ERRORS, match=message):
        client.predict(words, handle_file(str(path)) if path else None, 3, api_name="/search")


@pytest.mark.parametrize("count", [0, 61, 2.5, "5", None])
def test_a_number_of_results_that_cannot_be(client: Client, count: object) -> None:
    with pytest.raises(ERRORS, match=r"Number of results: .*give a whole number from 1 to 60"):
        client.predict("a square", None, count, api_name="/search")


def test_match_errors(client: Client, pictures: Pictures) -> None:
    red = uploads(pictures["red"])
    with pytest.raises(ERRORS, match="no picture yet"):
        client.predict([], "a cat", api_name="/match")
    with pytest.raises(ERRORS, match="no caption yet"):
        client.predict(red, " \n ", api_name="/match")
    with pytest.raises(ERRORS, match="at most 24"):
        client.predict(red * 25, "a cat", api_name="/match")


def test_a_damaged_picture_is_named_without_its_folder(client: Client, tmp_path: Path) -> None:
    whole, cut = tmp_path / "whole.jpg", tmp_path / "cut.jpg"
    Image.effect_noise((300, 300), 80).save(whole)
    cut.write_bytes(whole.read_bytes()[:9000])  # the header is good, so this shows only in decoding
    with pytest.raises(ERRORS, match=r"- pictures: cut\.jpg: cannot be read as a picture"):  # beside the field
        client.predict(uploads(cut), "a cat", api_name="/match")


def test_addresses_are_not_fetched(client: Client) -> None:
    remote = handle_file("https://example.com/a.png")
    with pytest.raises(ERRORS, match="addresses are not fetched"):
        client.predict("", remote, 3, api_name="/search")
    with pytest.raises(ERRORS, match="addresses are not fetched"):
        client.predict([{"image": remote, "caption": None}], "a cat", api_name="/match")


def test_a_field_that_gradio_makes_anew_still_fetches_nothing() -> None:
    for field in (picture_field("a"), pictures_field("b"), text_file_field("c", [".txt"], "c")):
        anew = type(field)(label="as Gradio does for a session whose fields an example has filled in")
        address = "https://example.com/a.png"
        assert asyncio.run(anew.async_move_resource_to_block_cache(address)) == address
    assert not list(Path(demos.__file__).parent.glob("*.pyi")), "Gradio has written a stub file"


def test_the_page_names_no_other_host(address: str) -> None:
    status, html, headers = get(address)
    assert status == 200
    hosts = set(re.findall(r"https?://([^/\"'\\\s<>]+)", html))
    assert hosts <= {address.split("/")[2], "localhost"}
    policy = headers["content-security-policy"]
    assert "default-src 'self'" in policy and "http" not in policy
    theme = get(f"{address}theme.css")[1]
    assert not re.search(r"url\(['\"]?(https?:)?//|@import", theme)


def test_only_files_of_the_app_are_served(address: str, pictures: Pictures, tmp_path: Path) -> None:
    secret = tmp_path / "secret.txt"
    secret.write_text("secret")
    for path in (secret, pictures["red"], Path("/etc/passwd"), Path.cwd() / "pyproject.toml"):
        assert get(f"{address}gradio_api/file={path}")[0] in (403, 404), path
    shared = Path(tempfile.gettempdir()) / "gradio" / "of-another-program"  # where all apps of a user keep theirs
    shared.mkdir(parents=True, exist_ok=True)
    (shared / "secret.txt").write_text("secret")
    assert get(f"{address}gradio_api/file={shared / 'secret.txt'}")[0] in (403, 404)


def test_without_an_index_search_says_what_to_do(model: Aligner) -> None:
    app = build_app(model)
    search = next(fn for fn in app.fns.values() if fn.api_name == "search")
    with pytest.raises(Exception, match="--folder PICTURES"):
        search.fn("red", None, 3)


def test_the_page_says_whose_the_pictures_are(model: Aligner, index: Index, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Index, "credits", lambda self: ["Drawings by <A>, CC BY-SA 4.0"])
    shown = [str(part["props"].get("value")) for part in build_app(model, index).config["components"]]
    assert any("Drawings by &lt;A&gt;, CC BY-SA 4.0" in text for text in shown)


def test_a_taken_port_is_one_line(model: Aligner, address: str, free_port: int) -> None:
    with pytest.raises(ClipkitError, match=f"port {free_port} cannot be used"):
        serve(build_app(model), port=free_port, block=False)
    with pytest.raises(ClipkitError, match="from 1 to 65535"):
        serve(build_app(model), port=99_999, block=False)
