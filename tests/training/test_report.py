"""The report must be one page that needs nothing, and survive whatever a run left behind."""

from __future__ import annotations

import base64
import json
import re
from html.parser import HTMLParser
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from clipkit.errors import ClipkitError
from clipkit.evaluation import retrieval, zero_shot
from clipkit.training.report import (
    Examples,
    PairExample,
    RetrievalExample,
    RetrievedCaption,
    collect_examples,
    read_metrics,
    thumbnail_encoder,
    write_report,
)
from clipkit.training.report.figures import Line, curve, smooth
from clipkit.training.run import append_lines, read_lines

VOID = {"meta", "link", "img", "br", "col"}
NASTY = """<script>alert("x")</script> & 'quoted' 犬が跳ねる, סתיו $x_1$"""


class Page(HTMLParser):
    """Collects a page's tags, attributes and text, and checks that what is opened is closed."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)
        self.close()
        assert self.open == [], f"left open: {self.open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open[-1] == tag, f"</{tag}> closes {self.open[-1:]}"
        self.open.pop()

    def handle_data(self, data: str) -> None:
        self.text += data

    def named(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


def read_page(path: Path) -> Page:
    """The page, after checking what holds for every page."""
    text = path.read_text(encoding="utf-8")
    page = Page(text)
    assert "http:" not in text and "https:" not in text
    assert not page.named("script") and not page.named("iframe")
    for _, attributes in page.tags:
        for name in ("src", "href", "srcset", "data", "action", "poster"):
            assert (attributes.get(name) or "#").startswith(("data:", "#"))
        assert not any(name.startswith("on") for name in attributes)
    assert not re.search(r"@import|url\((?!#)", text)
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert all(re.fullmatch(r"\w+", name or "") for name in ids)
    assert all("alt" in image for image in page.named("img"))
    assert all(svg.get("aria-label") for svg in page.named("svg"))
    assert page.named("meta")[0] == {"charset": "utf-8"}
    return page


def unit(rows: np.ndarray) -> np.ndarray:
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def fill_run(run: Path, records: int = 40) -> None:
    fixed = {"kind": "train", "lr": 1e-3, "grad_norm": 0.8, "samples_per_second": 120.0}
    lines = [
        {**fixed, "step": 10 * i, "epoch": i / 10, "loss": 3 / (i + 1) + 1, "log_scale": 2.65 + i / 100}
        for i in range(1, records + 1)
    ]
    lines += [
        {"kind": "eval", "step": 100 * i, "image_to_text@1": i / 20, "text_to_image@1": i / 25} for i in range(1, 5)
    ]
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (run / "config.yaml").write_text(f"recipe: clip\nname: {NASTY}\n", encoding="utf-8")


def evaluated(n: int = 30) -> tuple[dict[str, object], Examples]:
    rng = np.random.default_rng(0)
    image, owner = unit(rng.normal(size=(n, 16))), np.repeat(np.arange(n), 2)
    text = unit(image[owner] + 1.5 * unit(rng.normal(size=(2 * n, 16))))
    captions = [f"caption {m} {NASTY}" for m in range(2 * n)]
    colours = rng.integers(0, 255, size=(n, 3))
    examples = collect_examples(
        image, text, owner, captions, lambda i: Image.new("RGB", (300, 200), tuple(map(int, colours[i])))
    )
    classes = unit(rng.normal(size=(8, 16)))
    labels = np.arange(n) % 8
    names = [NASTY, *"bcdefgh"]
    reports: dict[str, object] = {
        "Held-out pictures": {
            **retrieval(image, text, owner).to_dict(),
            "baseline": retrieval(image, unit(rng.normal(size=(2 * n, 16))), owner, bootstrap=0),
            "baseline_name": "names <alone>",
        },
        "zero_shot": zero_shot(unit(classes[labels] + 0.1), classes, labels, names),
    }
    return reports, examples


def test_a_whole_run_on_one_page(tmp_path: Path) -> None:
    fill_run(tmp_path)
    reports, examples = evaluated()
    path = write_report(
        tmp_path,
        evaluation=reports,
        examples=examples,
        notes=[NASTY],
        title=NASTY,
        environment={"CPU": NASTY},
    )
    assert path == tmp_path / "report.html" and sorted(p.name for p in tmp_path.iterdir()) == [
        "config.yaml", "metrics.jsonl", "report.html",
    ]  # fmt: skip
    page = read_page(path)
    assert path.stat().st_size < 3_000_000
    assert "http" not in page.text
    # title and heading, note, config, environment, class bar, captions: all there, all as text
    assert page.text.count(NASTY) > 20
    report = reports["Held-out pictures"]
    assert isinstance(report, dict)
    value = report["image_to_text"]["1"]
    assert f"{100 * value['value']:.1f} %" in page.text
    assert f"{100 * value['low']:.1f}–{100 * value['high']:.1f}" in page.text
    assert report["protocol"] in page.text and "names <alone>" in page.text and "majority" not in page.text
    assert "Zero-shot classification" in page.text and "mean per class" in page.text
    captions = list(page.named("figcaption"))
    assert len(captions) == len(page.named("svg")) == 7  # recall@k twice; loss, recall, temperature, lr, gradient
    assert "400 steps, 4 epochs, last loss 1.07" in page.text


def test_the_heatmap_shows_every_pair_and_marks_the_diagonal(tmp_path: Path) -> None:
    pairs = tuple(PairExample(Image.new("RGB", (9, 9)), f"caption {i}") for i in range(3))
    similarity = np.array([[0.9, 0.1, -0.25], [0.2, 0.8, 0.3], [0.7, 0.5, -0.001]])
    page = read_page(write_report(tmp_path, examples=Examples(pairs=pairs, similarity=similarity)))
    cells = [cell.get("class") for cell in page.named("td") if "num" in (cell.get("class") or "")]
    assert len(cells) == 9
    assert [i for i, kind in enumerate(cells) if "own" in (kind or "")] == [0, 4, 8]
    assert [image["alt"] for image in page.named("img")] == ["caption 0", "caption 1", "caption 2"]
    assert "−0.25" in page.text and "−0.00" not in page.text and "0.90" in page.text
    assert "2 of 3 captions score highest with their own picture" in page.text


def test_retrievals_show_rank_right_caption_and_what_came_instead(tmp_path: Path) -> None:
    found = (RetrievedCaption("a wrong one", 0.5, False), RetrievedCaption("the right one", 0.4, True))
    worst = (RetrievalExample(Image.new("L", (5, 5)), "the right one", 0.4, 1234, found),)
    page = read_page(write_report(tmp_path, examples=Examples(worst=worst)))
    assert "rank 1,234" in page.text and "a wrong one" in page.text and "Furthest misses" in page.text
    assert "Surest hits" not in page.text
    assert re.search("✓ the right one", page.text) and not re.search("✓ a wrong one", page.text)


def test_examples_belong_together() -> None:
    rng = np.random.default_rng(1)
    image, owner = unit(rng.normal(size=(20, 8))), rng.permutation(np.repeat(np.arange(20), 3))
    text = unit(image[owner] + unit(rng.normal(size=(60, 8))))
    captions = [f"{m}" for m in range(60)]
    asked: list[int] = []

    def picture(i: int) -> bytes:
        asked.append(i)
        return f"{i}".encode()

    examples = collect_examples(image, text, owner, captions, picture, n_pairs=6, n_retrievals=3)
    assert examples.similarity is not None and examples.similarity.shape == (6, 6)
    for row, pair in enumerate(examples.pairs):
        assert owner[int(pair.caption)] == int(pair.image)  # type: ignore[arg-type]
        for column, other in enumerate(examples.pairs):
            expected = text[int(pair.caption)] @ image[int(other.image)]  # type: ignore[arg-type]
            assert examples.similarity[row, column] == pytest.approx(expected, abs=1e-6)
    assert len(examples.best) == len(examples.worst) == 3
    assert max(e.rank for e in examples.best) <= min(e.rank for e in examples.worst)
    for example in examples.best + examples.worst:
        assert owner[int(example.caption)] == int(example.image)  # type: ignore[arg-type]
        for found in example.retrieved:
            assert found.correct == (owner[int(found.caption)] == int(example.image))  # type: ignore[arg-type]
            assert int(found.image) == owner[int(found.caption)]  # type: ignore[arg-type]
    assert set(asked) <= set(range(20))
    with pytest.raises(ClipkitError, match="59 captions for 60"):
        collect_examples(image, text, owner, captions[1:], picture)


def test_an_empty_run_and_a_run_without_evaluation(tmp_path: Path) -> None:
    page = read_page(write_report(tmp_path, environment={}))
    assert "Nothing has been recorded yet" in page.text and not page.named("section")
    fill_run(tmp_path)
    (tmp_path / "config.yaml").unlink()
    page = read_page(write_report(tmp_path))
    assert "not been evaluated" in page.text and "Environment" in page.text
    assert "config.yaml" not in page.text


def test_one_record_and_broken_ones(tmp_path: Path) -> None:
    metrics = tmp_path / "metrics.jsonl"
    metrics.write_text('{"kind": "train", "step": 1, "loss": 3.5}\n')
    page = read_page(write_report(tmp_path))
    assert len(page.named("svg")) == 1 and "1 step, last loss 3.5" in page.text
    assert len(re.findall(r">1</text>", (tmp_path / "report.html").read_text(encoding="utf-8"))) == 1
    metrics.write_text(
        '{"kind": "train", "step": 1, "loss": 3.5}\n{"kind": "train", "step": 2, "loss": NaN, "lr": null}\n'
        '[1]\n{"kind": "train"}\n{"kind": "eval", "step": 2, "image_to_text@1": null, "image_to_text@x": 1}\n'
        '{"kind": "train", "st'
    )
    assert len(read_metrics(metrics)) == 4
    page = read_page(write_report(tmp_path))
    assert "2 training records, 1 evaluation." in page.text and "nan" not in page.text


def test_records_that_name_what_some_take_for_a_line_end(tmp_path: Path) -> None:
    append_lines(tmp_path / "metrics.jsonl", [{"kind": "train", "source": "a\u2028b"}, {"kind": "train"}])
    assert len(read_metrics(tmp_path / "metrics.jsonl")) == len(read_lines(tmp_path / "metrics.jsonl")) == 2


def test_one_picture_few_classes_and_no_intervals(tmp_path: Path) -> None:
    one = np.eye(1, 4, dtype=np.float32)
    many = np.eye(4, dtype=np.float32)
    reports = {
        "one": retrieval(one, one, [0], ks=(1,), bootstrap=0),
        "two": zero_shot(many, many, [0, 1, 2, 3], list("abcd"), bootstrap=0),
    }
    examples = collect_examples(one, one, np.array([0]), ["only"], lambda _: None)
    page = read_page(write_report(tmp_path, evaluation=reports, examples=examples))
    assert "Surest hits" in page.text and "misses" not in page.text
    assert "top-5" not in page.text and "nan" not in page.text.lower()


def test_many_classes_fold_and_confusions_are_named(tmp_path: Path) -> None:
    vectors = np.eye(50, dtype=np.float32)
    names = [f"class {c}" for c in range(50)]
    labels = np.arange(100) // 2
    predicted = labels.copy()
    predicted[labels == 7] = 9
    page = read_page(write_report(tmp_path, evaluation={"x": zero_shot(vectors[predicted], vectors, labels, names)}))
    assert "20 more" in page.text and "class 7 for class 9 (2)" in page.text
    assert len(page.named("dt")) == 50


def test_thumbnails_are_small_opaque_and_encoded_once(tmp_path: Path) -> None:
    encode = thumbnail_encoder()
    picture = Image.new("RGBA", (1000, 400), (255, 0, 0, 0))
    first = encode(picture)
    assert encode(picture) is first and first.startswith("data:image/jpeg;base64,")
    decoded = Image.open(BytesIO(base64.b64decode(first.split(",")[1])))
    assert decoded.size == (128, 51) and decoded.getpixel((5, 5)) == (255, 255, 255)
    path = tmp_path / "a.png"
    Image.new("P", (4, 4)).save(path)
    assert encode(path) and encode(str(path)) and encode(path.read_bytes())
    assert encode(b"no picture") == encode(tmp_path / "missing.png") == encode(None) == ""


def test_an_unreadable_picture_leaves_a_gap(tmp_path: Path) -> None:
    pairs = (PairExample(b"broken", "a caption"),)
    page = read_page(write_report(tmp_path, examples=Examples(pairs=pairs, similarity=np.ones((1, 1)))))
    gaps = [span for span in page.named("span") if span.get("class") == "missing"]
    assert [gap["aria-label"] for gap in gaps] == ["a caption"] and not page.named("img")


def test_the_same_run_gives_the_same_page(tmp_path: Path) -> None:
    fill_run(tmp_path)
    reports, examples = evaluated()
    pages = {write_report(tmp_path, evaluation=reports, examples=examples).read_bytes() for _ in range(2)}
    assert len(pages) == 1


def test_a_missing_directory_is_named(tmp_path: Path) -> None:
    with pytest.raises(ClipkitError, match="nowhere is not a directory"):
        write_report(tmp_path / "nowhere")


def test_curves_follow_the_theme_and_smoothing_does_not_lag() -> None:
    svg = curve([Line([1, 2], [0.1, 0.2], "run", low=[0, 0.1], high=[0.2, 0.3])], alt='a "quote"', percent=True)
    assert "var(--one)" in svg and "#0" not in svg.replace('"#', "")
    assert 'aria-label="a &quot;quote&quot;"' in svg and "xmlns" not in svg and "<style" not in svg
    falling = np.linspace(5, 1, 100)
    np.testing.assert_allclose(np.array(smooth(falling.tolist())), falling)
    noisy = falling + np.random.default_rng(0).normal(size=100)
    assert np.std(np.diff(np.array(smooth(noisy.tolist())))) < 0.4 * np.std(np.diff(noisy))
    assert np.isfinite(smooth([1.0, float("nan"), 3.0])).all()


def test_whose_the_pictures_are(tmp_path: Path) -> None:
    page = read_page(write_report(tmp_path, credits=["Drawings by <A>, CC BY-SA 4.0"]))
    assert "Drawings by <A>, CC BY-SA 4.0" in page.text
