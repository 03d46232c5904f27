"""``clipkit explain``: roles and gradients are those of the recipe's own objective, and the page says what they are."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional as F

sys.path.insert(0, str(Path(__file__).parent / "training"))

from training_helpers import make_config, make_table

from clipkit import objectives
from clipkit.cli import main
from clipkit.errors import ClipkitError
from clipkit.explain.page import document
from clipkit.explain.samples import write_samples
from clipkit.explain.table import Explained, Nudged, nudge
from clipkit.explain.text import differences, grid, report
from clipkit.explain.words import cell, facts, sentence
from clipkit.explain_command import Explain, explain_recipe
from clipkit.objectives import Comparison


@pytest.fixture(scope="module", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CLIPKIT_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def explained(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Explained]:
    """``explained("simclr", "--queue", "64")``: with a tiny model and four built-in samples."""
    tiny = str(make_config(tmp_path_factory.mktemp("model") / "tiny.json"))

    @cache
    def explain(name: str, *flags: str, samples: int = 4) -> Explained:
        model = [] if name == "two_tower" else ["--model", tiny]
        return explain_recipe(name, Explain(samples=samples), [*model, *flags])

    return explain


def roles(e: Explained, table: int = 0) -> list[str]:
    return ["".join(row) for row in e.tables[table].roles]


# Roles


def test_the_roles_of_pairs(explained: Any) -> None:
    """The fourth sample says what the first says."""
    for name in ("clip", "siglip", "lit", "margin", "triplet"):
        assert roles(explained(name)) == ["+--g", "-+--", "--+-", "g--+"], name
    assert roles(explained("clip", "--no-guard")) == ["+---", "-+--", "--+-", "---+"]


def test_hard_negatives_are_columns_of_their_own(explained: Any) -> None:
    e = explained("clip", "--negatives", "column")
    assert roles(e) == ["+-----g-", "--+-----", "----+---", "g-----+-"]
    assert [key.code for key in e.tables[0].keys] == ["1", "1x", "2", "2x", "3", "3x", "4", "4x"]
    assert e.tables[0].keys[1].name == "a blue circle"


def test_the_roles_of_views(explained: Any) -> None:
    simclr = roles(explained("simclr"))
    assert simclr == ["".join("." if i == j else "+" if abs(i - j) == 4 else "-" for j in range(8)) for i in range(8)]
    # labels are the shapes: the first and the fourth are circles
    assert roles(explained("supcon"))[0] == ".--++--+"
    e = explained("moco", "--queue", "64")
    assert roles(e) == ["+kkk", "k+kk", "kk+k", "kkk+"]
    table = e.tables[0]
    assert table.queue.size == 64 and {i.kind for i in table.keys} == {"target"}
    assert [i.code for i in table.queries] == ["1a", "2a", "3a", "4a"] and table.keys[0].code == "1b"
    both = explained("moco", "--queue", "64", "--symmetric").tables[0]
    assert [i.code for i in both.keys] == [f"{n}{v}" for v in "ba" for n in range(1, 5)], "each with the other view"
    byol = explained("byol")
    assert roles(byol)[0] == "+ooooooo" and "no negatives" in sentence(byol)


def test_slip_has_two_tables(explained: Any) -> None:
    e = explained("slip")
    assert [roles(e)[0], roles(e, 1)[0]] == ["+--g", ".---+---"]
    assert e.loss == pytest.approx(sum(t.loss for t in e.tables))
    assert e.tables[0].learned and not e.tables[1].learned and e.tables[1].temperature == pytest.approx(0.1)
    pictures = [item.picture for item in (e.tables[0].queries[0], *e.tables[1].queries[0:5:4])]
    assert not any(torch.equal(pictures[i], pictures[j]) for i, j in ((0, 1), (0, 2), (1, 2))), "three views"


def test_sentences_and_interactions(explained: Any) -> None:
    e = explained("simcse")
    assert roles(e) == ["+---", "-+--", "--+-", "---+"]
    pairs = {q.name: k.name for q, k in zip(e.tables[0].queries, e.tables[0].keys, strict=True)}
    assert pairs["the train leaves at noon"] == "the train leaves at noon", "alone: itself, twice"
    assert {"a dog runs on the beach", "a dog is running along the sea"} in [{q, k} for q, k in pairs.items()]
    two = explained("two_tower")
    assert [q.name for q in two.tables[0].queries] == ["Ann", "Ann", "Ben", "Ben"]
    assert [k.name for k in two.tables[0].keys] == ["green tea", "teapot", "green tea", "kettle"]
    assert roles(two) == ["+gg-", "g+g-", "g-+g", "g-g+"]
    assert two.tables[0].shifted and "logQ" in facts(two)["temperature"]


# Gradients


def random_table(kind: str) -> Comparison:
    torch.manual_seed(3)
    q, k, queue = (F.normalize(torch.randn(n, 6, dtype=torch.float64), dim=1) for n in (5, 5, 3))
    ids = torch.tensor([0, 1, 2, 3, 1])
    scale, bias = torch.tensor([1.3]), torch.tensor([-0.4])
    if kind == "itself":
        return Comparison(q, q, ids, ids, scale, itself=True)
    groups = torch.tensor([[7], [8], [7], [9], [-1]])
    shift = torch.randn(5)
    queued = queue if kind == "queue" else None
    return Comparison(
        q, k, ids, ids, scale, bias, query_groups=groups, key_groups=groups, key_shift=shift, queue=queued
    )


OBJECTIVES: dict[str, Any] = {
    "infonce": objectives.infonce,
    "rows": partial(objectives.infonce, directions="rows"),
    "sigmoid": objectives.sigmoid,
    "margin": partial(objectives.margin, margin=1.2),
    "triplet": partial(objectives.triplet, margin=0.4, mining="semihard"),
    "cosine": objectives.negative_cosine,
}


@pytest.mark.parametrize("kind", ["plain", "itself", "queue"])
@pytest.mark.parametrize("name", OBJECTIVES)
def test_gradients_are_those_of_moving_one_score(name: str, kind: str) -> None:
    """By central differences on each cell; the objective's value is that of the comparison as it is."""
    objective, c = OBJECTIVES[name], random_table(kind)
    nudged = nudge(c)
    loss = objective(nudged)
    assert float(loss.detach()) == pytest.approx(float(objective(c).detach()), abs=1e-12)
    by_distance = name in ("margin", "triplet", "cosine")
    leaf = nudged.on_products if by_distance else nudged.on_scores
    (found,) = torch.autograd.grad(loss, [leaf])
    eps = 1e-6
    for i in range(leaf.shape[0]):
        for j in range(leaf.shape[1]):
            moved = []
            for sign in (1, -1):
                other = nudge(c)
                with torch.no_grad():
                    (other.on_products if by_distance else other.on_scores)[i, j] += sign * eps
                moved.append(float(objective(other).detach()))
            assert float(found[i, j]) == pytest.approx((moved[0] - moved[1]) / (2 * eps), abs=1e-6), (i, j)


