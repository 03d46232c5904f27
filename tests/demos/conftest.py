"""A tiny untrained model, a few pictures, and the app of both served on a free port."""

from __future__ import annotations

import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from gradio_client import Client
from PIL import Image

sys.path.insert(0, str(Path(__file__).parent))

from demo_helpers import CHROMIUM, a_run

import demos  # first: it switches Gradio's analytics off  # noqa: F401
from clipkit.config import ModelConfig
from clipkit.encoders import build
from clipkit.inference import Aligner, Index

COLOURS = ("red", "green", "blue", "orange", "purple", "grey")


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CLIPKIT_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Aligner:
    """Random weights, the same ones each time, and a run directory that they are called after."""
    run = a_run(tmp_path_factory.mktemp("model"))
    return Aligner(build(ModelConfig(model="small")), str(run))


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A picture of each colour, by name."""
    folder = tmp_path_factory.mktemp("pictures")
    paths = {colour: folder / f"{colour}.png" for colour in COLOURS}
    for colour, path in paths.items():
        Image.new("RGB", (160, 120), colour).save(path)
    return paths


@pytest.fixture(scope="session")
def index(model: Aligner, pictures: dict[str, Path]) -> Index:
    """The coloured pictures, indexed."""
    return Index.build(model, pictures["red"].parent)


@pytest.fixture(scope="session")
def free_port() -> int:
    """A port of this machine that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(scope="session")
def address(model: Aligner, index: Index, free_port: int) -> Iterator[str]:
    """The app, served."""
    from demos.app import build_app, serve

    app = build_app(model, index)
    yield serve(app, port=free_port, block=False)
    app.close(verbose=False)


@pytest.fixture(scope="session")
def client(address: str, tmp_path_factory: pytest.TempPathFactory) -> Client:
    """A client of the app's API."""
    answers = tmp_path_factory.mktemp("answers")
    return Client(address, verbose=False, analytics_enabled=False, download_files=answers)


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    """Chromium."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def page(browser: Any, address: str) -> Iterator[Any]:
    """The open app; at its end, nothing may have gone wrong in it, or have been asked of another host."""
    page = browser.new_page(viewport={"width": 1280, "height": 1000}, accept_downloads=True)
    page.set_default_timeout(60_000)
    wrong: list[str] = []
    hosts: set[str] = set()
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("request", lambda request: hosts.add(request.url.split("/")[2]) if "//" in request.url else None)
    page.goto(address)
    page.wait_for_selector("#search-words textarea, #search-words input")
    yield page
    page.close()
    assert wrong == [] and hosts == {address.split("/")[2]}
