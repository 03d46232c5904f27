"""Retrieval against a full sort in float64, and the ways in which a recall@k is usually wrong."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from clipkit.errors import ClipkitError
from clipkit.evaluation import RetrievalReport, best_and_worst, best_pairs, retrieval, retrieval_ranks


def unit(rows: np.ndarray) -> np.ndarray:
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def problem(
    seed: int = 0, n: int = 23, d: int = 12, most: int = 4, noise: float = 1.5
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Pictures with 1 to `most` captions each, in shuffled order, near enough to be found now and then."""
    rng = np.random.default_rng(seed)
    image = unit(rng.normal(size=(n, d)))
    owner = rng.permutation(np.repeat(np.arange(n), rng.integers(1, most + 1, n)))
    return image, unit(image[owner] + noise * unit(rng.normal(size=(len(owner), d)))), owner


def sorted_ranks(image: np.ndarray, text: np.ndarray, owner: np.ndarray) -> tuple[list[int], list[int]]:
    """Ranks from a full sort of exact scores, others before own where the scores are equal."""
    scores = image.astype(np.float64) @ text.astype(np.float64).T
    scores = scores.round(12)
    by_image = []
    for i, row in enumerate(scores):
        order = sorted(range(len(text)), key=lambda j: (-row[j], owner[j] == i))
        by_image.append(1 + [owner[j] == i for j in order].index(True))
    by_text = []
    for j, column in enumerate(scores.T):
        order = sorted(range(len(image)), key=lambda i: (-column[i], i == owner[j]))
        by_text.append(1 + order.index(owner[j]))
    return by_image, by_text


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("tile", [(1, 1), (4, 7), (23, 5), (1000, 1000)])
def test_ranks_equal_a_full_sort_whatever_the_tile(seed: int, tile: tuple[int, int]) -> None:
    image, text, owner = problem(seed)
    ranks = retrieval_ranks(image, text, owner, tile=tile)
    by_image, by_text = sorted_ranks(image, text, owner)
    assert ranks.image_N.tolist() == by_image
    assert ranks.text_M.tolist() == by_text
    assert len(set(by_image)) > 2, "the problem must have hits and misses"


@pytest.mark.parametrize("tile", [(3, 5), (1000, 1000)])
def test_ranks_with_many_exact_ties(tile: tuple[int, int]) -> None:
    """Few distinct vectors, many copies: most comparisons are ties, and float32 tiles may not break them."""
    rng = np.random.default_rng(1)
    prototypes = unit(rng.normal(size=(5, 33)))
    image, owner = prototypes[rng.integers(0, 5, 40)], np.repeat(np.arange(40), 2)
    text = prototypes[rng.integers(0, 5, 80)]
    ranks = retrieval_ranks(image, text, owner, tile=tile)
    by_image, by_text = sorted_ranks(image, text, owner)
    assert ranks.image_N.tolist() == by_image
    assert ranks.text_M.tolist() == by_text


def test_near_ties_below_float32_resolution_are_ranked_exactly() -> None:
    rng = np.random.default_rng(2)
    centre = rng.normal(size=64)
    image = unit(centre + 1e-5 * rng.normal(size=(60, 64)))
    text = unit(centre + 1e-5 * rng.normal(size=(60, 64)))
    ranks = retrieval_ranks(image, text, np.arange(60), tile=(7, 11))
    by_image, by_text = sorted_ranks(image, text, np.arange(60))
    assert ranks.image_N.tolist() == by_image
    assert ranks.text_M.tolist() == by_text


def test_recall_counts_a_hit_for_any_caption() -> None:
    image, text, owner = problem(3, n=40)
    report = retrieval(image, text, owner, ks=(1, 3, 10), bootstrap=0)
    by_image, by_text = (np.array(ranks) for ranks in sorted_ranks(image, text, owner))
    for k in (1, 3, 10):
        assert report.image_to_text[k].value == pytest.approx((by_image <= k).mean())
        assert report.text_to_image[k].value == pytest.approx((by_text <= k).mean())
    assert report.median_rank_image_to_text == np.median(by_image)
    assert report.median_rank_text_to_image == np.median(by_text)
    assert 0 < report.image_to_text[1].value < report.image_to_text[10].value < 1


def test_a_perfect_model_is_perfect_with_five_captions_a_picture() -> None:
    image = unit(np.random.default_rng(0).normal(size=(30, 16)))
    owner = np.repeat(np.arange(30), 5)
    report = retrieval(image, image[owner], owner)
    assert report.image_to_text[1].value == report.text_to_image[1].value == 1
    # 30 of 30 right does not prove more than this
    assert report.image_to_text[1].low == pytest.approx(0.025 ** (1 / 30))