def test_what_an_objective_asks_for_is_noticed() -> None:
    asked: dict[str, Nudged] = {name: nudge(random_table("plain")) for name in OBJECTIVES}
    for name, c in asked.items():
        OBJECTIVES[name](c)
        assert bool(c.asked) == (name != "cosine"), name


def test_gradients_of_recipes(explained: Any) -> None:
    """Cross-entropy moves as much up as down in every row, and what does not count not at all."""
    for e in (explained("clip"), explained("simclr"), explained("moco", "--queue", "64"), explained("two_tower")):
        table = e.tables[0]
        beside = table.queue.gradients if table.queue else 0
        if facts(e)["objective"].endswith("rows"):
            np.testing.assert_allclose(table.gradients.sum(1) + beside, 0, atol=1e-9)
        counts = np.isin(table.roles, ["+", "-"])
        assert (table.gradients[~counts] == 0).all() and (table.gradients[counts] != 0).all()
        assert (table.gradients[table.roles == "+"] < 0).all() and (table.gradients[table.roles == "-"] > 0).all()
    byol = explained("byol").tables[0]
    assert np.allclose(byol.gradients[byol.roles == "+"], -2 / 8) and (byol.gradients[byol.roles != "+"] == 0).all()
    assert byol.temperature is None


def test_an_objective_that_remembers(explained: Any) -> None:
    """It asks the recipe's data how many samples there are: the built-in ones too."""
    e = explained("clip", "--objective", "global")
    table = e.tables[0]
    assert e.objective[0] == "GlobalContrastive" and roles(e)[0] == "+--g"
    assert (table.gradients[table.roles == "+"] < 0).all() and table.gradients[0, 3] == 0


