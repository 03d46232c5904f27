"""WebDataset shards as a source: to scale, split, clean or filter what somebody else prepared."""

from __future__ import annotations

from pathlib import Path

from clipkit.errors import ClipkitError
from data_prep.records import SPLITS, FileSlice, Record, Skipped, Source


def read_shards(path: str | Path, pass_by: bool = False) -> Source:
    """Records of the shards at ``path``: a tar, a folder or pattern of them, or a folder with a folder per split.

    Masks are honoured: what a filter hides stays behind. Nothing is unpacked, so no name in a tar leads anywhere.

    Args:
        path: where they are.
        pass_by: list a shard that cannot be read at all, and go on with the others.

    Raises:
        ClipkitError: there are none, or they hold no sample.
    """
    from clipkit.pairs.index import load_index
    from clipkit.pairs.mask import kept
    from clipkit.pairs.shards import ShardSet, shard_paths

    folder = Path(path)
    splits: list[str | None] = [name for name in SPLITS if folder.is_dir() and any((folder / name).glob("*.tar"))]
    records: list[Record] = []
    skipped: list[Skipped] = []
    for split in splits or [None]:
        for tar in shard_paths(folder / split if split else path):
            try:
                index = kept(load_index(tar))
            except ClipkitError as error:
                if not pass_by:
                    raise
                skipped.append(Skipped(str(tar), str(error).removeprefix(f"{tar}: ")))
                continue
            skipped += [Skipped(str(tar), problem) for problem in index.problems]
            shards = ShardSet([index], str(tar))
            for row, key in enumerate(index.keys):
                where = shards.where(row)
                try:
                    meta, captions = shards.read_record(row)
                except ClipkitError as error:
                    skipped.append(Skipped(where, str(error).removeprefix(f"{where}: ")))
                    continue
                if not captions:
                    skipped.append(Skipped(where, "no caption, or only empty ones"))
                    continue
                rest = {name: value for name, value in meta.items() if name not in ("captions", "caption")}
                image = FileSlice(tar, *(int(n) for n in index.spans[row, 0]))
                captions = tuple(dict.fromkeys(captions))
                records.append(Record(key, image, captions, {**rest, "file": rest.get("file", where)}, split))
            shards.close()
    if not records:
        first = f" ({skipped[0].file}: {skipped[0].reason})" if skipped else ""
        raise ClipkitError(f"{path}: no sample in these shards{first}; a sample is KEY.jpg beside KEY.txt or KEY.json")
    return Source(str(path), records, skipped)
