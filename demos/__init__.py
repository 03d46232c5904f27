"""The web demo: thin pages over ``clipkit.inference``.

Gradio reports its use to its makers unless it is told not to before it is imported, which is here.
"""

from __future__ import annotations

import os

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
