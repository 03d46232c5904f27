"""encode_image and encode_text: whatever people call a picture, in their order, or a message that names it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import clipkit
from clipkit.errors import ClipkitError
from clipkit.inference.pictures import thumbnail
from clipkit.pairs import fit, normalize


def test_mixed_inputs_keep_their_order(model: Any, files: list[Path], picture: Any) -> None:
    pil = picture(20)
    array = np.array(picture(21))
    ready = torch.randn(3, 32, 32, generator=torch.Generator().manual_seed(1))
    mixed = [files[0], pil, str(files[1]), array, array.transpose(2, 0, 1), ready, ready.numpy(), files[0]]
    rows = model.encode_image(mixed)
    assert rows.shape == (8, 24) and rows.dtype == np.float32
    for row, one in zip(rows, mixed, strict=True):
        np.testing.assert_allclose(model.encode_image(one), row, atol=1e-6)
    np.testing.assert_allclose(rows[0], rows[7], atol=1e-6)
    np.testing.assert_allclose(rows[3], rows[4], atol=1e-6)
    np.testing.assert_allclose(rows[5], rows[6], atol=1e-6)
    distances = np.linalg.norm(rows[:4, None] - rows[None, :4], axis=2)[np.triu_indices(4, 1)]
    assert distances.min() > 1e-3, "different pictures differ"


@pytest.mark.parametrize("batch_size", [1, 3, 5, 64])
def test_batches_change_nothing(model: Any, files: list[Path], batch_size: int) -> None:
    np.testing.assert_allclose(model.encode_image(files, batch_size=batch_size), model.encode_image(files), atol=1e-6)
    texts = ["a red bird", "a", "two dogs in the garden with a cat", "wall", "a"]
    np.testing.assert_allclose(model.encode_text(texts, batch_size=batch_size), model.encode_text(texts), atol=1e-6)


def test_one_gives_a_vector_and_a_list_gives_rows(model: Any, files: list[Path], picture: Any) -> None:
    singles = [files[0], str(files[0]), picture(0), np.array(picture(0)), np.array(picture(0, mode="L"))]
    for single in singles:
        assert model.encode_image(single).shape == (24,)
        assert model.encode_image([single]).shape == (1, 24)
    assert model.encode_image((files[0], files[1])).shape == (2, 24)
    assert model.encode_image(p for p in files[:3]).shape == (3, 24)
    assert model.encode_image(np.stack([np.array(picture(s)) for s in range(4)])).shape == (4, 24)
    assert model.encode_image([]).shape == (0, 24)
    assert model.encode_text("a bird").shape == (24,)
    assert model.encode_text(["a bird"]).shape == (1, 24)
    assert model.encode_text([]).shape == (0, 24)
    assert model.similarity(files[0], "a bird").shape == (1, 1)
    assert model.similarity(files, ["a bird", "a dog"]).shape == (6, 2)


def test_rows_are_of_unit_norm_unless_asked_otherwise(model: Any, files: list[Path]) -> None:
    for unit, raw in (
        (model.encode_image(files), model.encode_image(files, normalize=False)),
        (model.encode_text(["a bird", "dogs"]), model.encode_text(["a bird", "dogs"], normalize=False)),
    ):
        np.testing.assert_allclose(np.linalg.norm(unit, axis=1), 1, atol=1e-5)
        norms = np.linalg.norm(raw, axis=1, keepdims=True)
        assert np.abs(norms - 1).max() > 1e-3
        np.testing.assert_allclose(raw / norms, unit, atol=1e-5)


def test_similarity_is_the_cosine(model: Any, files: list[Path]) -> None:
    texts = ["a red bird", "two dogs", "the wall"]
    found = model.similarity(files, texts)
    np.testing.assert_allclose(found, model.encode_image(files) @ model.encode_text(texts).T, atol=1e-6)
    assert found.dtype == np.float32 and np.abs(found).max() <= 1 + 1e-5


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "I;16", "I", "F", "HSV", "LAB"])
@pytest.mark.parametrize("decode", ["fast", "reference"])
def test_pil_pictures_of_any_mode(model: Any, picture: Any, mode: str, decode: str) -> None:
    if mode == "I;16":
        image = Image.fromarray((np.array(picture(3, mode="L")).astype(np.uint16) << 8) + 7)
    elif mode == "LAB":
        from PIL import ImageCms

        transform = ImageCms.buildTransform(ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB"), "RGB", "LAB")
        image = ImageCms.applyTransform(picture(3), transform)
    else:
        image = picture(3, mode=mode)
    assert image.mode == mode
    row = model.encode_image(image, decode=decode)
    assert np.isfinite(row).all()
    if mode not in ("1", "P", "LAB") and decode == "fast":
        close = picture(3, mode="L") if mode in ("L", "LA", "I;16", "I", "F") else picture(3)
        if mode in ("LA", "RGBA"):
            white = Image.new("RGBA", image.size, "white")
            white.alpha_composite(image.convert("RGBA"))
            close = white.convert("RGB")
        assert float(row @ model.encode_image(close)) > 0.98, "as the same picture in RGB"


def test_a_file_is_what_its_pixels_are(model: Any, tmp_path: Path, picture: Any) -> None:
    image = picture(4)
    image.save(tmp_path / "a.png")
    rows = model.encode_image([tmp_path / "a.png", image, np.array(image)])
    np.testing.assert_allclose(rows[1:], rows[:1].repeat(2, 0), atol=1e-6)


def test_a_picture_turned_by_exif_is_turned(model: Any, files: list[Path]) -> None:
    turned = next(p for p in files if p.name == "turned.jpg")
    upright = Image.fromarray(np.array(Image.open(turned).transpose(Image.Transpose.ROTATE_270)))
    assert float(model.encode_image(turned) @ model.encode_image(upright)) > 0.999
    assert float(model.encode_image(Image.open(turned)) @ model.encode_image(upright)) > 0.999


def test_a_damaged_exif_block_costs_no_picture(model: Any, tmp_path: Path) -> None:
    """Orientation 6, and a unit of the resolution that is a text, which Pillow reads but cannot write."""
    exif = b"Exif\0\0II*\0\x08\0\0\0\2\0\x12\1\3\0\1\0\0\0\6\0\0\0\x28\1\2\0\1\0\0\0a\0\0\0\0\0\0\0"
    path = tmp_path / "a.jpg"
    Image.new("RGB", (60, 40)).save(path, exif=exif)
    np.testing.assert_allclose(model.encode_image(path), model.encode_image(Image.open(path)), atol=1e-6)
    assert thumbnail(path.read_bytes()).size == (40, 60)


def test_arrays_in_every_usual_layout(model: Any, picture: Any) -> None:
    rgb = np.array(picture(5))
    expected = model.encode_image(picture(5))
    for array in (
        rgb,
        rgb.transpose(2, 0, 1),
        torch.from_numpy(rgb.copy()),
        torch.from_numpy(rgb.copy()).permute(2, 0, 1),
    ):
        np.testing.assert_allclose(model.encode_image(array), expected, atol=1e-6)
    grey = np.array(picture(5, mode="L"))
    expected = model.encode_image(picture(5, mode="L"))
    for array in (grey, grey[..., None], grey[None]):
        np.testing.assert_allclose(model.encode_image([array])[0], expected, atol=1e-6)
    clear = np.array(picture(5, mode="RGBA"))
    np.testing.assert_allclose(model.encode_image(clear), model.encode_image(picture(5, mode="RGBA")), atol=1e-6)


def test_an_array_turned_from_bgr(model: Any, picture: Any) -> None:
    """``image[..., ::-1]`` is how everybody turns OpenCV's pictures: a view with a negative stride."""
    rgb = np.array(picture(6))
    bgr = np.ascontiguousarray(rgb[..., ::-1])
    np.testing.assert_allclose(model.encode_image(bgr[..., ::-1]), model.encode_image(rgb), atol=1e-6)
    np.testing.assert_allclose(model.encode_image(rgb[:, ::-1]), model.encode_image(rgb[:, ::-1].copy()), atol=1e-6)


