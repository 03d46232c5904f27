"""Search with faiss: inverted lists over vectors of a byte a coordinate (IVF-SQ8).

The vectors are sorted into √N lists by the nearest of as many centres (k-means), and a query looks through the lists
of the ``nprobe`` nearest centres. A vector takes D bytes, a quarter of float32, and the file is mapped.
"""

from __future__ import annotations

import math
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from clipkit.cache import atomic_write
from clipkit.errors import ClipkitError
from clipkit.inference.exact import Floats, Mask, Rows

faiss: Any = import_module("faiss")  # what its type stubs say of the Python layer is not so
_PER_LIST = 39  # vectors that faiss wants to place a centre
_TRAINING = 64  # vectors a list at most that the centres are placed with
_BLOCK = 65_536


class Faiss:
    """A ``Library`` in one file.

    Args:
        index: as faiss has it.
        name: of its file in the index's folder.
        nprobe: lists that a query looks through.
    """

    name = "faiss"
    most = 16_384

    def __init__(self, index: Any, file: str, nprobe: int) -> None:
        self.index, self.file, self.nprobe = index, file, nprobe

    @classmethod
    def build(cls, folder: Path, name: str, embeddings: Floats, uri: str | None) -> Faiss:
        """Place the centres, sort the vectors, write the file."""
        n, width = embeddings.shape
        lists = max(1, min(math.isqrt(n), n // _PER_LIST))
        index = faiss.IndexIVFScalarQuantizer(
            faiss.IndexFlatIP(width), width, lists, faiss.ScalarQuantizer.QT_8bit, faiss.METRIC_INNER_PRODUCT
        )
        chosen = np.random.default_rng(0).choice(n, min(n, _TRAINING * lists), replace=False)
        index.train(np.asarray(embeddings[np.sort(chosen)]))
        for start in range(0, n, _BLOCK):
            index.add(np.asarray(embeddings[start : start + _BLOCK]))
        file = f"faiss-{name}.index"
        with atomic_write(folder / file) as out:  # faiss itself says nothing of a disk that is full at its last bytes
            faiss.write_index(index, faiss.PyCallbackIOWriter(out.write))
        return cls(index, file, min(8, lists))

    @classmethod
    def open(cls, folder: Path, description: dict[str, Any], n: int) -> Faiss:
        """The one that ``describe`` described.

        Raises:
            ClipkitError: its file is gone or damaged.
        """
        path = folder / description["file"]
        try:
            index = faiss.read_index(str(path), faiss.IO_FLAG_MMAP)
        except RuntimeError:
            raise ClipkitError(f"{path}: cannot be read; build the index anew with clipkit index --rebuild") from None
        if index.ntotal != n:
            raise ClipkitError(
                f"{path}: holds {index.ntotal} vectors, not {n}; build the index anew with clipkit index --rebuild"
            )
        return cls(index, description["file"], int(description["nprobe"]))

    @classmethod
    def forget(cls, folder: Path, description: dict[str, Any]) -> None:
        """Remove its file."""
        (folder / description["file"]).unlink(missing_ok=True)

    def candidates(self, queries: Floats, n: int, allowed: Mask | None) -> Rows:
        """See ``Library``."""
        bits = None if allowed is None else np.packbits(allowed, bitorder="little")
        selector = {} if bits is None else {"sel": faiss.IDSelectorBitmap(bits)}
        chosen = faiss.SearchParametersIVF(nprobe=self.nprobe, **selector)
        return self.index.search(np.ascontiguousarray(queries), n, params=chosen)[1]

    def widen(self) -> bool:
        """Twice as many lists, until it is all of them."""
        if self.nprobe >= self.index.nlist:
            return False
        self.nprobe = min(2 * self.nprobe, self.index.nlist)
        return True

    def describe(self) -> dict[str, Any]:
        """See ``Library``."""
        return {"backend": self.name, "file": self.file, "lists": self.index.nlist, "nprobe": self.nprobe}
