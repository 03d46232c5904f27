"""``clipkit embed``."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import tyro

from clipkit.errors import ClipkitError
from clipkit.inputs import check_output, picture_paths, read_lines
from clipkit.model_option import ModelOption, list_skipped

if TYPE_CHECKING:
    from clipkit.inference import Aligner
    from clipkit.training.console import Console

_LINES = 1024  # lines encoded at a time


@dataclass(frozen=True)
class Embed:
    """Write the embeddings of pictures, or of the lines of a text file, for other tools."""

    inputs: tyro.conf.Positional[tuple[str, ...]]
    """Pictures, folders of pictures, or one .txt file."""
    output: str = "embeddings"
    """OUTPUT.npy (float32, unit norm, a row each) and OUTPUT.parquet (row, path or text, hash of its content)."""
    model: tyro.conf.OmitArgPrefixes[ModelOption] = field(default_factory=ModelOption)

    def run(self, console: Console) -> None:
        named = self.output.strip() and not self.output.endswith(("/", os.sep))
        check_output(f"{self.output}.npy" if named else self.output)
        model = self.model.load()
        if len(self.inputs) == 1 and self.inputs[0].endswith(".txt"):
            lines = read_lines(self.inputs[0])
            what, total, rows = "text", len(lines), _texts(model, lines)
        else:
            paths = picture_paths(self.inputs)
            what, total, rows = "path", len(paths), _pictures(model, paths)
        skipped = write_embeddings(Path(self.output), model, what, total, rows, console)
        list_skipped(skipped)
        print(
            f"{total - len(skipped):,} embeddings of {model.embed_dim} dimensions: {self.output}.npy, "
            f"{self.output}.parquet"
        )


Row = tuple[str, str, Any, str | None]  # what it is, the hash of its content, float32 (D,) or None, and why not


def _pictures(model: Aligner, paths: list[Path]) -> Iterator[Row]:
    from clipkit.inference.files import embed_files

    for file in embed_files(model, paths):
        yield str(file.path), file.content, file.row, file.error


def _texts(model: Aligner, lines: list[str]) -> Iterator[Row]:
    for start in range(0, len(lines), _LINES):
        part = lines[start : start + _LINES]
        for line, row in zip(part, model.encode_text(part), strict=True):
            yield line, hashlib.blake2b(line.encode(), digest_size=16).hexdigest(), row, None


def write_embeddings(
    output: Path, model: Aligner, what: str, total: int, rows: Iterator[Row], console: Console
) -> list[str]:
    """OUTPUT.npy and OUTPUT.parquet of ``rows`` as they come; only one part of them is held in memory.

    Args:
        what: name of the table's column that says what a row is of: ``path`` or ``text``.
        total: number of rows at most.

    Returns:
        Why what is missing was left out.

    Raises:
        ClipkitError: nothing could be embedded, or the files cannot be written.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    from clipkit.cache import atomic_write
    from clipkit.inference.index_files import model_fingerprint

    names: list[str] = []
    contents: list[str] = []
    skipped: list[str] = []
    said = {"model": model.name, "fingerprint": model_fingerprint(model)}
    try:
        with (  # both appear when both are whole
            atomic_write(output.with_name(f"{output.name}.npy")) as file,
            atomic_write(output.with_name(f"{output.name}.parquet")) as beside,
        ):
            length = _start(file, total, model.embed_dim)
            for done, (name, content, row, error) in enumerate(rows, 1):
                if row is None:
                    skipped.append(str(error))
                else:
                    names.append(name)
                    contents.append(content)
                    file.write(row.astype("<f4").tobytes())
                console.progress("embedding", done, total)
            if not names:
                raise ClipkitError(skipped[0] if total == 1 else f"none of {total} pictures can be read ({skipped[0]})")
            file.seek(0)
            if _start(file, len(names), model.embed_dim) != length:  # numpy leaves room for any number of rows
                raise AssertionError("the header of the .npy file has another length")
            file.flush()
            os.fsync(file.fileno())
            table = pa.table({"row": list(range(len(names))), what: names, "content": contents})
            pq.write_table(table.replace_schema_metadata(said), beside)
    except OSError as error:
        raise ClipkitError(f"{output}: the embeddings could not be written ({error.strerror or error})") from None
    return skipped


def _start(file: IO[bytes], rows: int, width: int) -> int:
    """Write the beginning of a .npy file of float32 (rows, width); the number of its bytes."""
    import numpy as np

    np.lib.format.write_array_header_1_0(file, {"descr": "<f4", "fortran_order": False, "shape": (rows, width)})
    return file.tell()
