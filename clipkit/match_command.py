"""``clipkit match``."""

from __future__ import annotations

import csv
import io
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import tyro

from clipkit.errors import ClipkitError
from clipkit.inputs import check_output, picture_paths, read_captions, write_output
from clipkit.model_option import ModelOption, list_skipped

if TYPE_CHECKING:
    from clipkit.inference import Match
    from clipkit.training.console import Console

_SIDE = 112  # pixels of a picture on the sheet


@dataclass(frozen=True)
class MatchPairs:
    """Match pictures with captions: the best caption of each picture, and the one-to-one assignment."""

    images: tyro.conf.Positional[str]
    """Folder of pictures, or one picture."""
    captions: tyro.conf.Positional[str]
    """File with a caption per line, or a CSV or TSV table with a column called caption."""
    output: str | None = None
    """CSV for the result. Default: printed, unless there is --html."""
    html: str | None = None
    """HTML page for the result, with the pictures in it: similarity matrix, best match each way, one-to-one pairs."""
    model: tyro.conf.OmitArgPrefixes[ModelOption] = field(default_factory=ModelOption)

    def run(self, console: Console) -> None:
        import numpy as np

        from clipkit.inference import Match
        from clipkit.inference.files import embed_files
        from clipkit.inference.match_sheet import COLUMNS, match_rows

        if self.output is not None and Path(self.output).suffix.lower() in (".html", ".htm"):
            raise ClipkitError(f"--output {self.output} is for CSV; the page is made by --html {self.output}")
        paths, captions = picture_paths([self.images]), read_captions(self.captions)
        check_output(self.output)
        check_output(self.html)
        model = self.model.load()
        files = list(embed_files(model, paths))
        skipped = [file.error for file in files if file.error]
        rows_ND = [file.row for file in files if file.row is not None]
        if not rows_ND:
            raise ClipkitError(f"{skipped[0]}; there is no other picture to match")
        list_skipped(skipped)
        paths = [file.path for file in files if file.row is not None]
        match = Match.of(np.stack(rows_ND) @ model.encode_text(captions).T)
        rows = [list(COLUMNS), *match_rows(match, [str(path) for path in paths], captions)]
        if self.output:
            table = io.StringIO(newline="")
            csv.writer(table).writerows(rows)
            write_output(self.output, table.getvalue())
        if self.html:
            root = Path(self.images)
            names = [str(path.relative_to(root)) if root.is_dir() else path.name for path in paths]
            write_output(self.html, _page(match, paths, names, captions, model.name))
        if self.output or self.html:
            written = ", ".join(name for name in (self.output, self.html) if name)
            print(f"{len(paths)} pictures and {len(captions)} captions matched: {written}")
        else:
            csv.writer(sys.stdout, lineterminator="\n").writerows(rows)


@dataclass(frozen=True)
class _Shown:
    name: str
    preview: Any


def _page(match: Match, paths: list[Path], names: list[str], captions: list[str], model: str) -> str:
    from clipkit.inference.match_sheet import match_document
    from clipkit.inference.pictures import thumbnail

    shown = [_Shown(name, thumbnail(path.read_bytes(), _SIDE)) for path, name in zip(paths, names, strict=True)]
    return match_document(match, shown, captions, Path(model).name)