def test_identical_captions_count_against_the_model_only_across_pictures() -> None:
    image = np.eye(3, dtype=np.float32)
    same_picture = retrieval(image, image[[0, 0, 1, 2]], [0, 0, 1, 2], ks=(1,), bootstrap=0)
    assert same_picture.image_to_text[1].value == 1
    two_pictures = retrieval(image, image[[0, 1, 2, 1]], [0, 1, 2, 2], ks=(1,), bootstrap=0)
    assert two_pictures.image_to_text[1].value == pytest.approx(2 / 3)  # picture 1 ties with picture 2's
    twins = retrieval(image[[0, 0, 1]], image[[0, 0, 1]], [0, 1, 2], ks=(1,), bootstrap=0)
    assert twins.image_to_text[1].value == twins.text_to_image[1].value == pytest.approx(1 / 3)


@pytest.mark.parametrize("width", [3, 100, 384])
def test_a_collapsed_model_never_beats_chance(width: int) -> None:
    """Every embedding the same: all scores tie, whatever float32 makes of their last bits."""
    row = unit(np.random.default_rng(4).normal(size=(1, width)))
    owner = np.repeat(np.arange(50), 3)
    report = retrieval(np.repeat(row, 50, 0), np.repeat(row, 150, 0), owner, bootstrap=0)
    for k in (1, 5, 10):
        assert report.image_to_text[k].value <= report.chance_image_to_text[k]
        assert report.text_to_image[k].value <= report.chance_text_to_image[k]


def test_order_of_pictures_and_captions_does_not_matter() -> None:
    image, text, owner = problem(5, n=60)
    rng = np.random.default_rng(0)
    new_i, new_t = rng.permutation(len(image)), rng.permutation(len(text))
    shuffled = retrieval(image[new_i], text[new_t], np.argsort(new_i)[owner[new_t]])
    assert shuffled.to_dict() == retrieval(image, text, owner).to_dict()  # the intervals included


def test_chance_is_the_expectation_of_random_rankings() -> None:
    captions = [1, 1, 2, 5, 3]
    owner = np.repeat(np.arange(5), captions)
    rng = np.random.default_rng(0)
    hits = dict.fromkeys((1, 4), 0.0)
    draws = 4000
    for _ in range(draws):
        order = owner[rng.permuted(np.tile(np.arange(12), (5, 1)), axis=1)]
        for k in hits:
            hits[k] += (order[:, :k] == np.arange(5)[:, None]).any(1).mean() / draws
    image = np.eye(5, dtype=np.float32)
    report = retrieval(image, image[owner], owner, ks=(1, 4, 8, 12, 99), bootstrap=0)
    for k, simulated in hits.items():
        assert report.chance_image_to_text[k] == pytest.approx(simulated, abs=0.01)
    assert report.chance_image_to_text[1] == pytest.approx(np.mean(captions) / 12)
    assert report.chance_image_to_text[12] == report.chance_image_to_text[99] == 1
    assert report.chance_text_to_image[4] == 4 / 5
    assert report.chance_text_to_image[99] == 1


def test_k_above_the_number_of_candidates_is_a_hit() -> None:
    image, text, owner = problem(6, n=5, noise=9)
    report = retrieval(image, text, owner, ks=(1000,), bootstrap=10)
    assert report.image_to_text[1000].value == report.text_to_image[1000].value == 1


def test_random_embeddings_are_at_chance() -> None:
    rng = np.random.default_rng(7)
    owner = np.repeat(np.arange(400), 3)
    image, text = unit(rng.normal(size=(400, 64))), unit(rng.normal(size=(1200, 64)))
    report = retrieval(image, text, owner, ks=(40, 150))
    for k in (40, 150):
        assert report.image_to_text[k].low < report.chance_image_to_text[k] < report.image_to_text[k].high
        assert report.text_to_image[k].low < report.chance_text_to_image[k] < report.text_to_image[k].high


