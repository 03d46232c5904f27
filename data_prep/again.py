"""WebDataset shards as a source: to scale, split, clean or filter what somebody else prepared."""

from __future__ import annotations

from pathlib import Path

from clipkit.errors import ClipkitError
from data_prep.folders import TEMPLATE
from data_prep.records import SPLIT_NAMES, SPLITS, FileSlice, Record, Skipped, Source
from data_prep.tables import caption_texts


def read_shards(
    path: str | Path,
    pass_by: bool = False,
    template: str = TEMPLATE,
    caption_column: str | None = None,
    captions_optional: bool = False,
) -> Source:
    """Records of the shards at ``path``: a tar, a folder or pattern of them, or a folder with a folder per split.
    Shards that lie beside what is read are listed.

    Masks are honoured: what a filter hides stays behind. Nothing is unpacked, so no name in a tar leads anywhere.

    Args:
        path: where they are.
        pass_by: list a shard that cannot be read at all, and go on with the others.
        template: makes a caption of a label, for samples that have no other.
        caption_column: what the captions are called in the samples' json, instead of ``captions`` or ``caption``.
        captions_optional: take samples that have no caption as well.

    Raises:
        ClipkitError: there are none, or they hold no sample.
    """
    from clipkit.pairs.captions import clean_caption, no_caption
    from clipkit.pairs.classes import with_class_names
    from clipkit.pairs.index import load_index
    from clipkit.pairs.mask import kept
    from clipkit.pairs.remote import UnreachableError
    from clipkit.pairs.shards import ShardSet, shard_paths

    splits, beside = _splits(Path(path))
    records: list[Record] = []
    unread = "not read: shards lie together in one folder, or in folders called train, val or test"
    skipped = [Skipped(str(tar), unread) for tar in beside]
    places: list[tuple[str | Path, str | None]] = [*splits] or [(path, None)]
    for place, split in places:
        for tar in shard_paths(place):
            try:
                (index,) = with_class_names([kept(load_index(tar))])
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
                except UnreachableError:
                    raise
                except ClipkitError as error:
                    skipped.append(Skipped(where, str(error).removeprefix(f"{where}: ")))
                    continue
                if caption_column is not None:
                    said, _ = caption_texts(meta.get(caption_column))
                    captions = tuple(clean_caption(text) for text in said)
                if not captions and caption_column is None and meta.get("label") is not None:
                    captions = (template.replace("{}", str(meta["label"])),)
                if not captions and not captions_optional:
                    skipped.append(Skipped(where, no_caption(meta)))
                    continue
                said_in = ("captions", "caption", caption_column)
                rest = {name: value for name, value in meta.items() if name not in said_in}
                image = FileSlice(tar, *(int(n) for n in index.spans[row, 0]))
                captions = tuple(dict.fromkeys(captions))
                records.append(Record(key, image, captions, {**rest, "file": rest.get("file", where)}, split))
            shards.close()
    if not records:
        first = f" ({skipped[0].file}: {skipped[0].reason})" if skipped else ""
        raise ClipkitError(
            f"{path}: no sample in these shards{first}; a sample is KEY.jpg beside KEY.txt, KEY.json or KEY.cls"
        )
    return Source(str(path), records, skipped)


def _splits(folder: Path) -> tuple[list[tuple[Path, str]], list[Path]]:
    """The folders in ``folder`` that are named like splits, in the order of these, and the shards that lie beside what
    is read: such folders if there are some, else ``folder`` itself."""
    found: dict[Path, list[Path]] = {}
    for tar in sorted([*folder.glob("*.tar"), *folder.glob("*/*.tar")]):
        if not any(part.startswith(".") for part in tar.relative_to(folder).parts):
            found.setdefault(tar.parent, []).append(tar)
    named = [(place, SPLIT_NAMES.get(place.name.lower())) for place in found if place != folder]
    splits = sorted([(place, split) for place, split in named if split], key=lambda pair: SPLITS.index(pair[1]))
    read = [place for place, _ in splits] or [folder]
    return splits, [tar for place, tars in found.items() if place not in read for tar in tars]