def test_a_table_that_is_not_held_is_refused(explained: Any) -> None:
    with pytest.raises(ClipkitError, match="--samples"):
        explained("moco", "--queue", "65536")


# Words, text, page


def test_the_terminal_shows_each_role_and_how_strong(explained: Any) -> None:
    lines = grid(explained("clip").tables[0])
    assert lines[0].split() == ["1", "2", "3", "4"]
    assert re.fullmatch(r"1 a red circle +\+\d +-\d +-\d +g", lines[1])
    assert "9" in "".join(lines[1:]), "the largest gradient"
    e = explained("triplet")
    (hit,) = np.unique((e.tables[0].gradients[0] != 0).sum())
    assert hit == 2 and grid(e.tables[0])[1].count("9") <= 2, "its own and the hardest"
    assert max(map(len, report([explained("simclr"), explained("moco", "--queue", "64")], 100).splitlines())) <= 100


def test_two_tables_stand_side_by_side_where_there_is_room(explained: Any) -> None:
    both = [explained("clip"), explained("siglip")]
    heads = [line for line in report(both, 200).splitlines() if line.split()[:4] == ["1", "2", "3", "4"]]
    assert [len(line.split()) for line in heads] == [8]
    heads = [line for line in report(both, 60).splitlines() if line.split()[:4] == ["1", "2", "3", "4"]]
    assert [len(line.split()) for line in heads] == [4, 4]


def test_what_differs(explained: Any) -> None:
    said = "\n".join(differences([explained("simclr"), explained("moco", "--queue", "64")], 120))
    for name in ("compared", "keys come from", "momentum encoder", "queue", "--view-temperature", "--symmetric"):
        assert re.search(rf"^{re.escape(name)} ", said, flags=re.M), name
    assert re.search(r"^--momentum +not set +0.99$", said, flags=re.M)
    assert "the same: " in said and "projection head: 512 to 128" in said
    assert "--model" not in said and "--train-data" not in said
    said = "\n".join(differences([explained("byol"), explained("byol", "--projector-norm")], 120))
    assert re.search(r"^projection head +512 to 128 +512 to 128, normalised$", said, flags=re.M)
    one = "\n".join(differences([explained("clip"), explained("clip")], 120))
    assert one.splitlines()[1].split() == ["clip", "clip"] and len(one.splitlines()) > 2


def test_where_keys_come_from(explained: Any) -> None:
    said = {name: facts(explained(name, *flags))["keys come from"] for name, flags in (
        ("clip", ()), ("simclr", ()), ("byol", ()), ("two_tower", ()))}  # fmt: skip
    assert said["clip"] == "the text tower, with a gradient" and said["byol"].endswith("without a gradient")
    assert said["simclr"] == "the same encoder, with a gradient" and said["two_tower"].startswith("the items' tower")
    assert facts(explained("clip", "--lock-text"))["keys come from"] == "the text tower, which is locked"


def test_a_cell_in_words(explained: Any) -> None:
    e = explained("clip")
    said = cell(e.tables[0], e, 0, 0)
    gradient = e.tables[0].gradients[0, 0]
    assert said.startswith("picture 1 (a red circle) with caption 1 (a red circle): positive; cosine")
    assert f"gradient {gradient:+.3g} (pulled together)" in said
    assert "does not count: captions that say the same" in cell(e.tables[0], e, 0, 3)
    moco = explained("moco", "--queue", "64")
    assert "queue's 64 keys" in cell(moco.tables[0], moco, 0, 4)