def test_intervals_draw_pictures_with_their_captions_and_groups_whole() -> None:
    """Captions of a picture hit or miss together here, so drawing captions one by one would be too sure."""
    rng = np.random.default_rng(8)
    image = np.eye(40, dtype=np.float32)
    owner = np.repeat(np.arange(40), 10)
    wrong = np.arange(40) >= 20
    target = np.where(wrong[owner], (owner + 1) % 40, owner)
    by_picture = retrieval(image, image[target], owner, ks=(1,)).text_to_image[1]
    assert by_picture.value == 0.5
    expected = 2 * 1.96 * (0.25 / 40) ** 0.5
    assert by_picture.high - by_picture.low == pytest.approx(expected, rel=0.15)
    groups = np.array(["a", "b"])[wrong.astype(int)]
    by_group = retrieval(image, image[target], owner, ks=(1,), group_N=groups).text_to_image[1]
    assert (by_group.low, by_group.high) == (0, 1)
    tens = retrieval(image, image[target], owner, ks=(1,), group_N=rng.permutation(40) // 10)
    assert "4 groups of pictures" in tens.protocol


def test_tensors_and_lists_give_what_arrays_give() -> None:
    image, text, owner = problem(9)
    expected = retrieval(image, text, owner).to_dict()
    tensors = retrieval(torch.tensor(image, requires_grad=True), torch.tensor(text), torch.tensor(owner))
    assert tensors.to_dict() == expected
    assert retrieval(image.tolist(), text.tolist(), owner.tolist()).to_dict() == expected


def test_the_report_is_json_and_one_line() -> None:
    report = retrieval(*problem(10))
    assert json.loads(json.dumps(report.to_dict(), allow_nan=False))["kind"] == "retrieval"
    assert report.metrics()["image_to_text@1"] == report.image_to_text[1].value
    assert "\n" not in str(report) and "@10" in str(report) and "chance" in str(report)
    plain = retrieval(*problem(10), bootstrap=0)
    assert json.loads(json.dumps(plain.to_dict(), allow_nan=False))["image_to_text"]["1"]["low"] is None
    assert isinstance(plain, RetrievalReport) and "[" not in str(plain) and "bootstrap" not in plain.protocol


def bad(**changes: object) -> dict[str, object]:
    image, text, owner = problem(11, n=6)
    return {"image_ND": image, "text_MD": text, "image_of_text_M": owner, **changes}


def test_wrong_inputs_are_named() -> None:
    image, text, owner = problem(11, n=6)
    nan, long = image.copy(), text.copy()
    nan[2, 3] = np.nan
    long[4] *= 3
    lonely = np.where(owner == 5, 0, owner)
    cases = [
        (bad(image_ND=nan), r"image_ND\[2, 3\] is nan"),
        (bad(image_ND=np.where(np.isnan(nan), np.inf, nan)), r"image_ND\[2, 3\] is inf"),
        (bad(text_MD=long), r"text_MD\[4\] has norm 3"),
        (bad(text_MD=np.zeros_like(text)), r"text_MD\[0\] has norm 0"),
        (bad(image_ND=image[0]), r"image_ND has shape \(12,\)"),
        (bad(image_ND=image[:0]), r"image_ND has shape \(0, 12\)"),
        (bad(text_MD=unit(text[:, :5])), "image_ND has 12 dimensions and text_MD 5"),
        (bad(image_of_text_M=owner[:-1]), "image_of_text_M has shape"),
        (bad(image_of_text_M=owner + 0.5), "image_of_text_M has dtype float64"),
        (bad(image_of_text_M=owner + 1), r"image_of_text_M\[\d+\] is 6, but there are 6 pictures"),
        (bad(image_of_text_M=owner - 1), r"image_of_text_M\[\d+\] is -1"),
        (bad(image_of_text_M=lonely), "picture 5 has no caption"),
        (bad(ks=(1, 0)), "ks contains 0"),
        (bad(ks=(1, 2.5)), "ks contains 2.5"),
        (bad(ks=()), "ks is empty"),
        (bad(bootstrap=-1), "bootstrap is -1"),
        (bad(group_N=[1, 2]), "group_N has shape"),
        (bad(image_ND=np.array([["a", "b"]])), "image_ND has dtype"),
    ]
    for arguments, message in cases:
        with pytest.raises(ClipkitError, match=message) as error:
            retrieval(**arguments)  # type: ignore[arg-type]
        assert "\n" not in str(error.value)


def test_inputs_are_left_as_they_are() -> None:
    image, text, owner = problem(12)
    before = image.copy(), text.copy(), owner.copy()
    retrieval(image, text, owner)
    for now, then in zip((image, text, owner), before, strict=True):
        np.testing.assert_array_equal(now, then)


def test_best_pairs_show_what_was_found() -> None:
    image, text, owner = problem(13, n=30)
    ranks = retrieval_ranks(image, text, owner)
    matches = best_pairs(image, text, owner, k=4)
    scores = image.astype(np.float64) @ text.astype(np.float64).T
    assert [match.picture for match in matches] == list(range(30))
    for i, match in enumerate(matches):
        assert match.rank == ranks.image_N[i]
        assert owner[match.caption] == i
        assert match.score == pytest.approx(scores[i][owner == i].max())
        assert [caption for caption, _, _ in match.retrieved] == np.argsort(-scores[i])[:4].tolist()
        assert [own for _, _, own in match.retrieved] == [owner[c] == i for c, _, _ in match.retrieved]
        assert (match.rank == 1) == match.retrieved[0][2]
    assert best_pairs(image, text, owner, pictures=[7, 3], k=4) == [matches[7], matches[3]]
    assert len(best_pairs(image, text, owner, pictures=[0], k=10_000)[0].retrieved) == len(text)
    with pytest.raises(ClipkitError, match=r"pictures\[0\] is 30"):
        best_pairs(image, text, owner, pictures=[30])


def test_best_and_worst_do_not_overlap() -> None:
    image, text, owner = problem(14, n=30)
    rank = retrieval_ranks(image, text, owner).image_N
    best, worst = best_and_worst(image, text, owner, n=5)
    assert sorted(match.rank for match in best) == sorted(rank)[:5]
    assert [match.rank for match in worst] == sorted(rank)[::-1][:5]
    few, others = best_and_worst(image[:3], image[:3], np.arange(3), n=5)
    assert len(few) == 2 and len(others) == 1
    assert {match.picture for match in few} | {match.picture for match in others} == {0, 1, 2}
