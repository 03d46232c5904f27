"""The classify page: probabilities, "none of these", calibration files."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from gradio_client import Client

sys.path.insert(0, str(Path(__file__).parent))

from demo_helpers import ERRORS, Pictures, uploads

from clipkit.config import ModelConfig
from clipkit.encoders import build
from clipkit.errors import ClipkitError
from clipkit.inference import Aligner
from clipkit.inference.index_files import model_fingerprint
from demos.__main__ import find_calibration
from demos.app import build_app


def test_classify_gives_what_the_model_gives(client: Client, model: Aligner, pictures: Pictures) -> None:
    paths = [pictures["red"], pictures["green"]]
    html, data = client.predict(uploads(*paths), "cat\ndog\nbird", "a photo of a {}.", api_name="/classify")
    expected = model.classifier(["cat", "dog", "bird"], "photo").top_k(paths, 3)
    for row, best in zip(data, expected, strict=True):
        assert [entry["label"] for entry in row["labels"]] == [label for label, _ in best]
        assert [entry["probability"] for entry in row["labels"]] == pytest.approx([p for _, p in best], abs=1e-3)
    assert html.count("<li>") == 6


def test_none_of_these_below_the_threshold(client: Client, model: Aligner, pictures: Pictures) -> None:
    paths = [pictures[colour] for colour in ("red", "green", "grey")]
    classifier = model.classifier(["cat", "dog", "bird"], "photo")
    classifier.temperature = 0.25
    rows = classifier.predict_proba(paths)
    threshold = float(np.median(rows.max(axis=1)) + 1e-6)
    arguments = (uploads(*paths), "cat\ndog\nbird", "a photo of a {}.", threshold, 0.25)
    html, data = client.predict(*arguments, api_name="/classify")
    assert [entry["labels"][0]["probability"] for entry in data] == pytest.approx(rows.max(axis=1), abs=1e-3)
    expected = (rows.max(axis=1) < threshold).tolist()
    assert [entry["none_of_these"] for entry in data] == expected and sorted(set(expected)) == [False, True]
    assert html.count("<b>None of these</b>") == sum(expected)


def test_a_sigmoid_models_page_gives_each_label_its_own_probability(pictures: Pictures) -> None:
    sigmoid = Aligner(build(ModelConfig(model="small"), sigmoid=True), "tiny")
    assert sigmoid.model.bias is not None
    sigmoid.model.bias.data.fill_(-1)
    classify = next(fn.fn for fn in build_app(sigmoid).fns.values() if fn.api_name == "classify")
    path = str(pictures["red"])
    (html, alone), (_, three) = (classify([path], labels, "a {}") for labels in ("cat", "cat\ndog\nbird"))
    logit = sigmoid.logits(sigmoid.similarity(path, ["a cat"]))[0, 0]
    own = {entry["label"]: entry["probability"] for entry in three[0]["labels"]}["cat"]
    assert own == alone[0]["labels"][0]["probability"] == pytest.approx(1 / (1 + np.exp(-logit)), abs=1e-5)
    assert own < 0.5, "a softmax over one label would be sure"
    assert "judges each label by itself" in html


def test_classify_errors(client: Client, pictures: Pictures) -> None:
    red = uploads(pictures["red"])
    with pytest.raises(ERRORS, match="'cat' is there twice"):
        client.predict(red, "cat\ndog\ncat", "a {}", api_name="/classify")
    with pytest.raises(ERRORS, match=r"needs exactly one \{\}"):
        client.predict(red, "cat\ndog", "a photo", api_name="/classify")
    with pytest.raises(ERRORS, match="a probability is a number from 0 to 1"):
        client.predict(red, "cat\ndog", "a {}", 1.5, api_name="/classify")
    with pytest.raises(ERRORS, match="give a number above 0"):
        client.predict(red, "cat\ndog", "a {}", 0, -1, api_name="/classify")


def test_a_calibration_fills_the_fields(model: Aligner, tmp_path: Path) -> None:
    written = {"model": "tiny", "fingerprint": model_fingerprint(model), "labels": ["red", "blue\ud83d"],
               "templates": ["a {} wall"], "temperature": 0.5, "none_below": 0.625}  # fmt: skip
    file = tmp_path / "calibration.json"
    file.write_text(json.dumps(written))
    found = find_calibration(model, str(tmp_path), None)
    assert found is not None and found == find_calibration(model, "elsewhere", file)
    app = build_app(model, None, found)
    values = {c["props"].get("elem_id"): c["props"].get("value") for c in app.config["components"]}
    assert [values[f"classify-{name}"] for name in ("labels", "templates", "none", "temperature")] == [
        "red\nblue\ufffd", "a {} wall", 0.625, 0.5,
    ]  # fmt: skip
    use = next(fn.fn for fn in build_app(model).fns.values() if fn.name == "use")
    assert use(str(file)) == ("red\nblue\ufffd", "a {} wall", 0.625, 0.5)
    assert find_calibration(model, str(tmp_path / "none"), None) is None


def test_a_calibration_that_does_not_fit(model: Aligner, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    own = tmp_path / "calibration.json"
    own.write_text(
        '{"model": "other", "fingerprint": "x", "labels": [], "templates": [], "temperature": 1, "none_below": 0}'
    )
    assert find_calibration(model, str(tmp_path), None) is None
    assert "was made for other" in capsys.readouterr().err
    with pytest.raises(ClipkitError, match="calibrate again"):
        find_calibration(model, "runs/x", own)
    with pytest.raises(ClipkitError, match="cannot be read"):
        find_calibration(model, "runs/x", tmp_path / "gone.json")
    huge = f'{{"fingerprint": "x", "labels": [], "templates": [], "temperature": 1{"0" * 400}, "none_below": 0}}'
    for text in ("[]", "[" * 200_000, huge):
        own.write_text(text)
        with pytest.raises(ClipkitError, match="no calibration; make one"):
            find_calibration(model, "runs/x", own)


@pytest.mark.parametrize(
    ("none_below", "temperature", "message"),
    [
        ("abc", 1, "none of these below: 'abc' is no number"),
        (2, 1, "a probability is a number from 0 to 1"),
        (0, 5e-324, "give a number above 0"),
        (0, "hot", "temperature: 'hot' is no number"),
        (10**400, 1, "none of these below: 10+ is no number"),
    ],
)
def test_numbers_that_cannot_be(
    client: Client, pictures: Pictures, none_below: object, temperature: object, message: str
) -> None:
    with pytest.raises(ERRORS, match=message):
        client.predict(uploads(pictures["red"]), "red\nblue", "a {}", none_below, temperature, api_name="/classify")
