"""``clipkit index`` and ``clipkit search``: what they find, print and refuse."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent / "training"))

from training_helpers import ROOT, draw

from clipkit.errors import ClipkitError

Cli = Callable[..., tuple[int, str, str]]
pytestmark = pytest.mark.usefixtures("own_cache")


def test_search(cli: Cli, run: Path, table: Path) -> None:
    status, out, err = cli("search", "a red left", "--model", run, "-n", "4")
    assert status == 0 and err == ""
    lines = out.splitlines()
    assert len(lines) == 4
    scores = [float(line.split()[0]) for line in lines]
    assert scores == sorted(scores, reverse=True)
    assert any("red" in line for line in lines), "the run has learned its pictures"
    status, out, _ = cli("search", table.parent / "010.png", "--model", run, "-n", "1")
    assert status == 0 and "a red right" in out and out.startswith("1.000"), "a picture finds itself"


def test_search_json(cli: Cli, run: Path, table: Path) -> None:
    status, out, _ = cli("search", "a red left", "--model", run, "-n", "3", "--json")
    hits = json.loads(out)
    assert status == 0 and len(hits) == 3
    assert {"score", "path", "caption"} <= hits[0].keys()
    status, out, _ = cli("search", "a red left", "--model", run, "--json", "--threshold", "2")
    assert status == 0 and json.loads(out) == []
    status, out, _ = cli("search", "a red left", "--model", run, "--images", table.parent, "--json", "-n", "100")
    hits = json.loads(out)
    assert len(hits) == 60 and all(Path(h["path"]).is_file() for h in hits)


def test_search_with_arithmetic_filters_and_a_viewer(
    cli: Cli, run: Path, table: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown: list[str] = []
    monkeypatch.setattr("webbrowser.open", shown.append)
    picture = table.parent / "010.png"
    common = ["--model", run, "--images", table.parent, "--json"]
    status, out, _ = cli("search", f'{picture} - "blue"', *common, "-n", "5", "--where", "key=01*", "--open")
    hits = json.loads(out)
    assert status == 0 and len(hits) == 5 and all(h["key"].startswith("01") for h in hits)
    assert [Path(address).name for address in shown] == [Path(h["path"]).name for h in hits]
    assert all(address.startswith("file:///") for address in shown)
    status, out, _ = cli("search", picture, *common, "-n", "60", "--hide-similar", "0.99")
    few = json.loads(out)
    assert few[0]["path"] == str(picture) and 1 <= len(few) < 60
    status, _, err = cli("search", "a bird", *common, "--where", "labl=bird")
    assert status == 2 and "labl" in err and err.count("\n") == 1


def test_index_and_search(cli: Cli, run: Path, table: Path, tmp_path: Path) -> None:
    folder = tmp_path / "photos"
    folder.mkdir()
    for colour in ("red", "blue"):
        draw(colour, "plain").save(folder / f"{colour}.png")
    (folder / "bad.png").write_bytes(b"no picture")
    status, out, err = cli("index", folder, "--model", run)
    assert status == 0 and "2 pictures" in out and (tmp_path / "photos.index").is_dir()
    assert err.startswith("clipkit: skipped") and "bad.png" in err and err.count("\n") == 1
    assert "(2 added)" in out
    status, out, _ = cli("index", folder, "--model", run)
    assert status == 0 and "2 pictures indexed (nothing has changed)" in out
    status, out, _ = cli("search", "a red plain", "--index", tmp_path / "photos.index", "--model", run, "--json")
    assert status == 0 and sorted(Path(h["path"]).name for h in json.loads(out)) == ["blue.png", "red.png"]
    status, out, _ = cli("index", folder, "--model", run, "--output", tmp_path / "other.index")
    assert status == 0 and (tmp_path / "other.index").is_dir()


def test_an_index_of_another_model(cli: Cli, mistake: Any, run: Path, table: Path, tmp_path: Path) -> None:
    assert cli("index", table.parent, "--model", run, "--output", tmp_path / "an.index")[0] == 0
    other = tmp_path / "an.index" / "index.json"
    header = json.loads(other.read_text())
    other.write_text(json.dumps({**header, "fingerprint": "of another"}))
    assert "an.index" in mistake("search", "a bird", "--index", tmp_path / "an.index", "--model", run)
    again = ("index", table.parent, "--model", run, "--output", tmp_path / "an.index")
    for damage in (json.dumps({**header, "fingerprint": "of another"}), json.dumps({**header, "format": 1}), "{"):
        other.write_text(damage)
        assert "--rebuild" in mistake(*again), "says how to mend it"
        assert cli(*again, "--rebuild")[0] == 0
        assert cli("search", "a bird", "--index", tmp_path / "an.index", "--model", run)[0] == 0


@pytest.mark.parametrize("part", ["embeddings-*", "items-*", "index.json"])
def test_what_is_lost_from_the_cache_is_made_again(
    cli: Cli, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, part: str
) -> None:
    monkeypatch.setenv("CLIPKIT_CACHE", str(tmp_path / "cache"))
    (tmp_path / "photos").mkdir()
    draw("red", "plain").save(tmp_path / "photos" / "red.png")
    command = ("search", "a red plain", "--images", tmp_path / "photos", "--model", run)
    status, out, _ = cli(*command)
    (lost,) = (tmp_path / "cache" / "folders").glob(f"*/{part}")
    lost.unlink()
    assert cli(*command) == (0, out, "") and status == 0


def test_where_an_index_goes(tmp_path: Path, monkeypatch: Any) -> None:
    from clipkit.search_commands import MakeIndex

    (tmp_path / "photos").mkdir()
    monkeypatch.chdir(tmp_path / "photos")
    assert MakeIndex(".")._beside() == str(tmp_path / "photos.index")
    assert MakeIndex("..")._beside() == f"{tmp_path}.index"
    assert MakeIndex("a/b/")._beside() == "a/b.index"
    with pytest.raises(ClipkitError, match="pass --output"):
        MakeIndex("/")._beside()


@pytest.mark.parametrize("flags", ["--threshold nan", "--hide-similar inf", "--group nan", "--images . --index x"])
def test_flags_that_make_no_sense(mistake: Any, flags: str) -> None:
    assert flags.split()[0] in mistake("search", "a bird", *flags.split())


def test_index_with_captions(cli: Cli, run: Path, mistake: Any, tmp_path: Path) -> None:
    folder = tmp_path / "photos"
    (folder / "deep").mkdir(parents=True)
    for i, colour in enumerate(("red", "blue", "green")):
        draw(colour, "plain").save(folder / ("deep" if i else ".") / f"{colour}.png")
    captions = tmp_path / "captions.csv"
    captions.write_text(
        "filepath,caption\nred.png,a tree in winter\ndeep/blue.png,two dogs\ndeep/blue.png,a boat\ngone.png,a cat\n"
    )
    status, out, err = cli("index", folder, "--captions", captions, "--model", run)
    assert status == 0 and "3 pictures indexed (3 added, 3 captions)" in out
    assert err.count("\n") == 1 and "gone.png" in err
    search = ["--index", tmp_path / "photos.index", "--model", run, "--json"]
    for text, name in (("a boat", "blue.png"), ("two dogs", "blue.png"), ("a tree in winter", "red.png")):
        for by in ("caption", "either"):
            hits = json.loads(cli("search", text, "--by", by, *search)[1])
            assert hits[0]["path"].endswith(name) and hits[0]["caption"] == text and hits[0]["score"] > 0.999
            assert len(hits) == (2 if by == "caption" else 3)
    status, out, _ = cli("index", folder, "--model", run)
    assert status == 0 and "nothing has changed" in out, "the captions stay"
    assert len(json.loads(cli("search", "a boat", "--by", "caption", *search)[1])) == 2

    (tmp_path / "real.png").write_bytes((folder / "red.png").read_bytes())
    (folder / "red.png").unlink()
    (folder / "red.png").symlink_to(tmp_path / "real.png")
    status, out, _ = cli("index", folder, "--captions", captions, "--model", run)
    assert status == 0 and "3 captions" in out, "a picture that is a link has its captions"

    captions.write_text("filepath,caption\nphotos/deep/green.png,a boat\n")  # from where the table is
    assert cli("index", folder, "--captions", captions, "--model", run)[0] == 0
    hits = json.loads(cli("search", "a boat", "--by", "caption", *search)[1])
    assert [Path(h["path"]).name for h in hits] == ["green.png"]

    captions.write_text(f"filepath,caption\n{tmp_path / 'elsewhere.png'},a boat\n")
    draw("red", "plain").save(tmp_path / "elsewhere.png")
    assert "names no picture" in mistake("index", folder, "--captions", captions, "--model", run)
    cli("index", folder, "--output", tmp_path / "plain.index", "--model", run)
    plain = ["--index", tmp_path / "plain.index", "--model", run]
    assert "--captions" in mistake("search", "a boat", "--by", "caption", *plain)


def test_index_of_shards(cli: Cli, run: Path, table: Path, mistake: Any, tmp_path: Path) -> None:
    assert cli("prepare", table, tmp_path / "shards")[0] == 0
    train = tmp_path / "shards" / "train"
    status, out, _ = cli("index", train, "--model", run)
    assert status == 0 and "pictures indexed" in out and "captions" in out
    search = ["--index", f"{train}.index", "--model", run, "--json", "-n", "1"]
    hit = json.loads(cli("search", "a red left", "--by", "caption", *search)[1])[0]
    assert hit["caption"] == "a red left" and hit["score"] > 0.999
    assert "--captions" in mistake("index", train, "--captions", table, "--model", run)


def test_the_runs_own_index_holds_its_captions(cli: Cli, run: Path) -> None:
    status, out, _ = cli("search", "a red left", "--by", "caption", "--model", run, "-n", "1")
    assert status == 0 and out.startswith("1.000") and "a red left" in out


def test_grouped_hits_say_how_many_stand_behind(cli: Cli, run: Path, mistake: Any, tmp_path: Path) -> None:
    for i in range(5):
        draw("red", "plain").save(tmp_path / f"red{i}.png")
    draw("blue", "left").save(tmp_path / "blue.png")
    common = ["--images", tmp_path, "--model", run]
    status, out, _ = cli("search", tmp_path / "red2.png", *common, "--group", "0.999")
    lines = out.splitlines()
    assert status == 0 and len(lines) == 2 and "red0.png" in lines[0] and lines[0].endswith("and 4 like it")
    assert "like it" not in lines[1]
    hits = json.loads(cli("search", tmp_path / "red2.png", *common, "--group", "0.999", "--json")[1])
    assert [h["others"] for h in hits] == [4, 0]
    assert "hide_similar" in mistake("search", "a", *common, "--group", "0.9", "--hide-similar", "0.9")


def _not_installed(backend: str) -> Any:
    raise ClipkitError(f"{backend} is not installed; pip install 'clipkit[{backend}]', or choose exact")


def test_backends(cli: Cli, run: Path, table: Path, mistake: Any, tmp_path: Path, monkeypatch: Any) -> None:
    pytest.importorskip("faiss", reason="faiss is not installed: pip install 'clipkit[faiss]'")
    index = ["index", table.parent, "--output", tmp_path / "an.index", "--model", run]
    search = ["search", "a red left", "--index", tmp_path / "an.index", "--model", run, "--json"]
    assert cli(*index)[0] == 0
    exact = cli(*search)[1]
    status, out, _ = cli(*index, "--backend", "faiss")
    assert status == 0 and "pictures are searched with faiss: it finds 100.0% of the exact 10 best" in out
    assert cli(*search)[1] == exact and list((tmp_path / "an.index").glob("faiss-*"))
    status, out, _ = cli(*index)
    assert status == 0 and "faiss" in out and "nothing has changed" in out, "it stays what it is"
    with monkeypatch.context() as patch:
        patch.setattr("clipkit.inference.approximate._library", _not_installed)
        assert "choose exact" in mistake(*search)
        assert cli(*index, "--backend", "exact")[0] == 0 and not list((tmp_path / "an.index").glob("faiss-*"))
    assert "--backend milvus" in mistake(*index, "--uri", "http://localhost:19530")
    mistake(*index, "--backend", "fais")


@pytest.mark.slow
def test_a_closed_pipe_is_no_error(run: Path, table: Path) -> None:
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        f"{sys.executable} -m clipkit search 'a red left' --model {run} --images {table.parent} -n 60 | head -n 1",
        shell=True, env=env, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert "Traceback" not in done.stderr and "BrokenPipe" not in done.stderr
    assert done.stdout.count("\n") == 1
