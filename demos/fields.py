"""Fields that take and show pictures, and the limits that all pages share."""

from __future__ import annotations

from abc import ABCMeta
from collections.abc import Sequence
from typing import Any

import gradio as gr
from gradio.component_meta import ComponentMeta
from gradio.data_classes import FileData, ImageData
from gradio_client.utils import is_http_url_like

from clipkit.errors import ClipkitError

GROUP = "model"  # calls that use the model wait for each other, whatever page they come from
AT_ONCE = 1  # model calls at a time: torch uses all cores for one

_TEXT: dict[str, Any] = {"path": "captions.txt", "meta": {"_type": "gradio.FileData"}}
_EXAMPLE: dict[str, Any] = {"path": "picture.jpg", "meta": {"_type": "gradio.FileData"}}


def picture_field(label: str, elem_id: str | None = None) -> gr.Image:
    """A field for one picture; the function gets its path, or None."""
    return _Image(
        label=label,
        type="filepath",
        sources=["upload", "clipboard"],
        height=200,
        buttons=["fullscreen"],
        alt_text=label,
        elem_id=elem_id,
        elem_classes="ck-upload",
    )


def pictures_field(label: str) -> gr.Gallery:
    """A field for several pictures; the function gets their paths, or None."""
    return _Gallery(
        label=label,
        type="filepath",
        file_types=["image"],
        interactive=True,
        columns=4,
        height=260,
        object_fit="contain",
        buttons=[],
        elem_classes=["ck-upload", "ck-several"],
    )


def text_file_field(label: str, endings: list[str], elem_id: str) -> gr.File:
    """A field for one small file of text; the function gets its path, or None."""
    return _File(label=label, type="filepath", file_types=endings, height=150, elem_id=elem_id)


def text_field(label: str, **options: Any) -> gr.Textbox:
    """A field for text; the function gets what was sent, for ``text_of`` to check."""
    return _Textbox(label=label, **options)


def choice_field(label: str, choices: Sequence[str], min_width: int) -> gr.Radio:
    """A field for one of a few words, the first of them at first."""
    return _Radio(list(choices), value=choices[0], label=label, min_width=min_width)


def number_field(label: str, least: int, most: int, value: int, **options: Any) -> gr.Slider:
    """A field for a whole number from ``least`` to ``most``."""
    return _Slider(least, most, value=value, step=1, label=label, **options)


def real_field(value: float, label: str, **options: Any) -> gr.Number:
    """A field for any number."""
    return _Number(value, label=label, **options)


def check_whole(value: Any, label: str, least: int, most: int) -> int:
    """What a ``number_field`` holds.

    Raises:
        ClipkitError: no whole number within its limits.
    """
    if (
        isinstance(value, bool)
        or not isinstance(value, (int, float))
        or value != value // 1
        or not least <= value <= most
    ):
        raise ClipkitError(f"{label}: {value!r}; give a whole number from {least} to {most}")
    return int(value)


def found_pictures(label: str) -> gr.Gallery:
    """Where found pictures are shown, each with a line of text."""
    return _Gallery(
        label=label,
        interactive=False,
        columns=4,
        height="auto",
        object_fit="contain",
        buttons=["fullscreen"],
        elem_classes="ck-found",
    )


def _path(self: Any, payload: ImageData | FileData | None) -> str | None:
    """The upload as it is: Gradio would open it, and say less clearly what is wrong with it."""
    return payload.path if payload is not None else None


def _paths(self: gr.Gallery, payload: Any) -> list[str] | None:
    items = [getattr(item, "image", None) or item.video for item in payload.root] if payload is not None else []
    return [item.path for item in items] or None


def _uploads_only(base: type[Any], **methods: Any) -> Any:
    """A kind of ``base`` that leaves addresses alone, for ``check_picture`` to refuse; Gradio would fetch them."""

    async def move(self: Any, path: Any) -> str | None:
        if path is not None and is_http_url_like(str(path)):
            return str(path)
        moved: str | None = await base.async_move_resource_to_block_cache(self, path)
        return moved

    return _changed(base, async_move_resource_to_block_cache=move, **methods)


def _changed(base: type[Any], **methods: Any) -> Any:
    """A kind of ``base`` with other methods.

    It goes past Gradio's metaclass, which writes a stub file beside the module of each subclass, and it keeps the
    name and module of ``base``, by which the page finds the component.
    """
    return ABCMeta.__new__(ComponentMeta, base.__name__, (base,), {"__module__": base.__module__, **methods})


# The example is what the API page shows; Gradio's own is a picture on another host
_Image = _uploads_only(
    gr.Image, preprocess=_path, example_payload=lambda self: _EXAMPLE, example_value=lambda self: None
)
_Gallery = _uploads_only(
    gr.Gallery, preprocess=_paths, example_payload=lambda self: [{"image": _EXAMPLE}], example_value=lambda self: None
)
_File = _uploads_only(gr.File, preprocess=_path, example_payload=lambda self: _TEXT, example_value=lambda self: None)
# What fits no field is for the page's function to refuse: Gradio would answer with a bare status 400, or for a list in
# the place of a text with what Python writes it as
_Textbox = _changed(gr.Textbox, preprocess=lambda self, payload: payload)
_Radio = _changed(gr.Radio, preprocess=lambda self, payload: payload)
_Number = _changed(gr.Number, preprocess=lambda self, payload: payload)
_Slider = _changed(gr.Slider, preprocess=lambda self, payload: payload)