def test_preprocessed_pixels_are_taken_as_they_are(model: Any, picture: Any) -> None:
    pixels = torch.from_numpy(np.array(picture(7)).copy()).permute(2, 0, 1)
    ready = normalize(fit(pixels, model.model.picture)[None], model.model.picture)[0]
    for one in (ready, ready.numpy(), ready.double(), ready.half().float()):
        np.testing.assert_allclose(model.encode_image(one), model.encode_image(picture(7)), atol=2e-3)
    np.testing.assert_allclose(model.encode_image(ready), model.encode_image(picture(7)), atol=1e-6)


URLS = ["http://127.0.0.1:1/cat.jpg", "https://example.org/cat.jpg", "HTTP://example.org/c.png", "file:///etc/hostname"]


@pytest.mark.parametrize("url", URLS)
def test_addresses_are_refused(model: Any, url: str, monkeypatch: Any) -> None:
    import urllib.request

    def fetched(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("fetched")

    monkeypatch.setattr(urllib.request, "urlopen", fetched)
    with pytest.raises(ClipkitError, match="allow_urls") as caught:
        model.encode_image([url])
    assert url in str(caught.value)
    if url.startswith("file"):
        with pytest.raises(ClipkitError, match="http"):
            model.encode_image(url, allow_urls=True)


def test_an_address_that_is_none_is_told(model: Any) -> None:
    with pytest.raises(ClipkitError, match="could not be fetched"):
        model.encode_image("http://127.0.0.1\0/a.png", allow_urls=True)


def test_an_address_is_fetched_when_asked_for(model: Any, picture: Any, png: Any) -> None:
    import http.server
    import threading

    data = png(picture(8))

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200 if self.path == "/a.png" else 404)
            self.end_headers()
            self.wfile.write(data if self.path == "/a.png" else b"")

        def log_message(self, *args: Any) -> None:
            pass

    server = http.server.HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        root = f"http://127.0.0.1:{server.server_port}"
        row = model.encode_image(f"{root}/a.png", allow_urls=True)
        np.testing.assert_allclose(row, model.encode_image(picture(8)), atol=1e-6)
        with pytest.raises(ClipkitError, match=r"b\.png"):
            model.encode_image(f"{root}/b.png", allow_urls=True)
    finally:
        server.shutdown()
        server.server_close()


