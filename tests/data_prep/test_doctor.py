"""The doctor finds each thing that was broken on purpose, says how to mend it, and finds nothing in what is fine."""

from __future__ import annotations

import io
import json
import random
from contextlib import redirect_stdout
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from data_prep_helpers import picture

from clipkit.config import Config
from data_prep import PlanRule, Record, SplitRule, write_shards
from data_prep.checks import expected_false_negatives
from data_prep.doctor import diagnose, main
from data_prep.examine import Examined, examine
from data_prep.sources import SourceOptions


def records(n: int, split: str = "train", start: int = 0) -> list[Record]:
    return [Record(f"{split}{i}", b"", (f"caption {start + i} of {split}.",), {}, split) for i in range(n)]


def examined(given: list[Record], **changes: object) -> Examined:
    values = {"bad": [], "config": None, "batch_size": 16, "sizes": [], "copy_of": list(range(len(given)))}
    return Examined("data", given, **{**values, **changes})  # type: ignore[arg-type]


def found(data: Examined) -> dict[str, str]:
    return {finding.check: finding.message for finding in diagnose(data)}


def test_nothing_is_found_in_good_data() -> None:
    assert found(examined([*records(100), *records(20, "val", 500)], sizes=[25] * 4)) == {}


def test_copies_and_leakage() -> None:
    given = [*records(50), *records(10, "val", 500)]
    copy_of = list(range(60))
    copy_of[7], copy_of[55] = 3, 4
    said = found(examined(given, copy_of=copy_of))
    assert said["duplicates"].startswith("1 picture(s) are copies") and said["leakage"].startswith(
        "1 picture(s) of val"
    )
    torn = [Record(str(i), b"", (f"c{i}.",), {"group": i % 30}, "train" if i < 30 else "test") for i in range(31)]
    assert "1 group(s) lie in more than one split" in found(examined(torn))["leakage"]


def test_captions() -> None:
    same = [Record(str(i), b"", ("a dog." if i < 10 else f"unique {i}.",), {}, "train") for i in range(100)]
    assert "10 of 100 captions" in found(examined(same))["repeated captions"]
    rng = random.Random(0)
    text = "".join(rng.choice("abcdefg ") for _ in range(5000)).replace("  ", " x")
    cut = [Record(str(i), b"", (text[i * 7 : i * 7 + rng.choice([40, 64, 64])],), {}, "train") for i in range(100)]
    assert "exactly 64 characters" in found(examined(cut))["truncated captions"]
    dots = [Record(str(i), b"", (f"number {i} goes on and o...",), {}, "train") for i in range(30)]
    assert "30 of 30 captions end in dots" in found(examined(dots))["truncated captions"]
    long = [Record(str(i), b"", (f"{i} " + "word " * 80,), {}, "train") for i in range(30)]
    assert "more than 57 words" in found(examined(long))["truncated captions"]


def test_expected_false_negatives_are_those_of_drawing_batches() -> None:
    rng = np.random.default_rng(0)
    given = [
        Record(
            str(i),
            b"",
            tuple({f"c{i // 3 if i < 30 else rng.integers(40)}" for _ in range(rng.integers(1, 4))}),
            {},
            "train",
        )
        for i in range(60)
    ]
    data = examined(given, batch_size=20, copy_of=[i - i % 3 if i < 30 else i for i in range(60)])
    total, trials = 0, 4000
    for _ in range(trials):
        batch = rng.choice(60, 20, replace=False)
        drawn = [given[i].captions[rng.integers(len(given[i].captions))] for i in batch]
        copies = [data.copy_of[i] for i in batch]
        total += sum(drawn[a] == drawn[b] or copies[a] == copies[b] for a in range(20) for b in range(a + 1, 20))
    assert expected_false_negatives(data) == pytest.approx(total / trials, rel=0.03)
    assert "false negatives" in found(data)


def test_the_run() -> None:
    config = Config().replace(warmup=100, max_steps=50, epochs=1000, batch_size=64, recipe="clip")
    said = found(examined(records(40), config=config, batch_size=64))
    assert "fewer than a batch of 64" in said["too few samples"]
    assert "warm-up of 100 steps is as long as the run, which has 50" in said["warm-up"]
    fine = Config().replace(warmup=10, max_steps=50, recipe="clip")
    assert not found(examined(records(40), config=fine))


def test_shuffle_quality() -> None:
    sorted_ones = [Record(str(i), b"", (f"c{i}.",), {"label": f"l{i // 10}"}, "train") for i in range(100)]
    assert "the samples lie sorted: 91%" in found(examined(sorted_ones, sizes=[50, 50]))["shuffle quality"]
    mixed = [Record(str(i), b"", (f"c{i}.",), {"label": f"l{i % 10}"}, "train") for i in range(100)]
    assert "shuffle quality" not in found(examined(mixed, sizes=[50, 50]))
    lopsided = examined(records(2000), sizes=[1990] + [1] * 10, batch_size=32)
    assert "of 11 shards" in found(lopsided)["shuffle quality"]


