"""Search with Milvus: a collection on a cluster, or in a local file (milvus-lite).

A collection is made anew whenever the index is written, and the header of the index names it, so that a kill leaves the
old one in use. A token for the server is taken from the environment (MILVUS_TOKEN) and never written down.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from clipkit.errors import ClipkitError
from clipkit.inference.exact import Floats, Mask, Rows

# gRPC writes to the error stream what it raises as well, and that a server finds its pings too many; it looks here once
os.environ.setdefault("GRPC_VERBOSITY", "NONE")
from pymilvus import DataType, MilvusClient, MilvusException

_INSERT = 1000  # vectors of a message
_LISTED = 16_384  # rows that a filter names at most


class Milvus:
    """A ``Library`` in a collection.

    Args:
        folder: of the index; a ``uri`` without a scheme is a file in it.
        uri: of a server (``http://host:19530``), or a file.
        collection: its name.
    """

    name = "milvus"
    most = 16_384  # what a server returns at most

    def __init__(self, folder: Path, uri: str, collection: str) -> None:
        self.uri, self.collection = uri, collection
        address = uri if "://" in uri else str(folder / uri)
        logging.getLogger("pymilvus").setLevel(logging.CRITICAL)  # what goes wrong is said once, by us
        with _said(uri):
            self.client = MilvusClient(uri=address, token=os.environ.get("MILVUS_TOKEN", ""))

    @classmethod
    def build(cls, folder: Path, name: str, embeddings: Floats, uri: str | None) -> Milvus:
        """Make the collection and send the vectors."""
        made = cls(folder, uri or "milvus.db", f"clipkit_{re.sub('[^0-9A-Za-z]', '_', name)}")
        with _said(made.uri):
            schema = made.client.create_schema(auto_id=False, enable_dynamic_field=False)
            schema.add_field("row", DataType.INT64, is_primary=True)
            schema.add_field("vector", DataType.FLOAT_VECTOR, dim=embeddings.shape[1])
            how = made.client.prepare_index_params()
            how.add_index("vector", index_type="AUTOINDEX", metric_type="IP")
            made.client.create_collection(made.collection, schema=schema, index_params=how, consistency_level="Strong")
            for start in range(0, len(embeddings), _INSERT):
                part = np.asarray(embeddings[start : start + _INSERT])
                made.client.insert(made.collection, [{"row": start + i, "vector": v} for i, v in enumerate(part)])
            made.client.flush(made.collection)
            made.client.load_collection(made.collection)
        return made

    @classmethod
    def open(cls, folder: Path, description: dict[str, Any], n: int) -> Milvus:
        """The one that ``describe`` described.

        Raises:
            ClipkitError: the server does not answer, or has no such collection.
        """
        found = cls(folder, description["uri"], description["collection"])
        with _said(found.uri):
            if not found.client.has_collection(found.collection):
                raise ClipkitError(
                    f"{found.uri}: no collection {found.collection}; build the index anew with clipkit index --rebuild"
                )
            found.client.load_collection(found.collection)
        return found

    @classmethod
    def forget(cls, folder: Path, description: dict[str, Any]) -> None:
        """Drop the collection, if the server can be reached; one that is left takes space and nothing else."""
        try:
            cls(folder, description["uri"], description["collection"]).client.drop_collection(description["collection"])
        except (ClipkitError, MilvusException):
            return

    def candidates(self, queries: Floats, n: int, allowed: Mask | None) -> Rows:
        """See ``Library``. A filter names its rows while they are few; beyond that more is asked for and sifted."""
        chosen = None if allowed is None else np.flatnonzero(allowed)
        asked, text = n, ""
        if chosen is not None and len(chosen) <= _LISTED:
            text = f"row in {chosen.tolist()}"
        elif chosen is not None and allowed is not None:
            asked = min(self.most, n * -(-len(allowed) // len(chosen)))
        with _said(self.uri):
            found = self.client.search(
                self.collection, data=list(queries), limit=asked, filter=text, anns_field="vector"
            )
        rows = np.full((len(queries), n), -1, dtype=np.int64)
        for of_query, hits in zip(rows, found, strict=True):
            own = np.array([hit["row"] for hit in hits], dtype=np.int64)
            own = own if allowed is None else own[allowed[own]]
            of_query[: len(own[:n])] = own[:n]
        return rows

    def widen(self) -> bool:
        """The server decides how far it looks."""
        return False

    def describe(self) -> dict[str, Any]:
        """See ``Library``."""
        return {"backend": self.name, "uri": self.uri, "collection": self.collection}


@contextmanager
def _said(uri: str) -> Iterator[None]:
    """What goes wrong at the server, in a line."""
    try:
        yield
    except ClipkitError:
        raise
    except Exception as error:  # pymilvus passes on grpc's own errors, and those of milvus-lite
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ClipkitError(f"{uri}: Milvus does not do it ({reason})") from None