def broken(folder: Path, kind: str) -> Path:
    path = folder / f"{kind}.jpg"
    if kind == "cut":
        Image.new("RGB", (400, 300), "red").save(path)
        path.write_bytes(path.read_bytes()[:600])
    elif kind == "folder":
        path.mkdir()
    elif kind == "bomb":
        Image.new("1", (20000, 20000)).save(path, "PNG")
    elif kind == "huge":  # a hole: it takes no room on the disk
        path.touch()
        os.truncate(path, 1 << 40)
    elif kind != "missing":
        path.write_bytes({"empty": b"", "text": b"no picture at all"}[kind])
    return path


@pytest.mark.parametrize("kind", ["cut", "folder", "bomb", "huge", "missing", "empty", "text"])
@pytest.mark.parametrize("decode", ["fast", "reference"])
def test_a_bad_picture_is_named(model: Any, files: list[Path], tmp_path: Path, kind: str, decode: str) -> None:
    path = broken(tmp_path, kind)
    with pytest.raises(ClipkitError) as caught:
        model.encode_image([files[0], path, files[1]], decode=decode)
    assert path.name in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "bad",
    [
        42, None, {"a": 1}, [[1, 2]], np.zeros((3, 32, 32), dtype=np.int64), np.zeros((8, 8, 2), dtype=np.uint8),
        np.zeros((0, 4, 3), dtype=np.uint8), np.zeros((3, 16, 16), dtype=np.float32), np.zeros(7, dtype=np.uint8),
        np.zeros((2, 2, 2, 2, 3), dtype=np.uint8), b"bytes", np.array(["a"]),
    ],
    ids=str,
)  # fmt: skip
def test_what_is_no_picture_is_refused_in_a_line(model: Any, files: list[Path], bad: Any) -> None:
    with pytest.raises(ClipkitError) as caught:
        model.encode_image([files[0], bad])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("bad", [42, None, ["a", "b"], "", "   "])
def test_what_is_no_text_is_named(model: Any, bad: Any) -> None:
    with pytest.raises(ClipkitError, match=r"texts\[1\]"):
        model.encode_text(["a bird", bad])


@pytest.mark.parametrize("bad", [None, 42])
def test_what_is_no_text_and_no_list_of_texts_is_named(model: Any, files: list[Path], bad: Any) -> None:
    for ask in (model.encode_text, lambda texts: model.match(files, texts), lambda texts: model.caption(files, texts)):
        with pytest.raises(ClipkitError, match=f"^{bad} is no text"):
            ask(bad)


def test_half_an_emoji_is_a_strange_character(model: Any, transformers_clip: Path) -> None:
    for one in (model, clipkit.load(transformers_clip, device="cpu")):
        halves, whole = ["a\ud83d bird", "\ud83d\ude00"], ["a\ufffd bird", "\U0001f600"]
        np.testing.assert_array_equal(one.encode_text(halves), one.encode_text(whole))
        np.testing.assert_array_equal(one.encode_text("\ud83d " * 300), one.encode_text("\ufffd " * 300))
        tokens = one.model.tokenizer(["\ud83d " * 300])
        assert one.model.tokenizer.too_long(tokens, ["\ud83d " * 300]) == [True]


def test_an_unknown_decoder_is_named(model: Any, files: list[Path]) -> None:
    with pytest.raises(ClipkitError, match="turbo"):
        model.encode_image(files, decode="turbo")


def test_long_texts_are_cut_and_short_ones_do_not_depend_on_company(model: Any) -> None:
    long = "a bird " * 100
    rows = model.encode_text(["dog", long, "a bird " * 120])
    np.testing.assert_allclose(rows[1], rows[2], atol=1e-5)
    np.testing.assert_allclose(rows[0], model.encode_text("dog"), atol=1e-5)