def test_the_page_holds_everything_and_loads_nothing(explained: Any) -> None:
    html = document([explained("simclr"), explained("moco", "--queue", "64")])
    assert html.count("<td ") >= 8 * 8 + 4 * 5 and html.count("data:image/webp;base64,") == 4 * (2 + 2 + 1 + 1)
    assert not re.search(r'(?:src|href)="(?!data:)', html) and "http" not in html
    cells = re.findall(r"<td [^>]*>", html)
    drawn = [c for c in cells if 'class="pos' in c or 'class="neg' in c or 'class="none' in c]
    assert len(drawn) == 8 * 8 + 4 * 5
    assert all("aria-label=" in c and "title=" in c for c in drawn)
    assert html.count('tabindex="0"') == 2, "one stop of the Tab key in each table"


def test_names_from_outside_are_escaped(tmp_path: Path) -> None:
    rows = ["<script>alert(1)</script> & co,the same", "another sentence,again", "and a third,once more"]
    (tmp_path / "evil.csv").write_text("\n".join(["sentence1,sentence2", *rows]) + "\n")
    tiny = str(make_config(tmp_path / "tiny.json"))
    flags = Explain(data=str(tmp_path / "evil.csv"), samples=3)
    html = document([explain_recipe("simcse", flags, ["--model", tiny])])
    assert "<script>alert" not in html and "&lt;script&gt;alert(1)&lt;/script&gt; &amp; co" in html


# The command


def test_the_command_on_ones_own_data(tmp_path: Path, capsys: Any) -> None:
    table, tiny = make_table(tmp_path / "pictures", 12), make_config(tmp_path / "tiny.json")
    page = tmp_path / "page.html"
    command = ["explain", "clip", "--data", table, "--samples", "3", "--model", tiny, "--output", page]
    assert main([str(word) for word in command]) == 0
    out = capsys.readouterr().out
    assert len(re.findall(r"^\d a \w+ \w+ +[+-]", out, flags=re.M)) == 3 and f"page: {page}" in out
    assert "captions.csv" in page.read_text()


def test_a_run_explains_itself(tmp_path: Path, capsys: Any) -> None:
    import clipkit

    tiny = make_config(tmp_path / "tiny.json")
    shapes = write_samples(tmp_path, "pairs", 8)
    threads, matmul = torch.get_num_threads(), torch.get_float32_matmul_precision()
    run = clipkit.train(
        "clip", train_data=str(shapes), model=str(tiny), batch_size=4, max_steps=4, lr=1e-2, warmup=0, workers=0,
        output=str(tmp_path / "run"),
    )  # fmt: skip
    torch.set_num_threads(threads)
    torch.set_float32_matmul_precision(matmul)
    capsys.readouterr()
    trained = explain_recipe(None, Explain(run=str(run), samples=4), [])
    fresh = explain_recipe("clip", Explain(data=str(shapes), samples=4), ["--model", str(tiny)])
    assert trained.recipe.name == "clip" and trained.weights == str(run)
    assert trained.source == fresh.source and not np.allclose(trained.tables[0].cosines, fresh.tables[0].cosines)
    assert main(["explain", "siglip", "--run", str(run)]) == 2
    assert "trained with recipe clip, not siglip" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ([], "no recipe is named"), (["klip"], "clip"), (["clip", "--samples", "1"], "--samples"),
        (["clip", "--samples", "99"], "32"), (["clip", "--data", "nowhere.csv"], "nowhere.csv"),
        (["clip", "--run", "nowhere"], "nowhere"), (["clip", "siglip", "--run", "x"], "one recipe"),
        (["simclr", "moco", "--queue", "9"], "simclr: --queue"),
        (["clip", "--sampels", "3"], "--sampels"), (["clip", "--output", "no/where/x.html"], "no/where"),
        (["--markdown", "no/where"], "no/where"),
    ],
)  # fmt: skip
def test_mistakes(arguments: list[str], named: str, capsys: Any) -> None:
    assert main(["explain", *arguments]) == 2
    err = capsys.readouterr().err
    assert named in err and err.count("\n") == 1


@pytest.mark.parametrize("compared", ["pairs", "sentences", "interactions"])
def test_built_in_samples_of_any_number(compared: str, explained: Any) -> None:
    name = {"pairs": "clip", "sentences": "simcse", "interactions": "two_tower"}[compared]
    e = explained(name, samples=32)
    assert len(e.tables[0].queries) == 32
    assert len({(q.name, k.name) for q, k in zip(e.tables[0].queries, e.tables[0].keys, strict=True)}) >= 16