def pair_of(folder: Path) -> Config:
    """A run whose text model takes 512 tokens; a pair of towers is given 77 of them."""
    from transformers import BertTokenizerFast

    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "dog", *"0123456789", *(f"##{n}" for n in range(10))]
    (folder / "vocab.txt").write_text("\n".join(words))
    BertTokenizerFast(str(folder / "vocab.txt"), model_max_length=512).save_pretrained(folder)
    return Config().replace(recipe="clip", text_model=str(folder))


def test_tokenizers(tmp_path: Path) -> None:
    config = Config().replace(recipe="clip")
    chinese = [Record(str(i), b"", (f"一只狗在雪地里奔跑着{'很快' * (i % 5)}{i}",), {}, "train") for i in range(40)]
    assert "tokens per character" in found(examined(chinese, config=config))["tokenizer"]
    long = [Record(str(i), b"", (f"{i} " + "dog " * 90,), {}, "train") for i in range(40)]
    assert (
        "100% of the captions are longer than the 77 tokens"
        in found(examined(long, config=config))["truncated captions"]
    )
    starter = Config().replace(recipe="starter")
    assert not found(examined(records(40), config=starter))
    assert "than the 64 tokens that the starter reads" in found(examined(long, config=starter))["truncated captions"]
    assert "than the 77 tokens" in found(examined(long, config=pair_of(tmp_path)))["truncated captions"]
    gone = Config().replace(recipe="clip", text_model="/no/such/tokenizer")
    assert "cannot be loaded" in found(examined(records(40), config=gone))["tokenizer"]


