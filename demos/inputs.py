"""What people put into the fields, checked: every mistake is a ``ClipkitError`` that names it and the fix."""

from __future__ import annotations

import functools
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import gradio as gr
from gradio_client.utils import is_http_url_like
from PIL import Image
from torch import Tensor

from clipkit.errors import ClipkitError
from clipkit.inputs import captions_in
from clipkit.lines import text_lines
from clipkit.pairs import PictureSpec, decode_image, fit
from clipkit.pairs.captions import whole_characters
from clipkit.pairs.decode import open_picture

MAX_UPLOAD = 20 << 20  # bytes of one file
MAX_TEXT = 1 << 20  # bytes of a file of captions or settings
MAX_PIXELS = 50_000_000  # of one picture: below clipkit's own limit, because strangers may upload here
MAX_PICTURES = 24
MAX_LINES = 100
MAX_CHARACTERS = 1_000  # of one line
_PREVIEW = 320  # pixels on the longer side

P = ParamSpec("P")
R = TypeVar("R")


@dataclass(frozen=True)
class Picture:
    """An uploaded picture, small: ``pixels`` is uint8 (3, size, size) as the model will see it."""

    name: str
    pixels: Tensor
    preview: Image.Image


def read_picture(path: str | Path, spec: PictureSpec) -> Picture:
    """Decode one upload.

    It is cut to the model's size at once, so that two dozen large photographs do not fill the memory; fitting what
    fits already changes nothing, so the embedding is that of the file.

    Raises:
        ClipkitError: no picture, a damaged one, or one that is too large.
    """
    image = _decoded(path)
    preview = Image.fromarray(image.permute(1, 2, 0).numpy())
    preview.thumbnail((_PREVIEW, _PREVIEW))
    return Picture(Path(path).name, fit(image, spec), preview)


def read_pictures(paths: Sequence[str] | None, spec: PictureSpec) -> list[Picture]:
    """Decode several uploads, in order."""
    return [read_picture(path, spec) for path in check_pictures(paths)]


def check_picture(path: str | Path) -> None:
    """Refuse what ``read_picture`` would refuse: a truncated file says so only when it is decoded."""
    _decoded(path)


def _decoded(path: str | Path) -> Tensor:
    """The picture, uint8 (3, H, W); not decoded before its header says an acceptable size."""
    name, data = _upload(path, "picture")
    if len(data) > MAX_UPLOAD:
        raise ClipkitError(f"{name}: {len(data) / 2**20:.0f} MB; more than {MAX_UPLOAD >> 20} MB are refused")
    width, height = _size(data, name)
    if width * height > MAX_PIXELS:
        raise ClipkitError(f"{name}: {width}x{height} pixels; more than {MAX_PIXELS:,} are refused; scale it down")
    return decode_image(data, name)


def check_pictures(paths: Sequence[str] | None) -> list[str]:
    """The paths, if there are some, not too many, and all are pictures."""
    if not paths:
        raise ClipkitError("no picture yet: upload at least one")
    if len(paths) > MAX_PICTURES:
        raise ClipkitError(f"{len(paths)} pictures; at most {MAX_PICTURES} at once")
    for path in paths:
        check_picture(path)
    return list(paths)


def text_of(value: Any) -> str:
    """What a text field holds; nothing is an empty text.

    Raises:
        ClipkitError: a client has sent something else than text.
    """
    if value is not None and not isinstance(value, str):
        raise ClipkitError(f"a {type(value).__name__} is no text: give one text, of several lines if need be")
    return value or ""


def read_lines(text: str | None, what: str, example: str) -> list[str]:
    """The lines of a field that are not empty, in whole characters.

    Args:
        what: what a line is, for messages: "caption".
        example: a line to suggest.
    """
    lines = [" ".join(line.split()) for line in text_lines(whole_characters(text_of(text)))]
    lines = [line for line in lines if line]
    if not lines:
        raise ClipkitError(f"no {what} yet: type one per line, such as: {example}")
    if len(lines) > MAX_LINES:
        raise ClipkitError(f"{len(lines)} {what}s; at most {MAX_LINES} at once")
    for number, line in enumerate(lines, 1):
        if len(line) > MAX_CHARACTERS:
            raise ClipkitError(f"{what} {number} has {len(line):,} characters; at most {MAX_CHARACTERS:,}")
    return lines


def read_captions(text: str | None, path: str | None, example: str) -> list[str]:
    """The captions that were typed, then those of an uploaded file, as ``read_lines`` limits them."""
    both = [text_of(text), *(read_captions_file(path) if path is not None else [])]
    return read_lines("\n".join(both), "caption", example)


def read_captions_file(path: str) -> list[str]:
    """The captions of an uploaded text file or table."""
    return captions_in(check_text(path), Path(path).name)


def _upload(path: str | Path, what: str) -> tuple[str, bytes]:
    """Name and bytes of an uploaded file."""
    if is_http_url_like(str(path)):
        raise ClipkitError(f"{path}: addresses are not fetched; upload the {what}")
    name = Path(path).name
    try:
        return name, Path(path).read_bytes()
    except OSError as error:
        raise ClipkitError(f"{name}: the upload cannot be read ({error.strerror}); upload it again") from None


def check_text(path: str) -> bytes:
    """The bytes of an uploaded text file."""
    name, data = _upload(path, "file")
    if len(data) > MAX_TEXT:
        raise ClipkitError(f"{name}: {len(data) / 2**20:.1f} MB; more than {MAX_TEXT >> 20} MB of text are refused")
    return data


def verdicts(*checks: Callable[[], Any] | None) -> list[dict[str, Any]]:
    """For an event's ``validator``: Gradio shows the message of a check that fails under the field.

    Args:
        checks: one for each input of the event, in order; None for an input that needs none.
    """
    found = []
    for check in checks:
        message = ""
        try:
            if check is not None:
                check()
        except ClipkitError as error:
            message = str(error)
        found.append(gr.validate(not message, message))
    return found


def user_errors(function: Callable[P, R]) -> Callable[P, R]:
    """``function`` with its ``ClipkitError`` shown to the user, here and in a client, as the one line it is."""

    @functools.wraps(function)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return function(*args, **kwargs)
        except ClipkitError as error:
            raise gr.Error(str(error), title="This did not work", print_exception=False) from None

    return run


def _size(data: bytes, name: str) -> tuple[int, int]:
    """Width and height that the header claims."""
    try:
        with Image.open(io.BytesIO(data)) as image:
            return image.size
    except Exception:  # PIL's plugins raise whatever they like; clipkit's own reader says it in one line
        return open_picture(data, name).size
