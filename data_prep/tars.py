"""Tar files that are equal byte for byte whenever their samples are, and that appear whole or not at all."""

from __future__ import annotations

import io
import json
import os
import tarfile
from pathlib import Path
from typing import Any, BinaryIO

from clipkit.cache import sync_folder


def sample_json(captions: tuple[str, ...], meta: dict[str, Any]) -> bytes:
    """The ``.json`` of a sample: ``{"captions": [...], ...meta}``, UTF-8, in the order of ``meta``."""
    rest = {name: value for name, value in meta.items() if name not in ("captions", "caption")}
    return json.dumps({"captions": list(captions), **rest}, ensure_ascii=False).encode("utf-8", "backslashreplace")


class SplitWriter:
    """Writes the samples of one split into ``folder/000000.tar``, ``000001.tar``, ...

    A shard is written under a name that starts with a dot, flushed to the disk and then renamed, so that
    every ``*.tar`` is whole. Nothing in it depends on the clock, the user or the machine: the times are 0,
    the owner is 0, the mode is 0644, and the members of a sample lie side by side, the picture first.
    (``webdataset.TarWriter`` writes the owner's name and, unless told, the time; what is written here is what
    it would read.)
    """

    def __init__(self, folder: Path, samples_per_shard: int) -> None:
        self.folder = folder
        self.samples_per_shard = samples_per_shard
        self.samples = 0
        self.captions = 0
        self.shards = 0
        self._file: BinaryIO | None = None
        self._tar: tarfile.TarFile | None = None
        folder.mkdir(parents=True, exist_ok=True)

    def write(self, key: str, image: bytes, extension: str, record: bytes, n_captions: int) -> None:
        """Append one sample; ``record`` is its JSON."""
        if self._tar is None:
            self._file = open(self._temporary, "wb")  # noqa: SIM115 - closed in _finish or close
            self._tar = tarfile.open(fileobj=self._file, mode="w", format=tarfile.PAX_FORMAT)  # noqa: SIM115
        self._add(f"{key}.{extension}", image)
        self._add(f"{key}.json", record)
        self.samples += 1
        self.captions += n_captions
        if self.samples % self.samples_per_shard == 0:
            self._finish()

    def close(self) -> None:
        """Finish the last shard."""
        if self._tar is not None:
            self._finish()

    def abandon(self) -> None:
        """Close the files without finishing the shard that is being written."""
        if self._file is not None:
            self._file.close()
        self._file = self._tar = None

    @property
    def _temporary(self) -> Path:
        return self.folder / f".{self.shards:06d}.tar.partial"

    def _add(self, name: str, data: bytes) -> None:
        info = tarfile.TarInfo(name)  # time and owner are 0 and the mode 0644 unless set
        info.size = len(data)
        assert self._tar is not None
        self._tar.addfile(info, io.BytesIO(data))

    def _finish(self) -> None:
        assert self._tar is not None and self._file is not None
        self._tar.close()
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        os.replace(self._temporary, self.folder / f"{self.shards:06d}.tar")
        sync_folder(self.folder)
        self.shards += 1
        self._file = self._tar = None
