"""Small pictures of an index as files that the page can show."""

from __future__ import annotations

import os
import secrets
from pathlib import Path
from tempfile import NamedTemporaryFile, TemporaryDirectory

from gradio.utils import get_upload_folder
from starlette.requests import Request
from starlette.responses import FileResponse, PlainTextResponse, Response
from starlette.routing import Route

from clipkit.errors import ClipkitError
from clipkit.inference import Index

_SIDE = 320  # pixels


class Thumbnails:
    """Makes each thumbnail once, and whole before it has its name.

    Given the picture itself, Gradio writes a file of the same name for every user, and a second search truncates what
    a first one is just sending. The folder is in Gradio's own, where it serves files from, and goes with this object.

    Args:
        index: whose pictures they are.
    """

    def __init__(self, index: Index) -> None:
        self.index = index
        self._name = secrets.token_hex(8)  # another app at the same address has other pictures
        os.makedirs(get_upload_folder(), exist_ok=True)
        self._folder = TemporaryDirectory(prefix="clipkit-", dir=get_upload_folder(), ignore_cleanup_errors=True)

    def path(self, row: int) -> str:
        """The file of a row's thumbnail.

        Raises:
            ClipkitError: the picture cannot be read any more.
        """
        final = Path(self._folder.name) / f"{row}.webp"
        if not final.exists():
            image = self.index.thumbnail(row, _SIDE)
            with NamedTemporaryFile(dir=self._folder.name, suffix=".tmp", delete=False) as temporary:
                image.save(temporary, "WEBP", quality=80)
            os.replace(temporary.name, final)
        return str(final)

    def address(self, row: int) -> str:
        """Where the page finds a row's thumbnail, relative to itself; it is made when it is asked for."""
        return f"thumbnail/{self._name}/{row}.webp"

    def route(self) -> Route:
        """Serves the addresses, and nothing else."""

        def serve(request: Request) -> Response:
            row = int(request.path_params["row"])
            try:
                path = self.path(row) if row < len(self.index) else None
            except ClipkitError:
                path = None  # its file is gone
            if path is None:
                return PlainTextResponse("no such picture", status_code=404)
            return FileResponse(path, media_type="image/webp", headers={"cache-control": "private, max-age=3600"})

        return Route(f"/thumbnail/{self._name}/{{row:int}}.webp", serve)
