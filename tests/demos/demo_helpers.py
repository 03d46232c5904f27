"""What the demo's tests share: uploads as a client sends them, and the errors that it gets."""

from __future__ import annotations

import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

from gradio_client import handle_file
from gradio_client.exceptions import AppError
from gradio_client.exceptions import ValidationError as FieldError

Pictures = dict[str, Path]
ERRORS = (AppError, FieldError)


def uploads(*paths: Path) -> list[dict[str, Any]]:
    """Pictures for a gallery's field."""
    return [{"image": handle_file(str(path)), "caption": None} for path in paths]


def get(address: str) -> tuple[int, str, Any]:
    """Status, text and headers of what is there."""
    try:
        with urllib.request.urlopen(address, timeout=30) as response:
            return response.status, response.read().decode("utf-8", "replace"), response.headers
    except urllib.error.HTTPError as error:
        return error.code, "", error.headers