def test_scale_bias_and_kind(model: Any, sigmoid_model: Any) -> None:
    assert model.kind == "softmax" and model.bias == 0.0 and model.embed_dim == 24
    assert model.scale == pytest.approx(float(model.model.log_scale.detach().exp()))
    assert sigmoid_model.kind == "sigmoid" and sigmoid_model.bias == pytest.approx(-10, abs=0.2)
    assert sigmoid_model.embed_dim == 32 and repr(model).startswith("Aligner(")


def test_encoding_leaves_no_trace(model: Any, files: list[Path]) -> None:
    """No gradient, no training mode, no change of global settings; the same twice."""
    before = torch.get_float32_matmul_precision(), torch.get_num_threads(), torch.is_grad_enabled()
    one = model.encode_image(files)
    assert np.array_equal(one, model.encode_image(files))
    assert (torch.get_float32_matmul_precision(), torch.get_num_threads(), torch.is_grad_enabled()) == before
    assert not model.model.training and all(p.grad is None for p in model.model.parameters())


def test_match_is_the_best_assignment(model: Any, picture: Any) -> None:
    from itertools import permutations

    pictures = [picture(30 + i) for i in range(5)]
    for n, m in ((5, 5), (3, 5), (5, 2)):
        captions = ["a red bird", "two dogs", "the small wall", "a photo", "cat on the wall"][:m]
        match = model.match(pictures[:n], captions)
        assert match.matrix.shape == (n, m)
        np.testing.assert_allclose(match.matrix, model.similarity(pictures[:n], captions), atol=1e-6)
        assert match.best_caption.tolist() == match.matrix.argmax(1).tolist()
        assert match.best_image.tolist() == match.matrix.argmax(0).tolist()
        pairs = match.assignment
        assert len(pairs) == min(n, m) == len({i for i, _ in pairs}) == len({j for _, j in pairs})
        assert pairs == sorted(pairs)
        total = sum(match.matrix[i, j] for i, j in pairs)
        small, matrix = (n, match.matrix) if n <= m else (m, match.matrix.T)
        best = max(sum(matrix[i, p[i]] for i in range(small)) for p in permutations(range(max(n, m)), small))
        assert total == pytest.approx(best, abs=1e-5)


def test_match_wants_both_sides(model: Any, files: list[Path]) -> None:
    for pictures, captions in (([], ["a"]), (files, [])):
        with pytest.raises(ClipkitError, match="at least one"):
            model.match(pictures, captions)


def test_match_of_one_picture_and_one_caption(model: Any, files: list[Path]) -> None:
    match = model.match(files[0], "a bird")
    assert match.matrix.shape == (1, 1) and match.assignment == [(0, 0)]


def test_captions_are_the_nearest_of_the_pool(model: Any, files: list[Path]) -> None:
    pool = ["a red bird", "two dogs", "a red bird", "the small wall", "a photo"]
    distinct = ["a red bird", "two dogs", "the small wall", "a photo"]
    scores = model.similarity(files, distinct)
    for k in (1, 3, 9):
        found = model.caption(files, pool, k)
        for row, best in zip(scores, found, strict=True):
            order = np.argsort(-row, kind="stable")[:k]
            assert [caption for caption, _ in best] == [distinct[j] for j in order]
            np.testing.assert_allclose([score for _, score in best], row[order], atol=1e-6)
    assert model.caption(files[0], pool, 3) == model.caption(files[:1], pool, 3)[0]
    prompts = ["a photo of {}.", "{} on a wall"]
    classifier = model.classifier(distinct, prompts)
    best = model.caption(files[0], pool, 4, prompts)
    expected = dict(zip(distinct, model.encode_image(files[0]) @ classifier.weights.T, strict=True))
    assert {caption: pytest.approx(score, abs=1e-5) for caption, score in best} == expected
    for wrong, said in (([], "pool is empty"), (["a dog", " "], "is empty")):
        with pytest.raises(ClipkitError, match=said):
            model.caption(files, wrong)
    with pytest.raises(ClipkitError, match="k is 0"):
        model.caption(files, pool, 0)


def test_captions_are_encoded_beside_others_of_as_many_tokens(model: Any, transformers_clip: Path) -> None:
    """Not of as many letters: a long word may be one token, a short one three."""
    captions = ["qzxj vwq", "photograph", "a", "a bird on a wall", "xq", "understanding photographs", "a dog"]
    for one in (model, clipkit.load(transformers_clip, device="cpu")):
        tokenizer = one.model.tokenizer
        assert tokenizer.cut
        counted = [tokenizer([caption]).shape[1] for caption in captions]
        order = tokenizer.by_length(captions)
        assert sorted(order) == list(range(7)) and [counted[i] for i in order] == sorted(counted)
    letters = sorted(range(7), key=lambda i: len(captions[i]))
    assert model.model.tokenizer.by_length(captions) != letters
    assert model.model.tokenizer.by_length([]) == []
