"""Model: what it is, how it was trained, what it was measured to do, and what is in its data."""

from __future__ import annotations

import base64
import threading
from pathlib import Path

import gradio as gr

from clipkit.inference import Aligner
from demos.run import read_run, report_frame

_NO_CURVES = "<p>No training curves: there is no run directory with a metrics.jsonl.</p>"
_NO_REPORT = "<p>No evaluation report: a run writes its report.html when it has ended.</p>"
_NO_CARD = "No data card: `clipkit prepare` writes one beside the shards that it makes."


def model_page(tab: gr.Tab, model: Aligner) -> None:
    """Lay out the page; the run that the model is called after is read when the ``tab`` is opened first."""
    lock = threading.Lock()
    told: list[tuple[str, str, str, str, str]] = []

    def tell() -> tuple[str, str, str, str, str]:
        with lock:
            if not told:
                told.append(parts(model, Path(model.name)))
            return told[0]

    facts = gr.HTML(label="Model", elem_id="model-facts")
    gr.HTML("<h2>Evaluation</h2>")
    report = gr.HTML(label="Evaluation report", elem_id="model-report")
    gr.HTML("<h2>Training</h2>")
    curves = gr.HTML(label="Training curves", elem_classes="ck-curves", elem_id="model-curves")
    gr.HTML("<h2>Data</h2>")
    card = gr.Markdown(elem_classes="ck-card-of-data", elem_id="model-card")
    sheet = gr.HTML(label="Contact sheet")
    tab.select(tell, None, [facts, curves, report, card, sheet], api_visibility="private")


def parts(model: Aligner, run: Path) -> tuple[str, str, str, str, str]:
    """HTML of facts, curves and report, Markdown of the data card, HTML of its pictures."""
    told = read_run(model, run)
    report = report_frame(told.report) if told.report is not None else _NO_REPORT
    sheet = ""
    if told.sheet is not None:
        data = base64.b64encode(told.sheet).decode()
        sheet = f'<img src="data:image/jpeg;base64,{data}" alt="Some of the training pictures with their captions">'
    return told.facts, told.curves or _NO_CURVES, report, told.card or _NO_CARD, sheet
