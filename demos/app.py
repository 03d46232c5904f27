"""The app: its pages, its look, and how it is served."""

from __future__ import annotations

import atexit
import os
import shutil
import signal
import socket
import tempfile
import threading
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

import gradio as gr
from starlette.middleware import Middleware
from starlette.routing import Route

from clipkit.errors import ClipkitError
from clipkit.inference import Aligner, Index
from clipkit.inference.calibration import SavedCalibration
from demos.classify import classify_page
from demos.examples import make_examples
from demos.fields import AT_ONCE
from demos.guard import Guard
from demos.inputs import MAX_UPLOAD
from demos.map import map_page
from demos.match import match_page
from demos.model import model_page
from demos.search import search_page
from demos.style import CSS, HEAD
from demos.thumbnails import Thumbnails

_WAITING = 64  # calls in the queue; the next one is told that it is full
_UPLOADS = (3600, 86_400)  # every hour, files older than a day are deleted


class Pages(gr.Blocks):
    """The app, with what it serves besides Gradio's own."""

    routes: Sequence[Route] = ()


def build_app(model: Aligner, index: Index | None = None, calibration: SavedCalibration | None = None) -> Pages:
    """The pages of a model.

    Args:
        model: does the work.
        index: what the search page searches; made by the same model.
        calibration: what the classify page starts with.

    Returns:
        An app for ``serve`` (or Gradio's own ``launch``, which then has to be given what ``settings`` holds).
    """
    own_folder()
    examples = make_examples(index)
    thumbnails = Thumbnails(index) if index is not None else None
    with Pages(title="clipkit", analytics_enabled=False, delete_cache=_UPLOADS) as app:
        app.routes = [thumbnails.route()] if thumbnails is not None else []
        gr.HTML(_head(model, index), elem_classes="ck-head")
        with gr.Tab("Search", id="search"):
            search_page(model, index, thumbnails, examples)
        with gr.Tab("Match captions", id="match"):
            match_page(model, examples)
        with gr.Tab("Classify", id="classify"):
            classify_page(model, examples, calibration)
        with gr.Tab("Map", id="map") as tab:
            map_page(tab, index, thumbnails, examples)
        with gr.Tab("Model", id="model") as tab:
            model_page(tab, model)
        for line in index.credits() if index is not None else []:
            gr.HTML(f"<p>{escape(line)}</p>", elem_classes="ck-note")
    app.queue(max_size=_WAITING, default_concurrency_limit=AT_ONCE)
    return app


def own_folder() -> None:
    """Let Gradio keep uploads and thumbnails in a folder of this process alone, gone when it ends.

    It serves whatever lies in the folder that all Gradio programs of a user share otherwise.
    """
    if "GRADIO_TEMP_DIR" not in os.environ:
        os.environ["GRADIO_TEMP_DIR"] = tempfile.mkdtemp(prefix="clipkit-demo-")
        atexit.register(shutil.rmtree, os.environ["GRADIO_TEMP_DIR"], ignore_errors=True)


def settings(app: Pages) -> dict[str, Any]:
    """What an app is launched with: its look, its limits, and nothing that reaches beyond this machine."""
    system = ["system-ui", "-apple-system", "Segoe UI", "Roboto", "sans-serif"]
    mono = ["ui-monospace", "Consolas", "monospace"]
    return {
        "theme": gr.themes.Default(primary_hue="blue", font=system, font_mono=mono),
        "css": CSS,
        "head": HEAD,
        "max_file_size": MAX_UPLOAD,
        "footer_links": ["api", "settings"],
        "app_kwargs": {"middleware": [Middleware(Guard)], "routes": list(app.routes)},
        "share": False,
        "ssr_mode": False,
        "mcp_server": False,
        "pwa": False,
        "run_history": False,
        "enable_monitoring": False,
        "show_error": False,
        "quiet": True,
    }


def serve(app: Pages, host: str = "127.0.0.1", port: int = 7860, block: bool = True) -> str:
    """Serve the app and return its address; with ``block``, only after it is interrupted.

    Raises:
        ClipkitError: an address or a port that cannot be had.
    """
    _check_port(host, port)
    _, address, _ = app.launch(server_name=host, server_port=port, prevent_thread_lock=True, **settings(app))
    if block:
        if threading.current_thread() is threading.main_thread():  # elsewhere Python takes no signals
            signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C: what was uploaded is cleared away
        print(f"clipkit demo at {address} (stop it with Ctrl-C)", flush=True)
        app.block_thread()
    return address


def _check_port(host: str, port: int) -> None:
    if not 0 < port < 65_536:
        raise ClipkitError(f"--port {port}: a port is a number from 1 to 65535")
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except OSError as error:
        raise ClipkitError(
            f"{host} port {port} cannot be used ({error.strerror}): choose another with --port or --host"
        ) from None


def _head(model: Aligner, index: Index | None) -> str:
    pictures = f"{len(index):,} pictures to search" if index is not None else "no pictures to search"
    return f"<h1>clipkit</h1><p>Model {escape(Path(model.name).name)}, {model.embed_dim} dimensions, {pictures}.</p>"
