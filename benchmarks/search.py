"""Search beside faiss: queries per second, recall and memory.

    python benchmarks/search.py [--rows 100000 1000000] [--threads 1]

Synthetic embeddings of 512 dimensions, seeded: pictures in clusters of about fifty, one in ten of them a near-duplicate
of another; queries lie near clusters. Every method searches the same file for the 10 best in a process of its own, one
query at a time and a hundred at once. Recall is against float64. Memory is what the process itself has come to hold
since its libraries were imported, and what it has mapped of files, which the system takes back when it needs to; that
of faiss ivf-sq8 includes what building it took. A library that is not installed is left out. Seconds are CPU seconds,
the least of several, so that other programs disturb little.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from isolated import in_process, measured, pin_threads
from machine import write

WIDTH, QUERIES, K = 512, 100, 10
METHODS = ("exact", "faiss flat", "faiss ivf-sq8", "bf16 scan")


def make(folder: Path, n: int) -> None:
    """``rows.npy`` (n, 512), ``queries.npy`` (100, 512) and ``best.npy`` (100, 10), the true best by float64."""
    draw = np.random.default_rng(0)
    centres = draw.normal(size=(max(2, n // 50), WIDTH)).astype(np.float32)
    rows = np.lib.format.open_memmap(folder / "rows.npy", "w+", np.float32, (n, WIDTH))
    for start in range(0, n, 50_000):
        size = min(50_000, n - start)
        part = centres[draw.integers(0, len(centres), size)] + 0.7 * draw.standard_normal((size, WIDTH), np.float32)
        copies = draw.permutation(size)[: size // 10]
        part[copies] = part[(copies + 1) % size] + 0.001 * draw.standard_normal((len(copies), WIDTH), np.float32)
        rows[start : start + size] = part / np.linalg.norm(part, axis=1, keepdims=True)
    rows.flush()
    queries = centres[draw.integers(0, len(centres), QUERIES)] + draw.standard_normal((QUERIES, WIDTH), np.float32)
    queries /= np.linalg.norm(queries, axis=1, keepdims=True)
    np.save(folder / "queries.npy", queries.astype(np.float32))
    scores = np.concatenate(
        [queries.astype(np.float64) @ rows[i : i + 20_000].T.astype(np.float64) for i in range(0, n, 20_000)], axis=1
    )
    best = np.argpartition(-scores, K, axis=1)[:, :K]
    np.save(folder / "best.npy", best)


def one(arguments: dict[str, Any]) -> dict[str, Any]:
    """One method on the data in a folder, in this process."""
    import torch

    import clipkit.inference  # noqa: F401  what every method needs is no part of its memory

    folder, method, threads = Path(arguments["folder"]), arguments["method"], arguments["threads"]
    if method.startswith("faiss"):
        import faiss  # noqa: F401
    torch.set_num_threads(threads)
    queries = np.load(folder / "queries.npy")
    before = _memory()
    start = time.process_time()
    search, notes = _open(folder, method, threads)
    figures: dict[str, Any] = {"open_cpu_seconds": time.process_time() - start, **notes}
    found = search(queries)
    best = np.load(folder / "best.npy")
    figures["recall"] = float(np.mean([np.isin(a, b).mean() for a, b in zip(best, found, strict=True)]))
    each = measured(lambda: [search(q[None]) for q in queries[:20]], 3)
    together = measured(lambda: search(queries), 3)
    figures["queries_per_cpu_second_alone"] = 20 / each["cpu_seconds"]
    figures["queries_per_cpu_second_together"] = QUERIES / together["cpu_seconds"]
    figures["milliseconds_alone"] = 1000 * each["wall_seconds"] / 20
    return {**figures, **{name: mib - before[name] for name, mib in _memory().items()}}


def _memory() -> dict[str, int]:
    """MiB that are this process's own, and that it has mapped of files."""
    fields = {"RssAnon:": "own_mib", "RssFile:": "mapped_mib"}
    lines = [line.split() for line in Path("/proc/self/status").read_text().splitlines()]
    return {fields[line[0]]: int(line[1]) >> 10 for line in lines if line[0] in fields}


def _open(folder: Path, method: str, threads: int) -> tuple[Any, dict[str, Any]]:
    rows = np.load(folder / "rows.npy", mmap_mode="r")
    if method == "exact":
        from clipkit.inference.exact import ExactSearch

        own = ExactSearch(rows)
        return lambda q: own.search(q, K)[1], {}
    if method == "bf16 scan":
        return _bf16(rows), {}
    import faiss

    faiss.omp_set_num_threads(threads)
    if method == "faiss flat":
        flat = faiss.IndexFlatIP(WIDTH)
        for start in range(0, len(rows), 50_000):
            flat.add(np.asarray(rows[start : start + 50_000]))
        return lambda q: flat.search(q, K)[1], {}
    from clipkit.inference.approximate import build_search, open_search

    none = np.zeros((0, WIDTH), dtype=np.float32)
    described = folder / "faiss.json"
    if not described.exists():
        start = time.process_time()
        made = build_search("faiss", folder, "benchmark", rows, none, None)
        described.write_text(json.dumps({**made, "build_cpu_seconds": time.process_time() - start}))
    said = json.loads(described.read_text())
    library = open_search(folder, said, rows)
    return lambda q: library.search(q, K)[1], {name: said[name] for name in ("build_cpu_seconds", "lists", "nprobe")}


def _bf16(rows: Any) -> Any:
    """What a scan in bf16 would cost before anything is scored again: the products and the rows within the bound."""
    import torch

    held = torch.empty(len(rows), WIDTH, dtype=torch.bfloat16)
    for start in range(0, len(rows), 50_000):
        held[start : start + 50_000] = torch.from_numpy(np.array(rows[start : start + 50_000]))

    def search(queries: Any) -> Any:
        asked = torch.from_numpy(queries).to(torch.bfloat16)
        scores = (held @ asked[0])[None] if len(queries) == 1 else (asked @ held.T)
        near = scores.float().topk(4 * K, dim=1).indices.numpy()
        return [ids[np.argsort(-(rows[ids] @ q))[:K]] for ids, q in zip(near, queries, strict=True)]

    return search


def main() -> None:
    """Measure every method on every size."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[100_000, 1_000_000])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--one", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(one(json.loads(options.one))))
        return
    pin_threads(options.threads)
    figures: dict[str, Any] = {"width": WIDTH, "k": K, "threads": options.threads, "rows": {}}
    print(f"{'rows':>10} {'method':14} {'q/s alone':>10} {'q/s 100':>9} {'recall':>7} {'own MiB':>8} {'mapped':>7}")
    for n in options.rows:
        figures["rows"][str(n)] = {}
        with tempfile.TemporaryDirectory(prefix="clipkit-search-") as folder:
            make(Path(folder), n)
            for method in METHODS:
                got = in_process(__file__, {"folder": folder, "method": method, "threads": options.threads})
                if got is None:
                    print(f"{n:10,} {method:14} failed, or is not installed", file=sys.stderr)
                    continue
                figures["rows"][str(n)][method] = got
                print(
                    f"{n:10,} {method:14} {got['queries_per_cpu_second_alone']:10.1f} "
                    f"{got['queries_per_cpu_second_together']:9.1f} {got['recall']:7.3f} {got['own_mib']:8,} "
                    f"{got['mapped_mib']:7,}",
                    flush=True,
                )
    write("search", figures)


if __name__ == "__main__":
    main()
