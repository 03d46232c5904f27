"""What only a model can say: which pictures are copies in its space, and how well captions fit their pictures.

Both are shard tasks. On this machine they run in this process, because a model uses all cores by itself; on a cluster
each process loads the model once.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from data_prep.copies import embedding_pairs
from data_prep.engine import Engine, run_tasks
from data_prep.files import whole_file
from data_prep.scores import CLIP_MODEL, read_scores, write_table
from data_prep.stage import Facts, StageTask

if TYPE_CHECKING:
    from clipkit.inference import Aligner


@lru_cache(maxsize=1)
def load_model(name: str) -> Aligner:
    """The model called ``name``: what ``clipkit.load`` takes, with a comma before the tag of an open_clip name."""
    from clipkit.inference import load

    source, _, pretrained = name.partition(",")
    return load(source, pretrained or None)


@dataclass(frozen=True)
class EmbedTask:
    """A staged piece whose good pictures (``offset``, ``size``) are to be embedded into ``path``."""

    path: Path
    spans: tuple[tuple[int, int], ...]
    model: str
    inputs: str


def embedding_copies(
    pieces: Sequence[StageTask], facts: Facts, model: str, threshold: float, engine: Engine
) -> list[tuple[int, int]]:
    """Pairs of rows whose pictures are at least ``threshold`` similar to ``model``.

    Raises:
        ClipkitError: there is no such model.
    """
    (good,) = facts["good"].nonzero()
    tasks, first = [], 0
    for piece in pieces:
        rows = [row for row in range(first, first + len(piece.records)) if facts["good"][row]]
        spans = tuple((int(facts["offset"][row]), int(facts["size"][row])) for row in rows)
        tasks.append(EmbedTask(piece.path, spans, model, piece.inputs))
        first += len(piece.records)
    parts = list(run_tasks(embed, tasks, 1, engine))
    pairs = embedding_pairs(np.concatenate(parts), threshold) if parts else []
    return [(int(good[a]), int(good[b])) for a, b in pairs]


def embed(task: EmbedTask) -> NDArray[np.float32]:
    """float32 (n, D) embeddings of a piece's pictures, kept beside it."""
    place = task.path.with_suffix(".embedded.npz")
    made_from = f"{task.model} {task.inputs} {len(task.spans)}"
    try:
        with np.load(place, allow_pickle=False) as stored:
            if str(stored["made_from"]) == made_from:
                return np.asarray(stored["embedding"])
    except (OSError, ValueError, KeyError):
        pass
    data = task.path.with_suffix(".bin").read_bytes()
    embedding = _encode(load_model(task.model), [data[at : at + size] for at, size in task.spans])
    with whole_file(place) as file:
        np.savez(file, made_from=made_from, embedding=embedding)
    return embedding


@dataclass(frozen=True)
class ScoreTask:
    """A shard whose captions ``model`` is to score."""

    path: Path
    model: str


def score_captions(task: ScoreTask) -> None:
    """Put into the shard's table the cosine similarity of each picture with the caption that fits it best; free if
    the same model did so before."""
    import pyarrow as pa

    from clipkit.pairs.index import load_index
    from clipkit.pairs.shards import ShardSet

    table = read_scores(task.path)
    if (table.schema.metadata or {}).get(CLIP_MODEL) == task.model.encode():
        return
    model = load_model(task.model)
    samples = list(ShardSet([load_index(task.path)], str(task.path)))
    image_ND = _encode(model, [sample.image for sample in samples])
    text_TD = model.encode_text([caption for sample in samples for caption in sample.captions])
    owner_T = np.repeat(np.arange(len(samples)), [len(sample.captions) for sample in samples])
    best_N = np.full(len(samples), -1.0, np.float32)
    np.maximum.at(best_N, owner_T, (image_ND[owner_T] * text_TD).sum(axis=1))
    column = table.schema.get_field_index("clip_score")
    scored = table.set_column(column, table.schema.field(column), pa.array(best_N))
    write_table(task.path, scored.replace_schema_metadata({CLIP_MODEL: task.model.encode()}))


def _encode(model: Any, pictures: Sequence[bytes]) -> NDArray[np.float32]:
    from PIL import Image

    if not pictures:
        return np.zeros((0, model.embed_dim), np.float32)
    return np.asarray(model.encode_image([Image.open(io.BytesIO(data)) for data in pictures]), np.float32)