def test_the_command_on_shards_and_tables(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fine = [Record(str(i), picture(i), (f"picture {i}.",)) for i in range(40)]
    write_shards(fine, tmp_path / "d", 10, rule=PlanRule(SplitRule(0.2, seed=1)))
    assert main([str(tmp_path / "d"), "--batch-size", "8", "--processes", "1"]) == 0
    assert "fine: nothing found" in capsys.readouterr().out
    with open(tmp_path / "d" / "train" / "000000.tar", "r+b") as tar:
        tar.seek(512)
        tar.write(b"\0" * 100)
    (tmp_path / "d" / "val" / "000000.tar").write_bytes((tmp_path / "d" / "train" / "000001.tar").read_bytes())
    assert main([str(tmp_path / "d"), "--batch-size", "50", "--processes", "1", "--json"]) == 1
    said = json.loads(capsys.readouterr().out)
    assert {"unreadable", "leakage", "too few samples"} == {f["check"] for f in said["findings"]}
    assert all(f["fix"] and f["message"] for f in said["findings"]) and said["status"] == "findings"
    assert main([str(tmp_path / "nothing")]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert main([]) == 2 and "give a data set" in capsys.readouterr().err


@pytest.mark.parametrize("flag", ["--batch-size", "--processes"])
@pytest.mark.parametrize("value", ["0", "-5"])
def test_numbers_that_make_no_sense(tmp_path: Path, capsys: pytest.CaptureFixture[str], flag: str, value: str) -> None:
    assert main([str(tmp_path), flag, value]) == 2
    assert capsys.readouterr().err == f"clipkit: {flag} is {value}; it must be at least 1\n"


def test_a_bug_does_not_end_with_the_status_of_findings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("data_prep.doctor.examine", lambda *given: {}["bug"])
    assert main([str(tmp_path)]) == 2
    assert "KeyError: 'bug'" in capsys.readouterr().err


def test_names_that_no_output_can_take_are_escaped(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(picture(0))
    rows = [{"image": "a.jpg", "caption": "a"}, {"image": "caf\udce9.jpg", "caption": "b"}]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    out = io.TextIOWrapper(io.BytesIO(), encoding="utf-8", errors="strict")
    with redirect_stdout(out):
        assert main([str(tmp_path / "a.jsonl"), "--processes", "1"]) == 1
    out.seek(0)
    assert "caf\\udce9.jpg: no such file" in out.read()


def test_shards_that_cannot_be_read_are_findings_and_the_others_are_looked_at(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fine = [Record(str(i), picture(i), (f"picture {i}.",)) for i in range(20)]
    write_shards(fine, tmp_path / "d", 10)
    (tmp_path / "d" / "train" / "000002.tar").write_bytes(b"")
    (tmp_path / "d" / "train" / "000003.tar").write_bytes(b"no tar" * 1000)
    assert main([str(tmp_path / "d"), "--batch-size", "4", "--processes", "1", "--json"]) == 1
    said = json.loads(capsys.readouterr().out)
    (finding,) = said["findings"]
    assert finding["check"] == "unreadable" and finding["count"] == 2 and said["splits"] == {"train": 20}
    assert "000002.tar: an empty file" in finding["examples"][0] and "000003.tar: not a tar" in finding["examples"][1]
    for number in (0, 1):
        (tmp_path / "d" / "train" / f"{number:06d}.tar").unlink()
    assert main([str(tmp_path / "d")]) == 2 and "000002.tar: an empty file" in capsys.readouterr().err


def test_a_run_whose_data_are_one_prepared_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = [Record(str(i), picture(i), (f"picture {i}.",), {}, "train") for i in range(20)]
    given += [replace(r, key=f"x{r.key}", image=picture(20 + i), split="val") for i, r in enumerate(given[:4])]
    given += [Record("t", picture(50), ("a test.",), {}, "test")]
    write_shards([replace(r, captions=(f"number {i}.",)) for i, r in enumerate(given)], tmp_path / "d", 10)
    both = f"train_data: {tmp_path}/d\nval_data: {tmp_path}/d\n"
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.yaml").write_text(f"recipe: clip\n{both}batch_size: 4\n")
    for config in (tmp_path / "run", tmp_path / "run" / "config.yaml"):  # the run, or its file
        assert main(["--config", str(config), "--processes", "1", "--json"]) == 0
        assert json.loads(capsys.readouterr().out)["splits"] == {"train": 20, "val": 4}
    assert main(["--config", str(tmp_path / "nowhere")]) == 2 and "no such run file" in capsys.readouterr().err


def test_a_run_of_several_sources(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, first in (("a", 0), ("b", 20)):
        given = [Record(str(i), picture(i), (f"picture {i}.",)) for i in range(first, first + 10)]
        write_shards(given, tmp_path / name, 5)
    (tmp_path / "run.yaml").write_text(f"recipe: clip\ntrain_data: {tmp_path}/a::{tmp_path}/b\nbatch_size: 4\n")
    assert main(["--config", str(tmp_path / "run.yaml"), "--processes", "1", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["splits"] == {"train": 20} and said["measures"]["shards"] == 4


def test_the_data_are_read_as_the_run_reads_them(tmp_path: Path) -> None:
    (tmp_path / "pictures").mkdir()
    for i in range(8):
        (tmp_path / "pictures" / f"{i}.png").write_bytes(picture(i, format="PNG"))
    rows = "".join(f"{i}.png;nr {i};voilà, dix-huit {i}\n" for i in range(8))
    (tmp_path / "train.csv").write_bytes(("bild;caption;légende\n" + rows).encode("latin-1"))
    (tmp_path / "run.yaml").write_text(
        f"recipe: clip\ntrain_data: {tmp_path}/train.csv\nimage_column: bild\ncaption_column: légende\n"
        f"separator: ';'\nencoding: latin-1\nimage_root: {tmp_path}/pictures\nbatch_size: 4\n",
        encoding="utf-8",
    )
    data = examine(None, str(tmp_path / "run.yaml"), None, 1, SourceOptions())
    assert [record.captions for record in data.records][:1] == [("voilà, dix-huit 0",)]
    asked = examine(None, str(tmp_path / "run.yaml"), None, 1, SourceOptions(caption_column="caption"))
    assert [record.captions for record in asked.records][:1] == [("nr 0",)], "what was asked for wins"


def test_the_starter_data_have_a_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_shards([Record(str(i), picture(i), (f"picture {i}.",)) for i in range(10)], tmp_path / "d")
    monkeypatch.setattr("data_prep.cached_shards", lambda name: tmp_path / "d")
    monkeypatch.chdir(tmp_path)
    assert main(["openmoji", "--batch-size", "4", "--processes", "1"]) == 0
    assert "10 good pictures" in capsys.readouterr().out


def test_the_command_with_a_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for i in range(6):
        (tmp_path / f"{i}.png").write_bytes(picture(i % 5, format="PNG"))
    (tmp_path / "train.csv").write_text("image,caption\n" + "".join(f"{i}.png,words {i}.\n" for i in range(5)))
    (tmp_path / "val.csv").write_text("image,caption\n5.png,words 5.\n")
    run = f"recipe: clip\ntrain_data: {tmp_path}/train.csv\nval_data: {tmp_path}/val.csv\nbatch_size: 4\nwarmup: 900\n"
    (tmp_path / "run.yaml").write_text(run)
    assert main(["--config", str(tmp_path / "run.yaml"), "--processes", "1"]) == 1
    said = capsys.readouterr().out
    assert "leakage: 1 picture(s) of val are in train too" in said and "warm-up:" in said and "fix: " in said
