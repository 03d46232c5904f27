"""clipkit's InfoNCE beside open_clip's ``ClipLoss``: CPU time, peak memory, error against float64.

    python benchmarks/loss.py [--sizes 1024 4096 8192] [--largest 65536]

Every method runs forward and backward in a process of its own, float32, D = 512, one process. ``ClipLoss`` computes
as torch does by default; clipkit with the matmul setting that its main job probes and takes. Memory is what the
process has at its peak above what it had before the features were made: both features and their gradients are in it.
The rate is 4 x 2 B^2 D operations (a product forward, one again and two for the gradients) over CPU seconds, beside
the best rate that a plain matrix product reached on the same machine in the same run.
"""

from __future__ import annotations

import argparse
import json
import sys
from typing import Any

from isolated import forget_peak, in_process, measured, peak, resident

D = 512
METHODS = ("open_clip", "clipkit")
GIB = 1 << 30


def one(method: str, batch: int, repeats: int) -> dict[str, float]:
    """CPU seconds and peak bytes of one method at one batch size."""
    import torch
    from open_clip.loss import ClipLoss as OpenClipLoss

    from clipkit.objectives import ClipLoss
    from clipkit.training.precision import apply_arithmetic, choose_arithmetic

    cpu = torch.device("cpu")
    if method == "clipkit":
        apply_arithmetic(choose_arithmetic("float32", cpu), cpu)
    loss = ClipLoss() if method == "clipkit" else OpenClipLoss()
    scale = torch.tensor(1 / 0.07, requires_grad=True)
    small = [torch.nn.functional.normalize(torch.randn(64, D), dim=-1).requires_grad_() for _ in range(2)]
    loss(*small, scale).backward()  # libraries load what they need
    before = resident()
    images, texts = _features(batch)
    forget_peak()

    def step() -> None:
        images.grad = texts.grad = None
        loss(images, texts, scale).backward()

    return {**measured(step, repeats), "peak_bytes": peak() - before}


def rate() -> dict[str, float]:
    """Best operations per CPU second of a float32 product, over shapes, under the setting that the main job takes."""
    import torch

    from clipkit.training.precision import apply_arithmetic, choose_arithmetic

    cpu = torch.device("cpu")
    arithmetic = choose_arithmetic("float32", cpu)
    apply_arithmetic(arithmetic, cpu)
    best = 0.0
    for n, m, k in ((2048, 2048, 2048), (1024, 1024, 512), (4096, 4096, 512), (1024, 512, 1024)):
        a, b = torch.randn(n, k), torch.randn(k, m)
        out = torch.empty(n, m)
        run = lambda a=a, b=b, out=out: torch.mm(a, b, out=out)  # noqa: E731
        run()
        best = max(best, 2 * n * m * k / measured(run, 12)["cpu_seconds"])
    return {"flops_per_cpu_second": best, "setting": arithmetic.matmul}  # type: ignore[dict-item]


def errors(batch: int = 1024) -> list[dict[str, Any]]:
    """Relative errors of loss and gradients against float64, on the same float32 (or bf16) features."""
    from open_clip.loss import ClipLoss as OpenClipLoss

    from clipkit.objectives import ClipLoss

    rows = []
    for name, scale, noise in (("scale 14", 14.0, 1.0), ("scale 100", 100.0, 1.0), ("saturated", 100.0, 0.02)):
        for autocast in (False, True):
            images, texts = (x.detach() for x in _features(batch, noise))
            if autocast:
                images, texts = images.bfloat16(), texts.bfloat16()
            wanted = _gradients(_Reference(), images.double(), texts.double(), scale, False)
            row: dict[str, Any] = {"case": name, "features": "bf16, autocast" if autocast else "float32"}
            for method, loss in (("open_clip", OpenClipLoss()), ("clipkit", ClipLoss())):
                got = _gradients(loss, images, texts, scale, autocast)
                row[method] = {
                    what: float((g.double() - w).norm() / w.norm())
                    for what, g, w in zip(("loss", "images", "texts", "scale"), got, wanted, strict=True)
                }
            rows.append(row)
    return rows


class _Reference:
    """Symmetric cross-entropy in float64, the positive's gradient as -R/Z: written for this page alone."""

    def __call__(self, images: Any, texts: Any, scale: Any) -> Any:
        import torch

        scores = scale * images @ texts.T
        off = torch.eye(len(scores), dtype=torch.bool)
        apart = (scores - scores.diagonal()[:, None]).masked_fill(off, -torch.inf)
        other = (scores.T - scores.diagonal()[:, None]).masked_fill(off, -torch.inf)
        return sum(torch.log1p(x.exp().sum(1)).mean() for x in (apart, other)) / 2


