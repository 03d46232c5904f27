"""What the demo's tests share: uploads as a client sends them, and the errors that it gets."""

from __future__ import annotations

import json
import shutil
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

from gradio_client import handle_file
from gradio_client.exceptions import AppError
from gradio_client.exceptions import ValidationError as FieldError

Pictures = dict[str, Path]
ERRORS = (AppError, FieldError)
CHROMIUM = next(
    (found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))), None
)


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


def a_run(folder: Path) -> Path:
    """What a run leaves, in little, in ``folder``/run."""
    run = folder / "run"
    run.mkdir()
    lines = [{"kind": "train", "step": s, "loss": 5 - s / 9, "lr": 1e-3} for s in range(1, 20)]
    lines.append({"kind": "eval", "step": 19, "image_to_text@1": 0.5, "text_to_image@1": 0.25})
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"kind": "tr')
    (run / "config.yaml").write_text(f"recipe: clip\nbatch_size: 32\ntrain_data: {folder / 'shards' / 'train'}\n")
    (run / "report.html").write_text('<p class="x">"The" report</p>')
    (folder / "shards").mkdir()
    (folder / "shards" / "dataset.json").write_text("{}")
    card = "# Data card\n\nMade from `a <b>`.\n\n![Some](contact_sheet.jpg)\n\n## Samples\n"
    (folder / "shards" / "data_card.md").write_text(card)
    (folder / "shards" / "contact_sheet.jpg").write_bytes(b"jpeg")
    return run


def field(page: Any, name: str) -> Any:
    """The text field with that id."""
    return page.locator(f"#{name} textarea, #{name} input").first


def open_tab(page: Any, name: str) -> None:
    """Click a tab, which on a narrow page may be in the menu of those that have no room."""
    tab = page.get_by_role("tab", name=name, exact=True)
    if not tab.first.is_visible():
        page.locator(".overflow-menu > button").first.click()
        tab = page.locator(".overflow-dropdown button", has_text=name)
    tab.first.click()


def add_pictures(page: Any, *paths: Path) -> None:
    """Put pictures into the visible page's field for several."""
    page.locator("[role=tabpanel]:visible .ck-several input[type=file]").first.set_input_files([str(p) for p in paths])
