"""What a model adds: copies that only it sees, and scores of captions; a fake model stands in for a real one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from data_prep_helpers import captions, picture

from clipkit.pairs.shards import open_shards
from data_prep import PlanRule, Record, SplitRule, models, write_shards
from data_prep.filters import Filters, apply_filters
from data_prep.scores import read_scores


class Fake:
    """Pictures lie where their width says, captions where their number says."""

    embed_dim = 2

    def __init__(self) -> None:
        self.pictures = 0

    def encode_image(self, images: list) -> np.ndarray:
        self.pictures += len(images)
        return np.array([[np.cos(i.width), np.sin(i.width)] for i in images], np.float32)

    def encode_text(self, texts: list[str]) -> np.ndarray:
        return np.array([[np.cos(float(t)), np.sin(float(t))] for t in texts], np.float32)


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Fake:
    model = Fake()
    monkeypatch.setattr(models, "load_model", lambda name: model)
    return model


def test_copies_in_a_models_space_are_copies(tmp_path: Path, fake: Fake) -> None:
    given = [Record(str(i), picture(i, (20 + i % 4, 16)), (str(i),), {}) for i in range(80)]
    rule = PlanRule(SplitRule(0.3, 0.3), "exact", model="fake", threshold=0.999)
    write_shards([*given[:5], Record("bad", b"", ("x",)), *given[5:]], tmp_path / "a", rule=rule, samples_per_shard=9)
    of_split = {
        s: {int(c[0]) % 4 for c in captions(tmp_path / "a", s)}
        for s in ("train", "val", "test")
        if (tmp_path / "a" / s).is_dir()
    }
    assert sum(map(len, of_split.values())) == 4 and len(of_split) > 1
    assert fake.pictures == 80


def test_scores_of_captions(tmp_path: Path, fake: Fake) -> None:
    given = [
        Record(str(w), picture(w, (w, 16)), (str(w + off), str(w + 3.0)))
        for w, off in ((20, 0.0), (21, 1.0), (22, 2.0))
    ]
    write_shards(given, tmp_path / "a", samples_per_shard=2)
    apply_filters(tmp_path / "a", Filters(clip_model="fake", min_clip_score=0.5))
    scores = [read_scores(p)["clip_score"].to_pylist() for p in sorted((tmp_path / "a" / "train").glob("*.tar"))]
    assert np.allclose([s for part in scores for s in part], np.cos([0, 1, 2]), atol=1e-5)
    assert [s.key for s in open_shards(tmp_path / "a" / "train")] == ["20", "21"]
    seen = fake.pictures
    apply_filters(tmp_path / "a", Filters(clip_model="fake", min_clip_score=-0.9))
    assert fake.pictures == seen and len(open_shards(tmp_path / "a" / "train")) == 3