def _gradients(loss: Any, images: Any, texts: Any, scale: float, autocast: bool) -> list[Any]:
    import torch

    inputs = [images.clone().requires_grad_(), texts.clone().requires_grad_()]
    scale_tensor = torch.tensor(scale, dtype=torch.float64 if images.dtype == torch.float64 else torch.float32)
    scale_tensor.requires_grad_()
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        value = loss(*inputs, scale_tensor)
    value.backward()
    return [value.detach(), *(x.grad for x in inputs), scale_tensor.grad]


def _features(batch: int, noise: float = 1.0) -> Any:
    """Unit-norm pairs: texts are their pictures plus ``noise`` of the same length."""
    import torch
    from torch.nn.functional import normalize

    generator = torch.Generator().manual_seed(0)
    images = normalize(torch.randn(batch, D, generator=generator), dim=-1)
    texts = torch.randn(batch, D, generator=generator).mul_(noise / D**0.5).add_(images)
    return images.requires_grad_(), normalize(texts, dim=-1).requires_grad_()


def main() -> None:
    """Measure, print the table, write loss.json and loss.png."""
    from machine import write

    parser = argparse.ArgumentParser()
    parser.add_argument("--sizes", type=int, nargs="+", default=[256, 1024, 4096, 8192, 16384])
    parser.add_argument("--largest", type=int, nargs="*", default=[32768, 65536], help="sizes that clipkit runs alone")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        arguments = json.loads(options.one)
        kind = arguments.pop("kind")
        print(json.dumps({"one": one, "rate": rate, "errors": errors}[kind](**arguments)))
        return
    best = in_process(__file__, {"kind": "rate"})
    assert best is not None
    rows = []
    for batch in [*options.sizes, *options.largest]:
        row: dict[str, Any] = {"batch": batch}
        for method in METHODS if batch in options.sizes else METHODS[1:]:
            repeats = 5 if batch <= 1024 else 2 if batch <= 8192 else 1
            row[method] = in_process(__file__, {"kind": "one", "method": method, "batch": batch, "repeats": repeats})
        ours = row["clipkit"]
        row["share_of_best_rate"] = 8 * batch**2 * D / ours["cpu_seconds"] / best["flops_per_cpu_second"]
        rows.append(row)
        print(_line(row), flush=True)
    found = in_process(__file__, {"kind": "errors"})
    for row in found or []:
        print(row["case"], row["features"], {m: {k: f"{v:.1e}" for k, v in row[m].items()} for m in METHODS})
    write("loss", {"dimensions": D, "best_rate": best, "sizes": rows, "errors": found})
    _plot(rows)


def _line(row: dict[str, Any]) -> str:
    ours, theirs = row["clipkit"], row.get("open_clip")
    text = f"B {row['batch']:6,}  clipkit {ours['cpu_seconds']:8.3f} CPU s {ours['peak_bytes'] / GIB:7.3f} GiB"
    text += f" ({row['share_of_best_rate']:.0%} of the best rate)"
    if theirs:
        text += f"  open_clip {theirs['cpu_seconds']:8.3f} CPU s {theirs['peak_bytes'] / GIB:7.3f} GiB"
        text += f"  x{theirs['cpu_seconds'] / ours['cpu_seconds']:.2f} time"
        text += f" x{theirs['peak_bytes'] / ours['peak_bytes']:.1f} memory"
    return text


def _plot(rows: list[dict[str, Any]]) -> None:
    from pathlib import Path

    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    rows = [row for row in rows if row["batch"] >= 1024]  # below, the peak is a few pages
    figure, axes = plt.subplots(1, 2, figsize=(9, 3.4))
    for method, colour in (("open_clip", "tab:orange"), ("clipkit", "tab:blue")):
        known = [row for row in rows if row.get(method)]
        sizes = [row["batch"] for row in known]
        for axis, field, unit in ((axes[0], "cpu_seconds", 1), (axes[1], "peak_bytes", GIB)):
            axis.loglog(sizes, [row[method][field] / unit for row in known], "o-", color=colour, label=method)
    for axis in axes:
        axis.set_xticks([row["batch"] for row in rows], [f"{row['batch']:,}" for row in rows])
        axis.minorticks_off()
    for axis, title in ((axes[0], "CPU seconds, forward + backward"), (axes[1], "peak memory, GiB")):
        axis.set(title=title, xlabel="batch size")
        axis.grid(alpha=0.3)
        axis.legend()
    figure.tight_layout()
    figure.savefig(Path(__file__).with_name("loss.png"), dpi=110)


if __name__ == "__main__":
    sys.exit(main())
