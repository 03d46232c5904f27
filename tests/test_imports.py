"""The house rules: imports point one way, no module shadows a library, and the face loads nothing heavy."""

from __future__ import annotations

import ast
import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
ROOMS = ["errors", "config", "pairs", "encoders", "objectives", "evaluation", "training", "inference"]
GROUND = ("cache", "lines", "run_file")  # beside config
LEVEL = {name: level for level, name in enumerate(ROOMS)}
LEVEL |= {name: ROOMS.index("config") for name in GROUND}
TOP = len(ROOMS)
LEVEL["explain"] = TOP  # it shows whole recipes
HEAVY = [
    "torch",
    "torchvision",
    "numpy",
    "scipy",
    "sklearn",
    "pyarrow",
    "transformers",
    "open_clip",
    "timm",
    "accelerate",
    "webdataset",
    "PIL",
    "matplotlib",
    "gradio",
    "tyro",
    "yaml",
    "safetensors",
    "huggingface_hub",
    "fsspec",
    "tokenizers",
    "data_prep",
    "demos",
]


def python_files() -> list[Path]:
    files = [p for folder in ("clipkit", "data_prep", "demos") for p in sorted((ROOT / folder).rglob("*.py"))]
    assert len(files) > 30
    return files


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(path: Path) -> list[tuple[str, bool, int]]:
    """(dotted name, whether it is imported inside a function, line) of every import in a file."""
    found: list[tuple[str, bool, int]] = []
    package = module_name(path).split(".")
    if path.name != "__init__.py":
        package = package[:-1]

    def visit(node: ast.AST, lazy: bool) -> None:
        lazy = lazy or isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))
        if isinstance(node, ast.Import):
            found.extend((alias.name, lazy, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = [node.module] if node.module else []
            if node.level:
                base = package[: len(package) - node.level + 1] + base
            # `from clipkit import pairs` names a module; `from clipkit.pairs import Order` does not: keep both parts
            found.extend((".".join([*base, alias.name]), lazy, node.lineno) for alias in node.names)
        for child in ast.iter_child_nodes(node):
            visit(child, lazy)

    visit(ast.parse(path.read_text(encoding="utf-8")), False)
    return found


def level(name: str) -> int:
    """Level of a dotted name of clipkit: its room's, or the top for everything directly in clipkit."""
    parts = name.split(".")
    return LEVEL.get(parts[1], TOP) if len(parts) > 1 else TOP


@pytest.mark.parametrize("path", python_files(), ids=module_name)
def test_imports_point_one_way(path: Path) -> None:
    own = module_name(path)
    wrong = []
    for name, lazy, line in imports(path):
        house = name.split(".")[0]
        if own.startswith("clipkit") and house == "clipkit":
            if level(name) > level(own):
                wrong.append(f"line {line}: {name} lies above {own}")
        elif own.startswith("clipkit") and house in ("data_prep", "demos"):
            if level(own) < TOP or not lazy:
                wrong.append(f"line {line}: {own} may not import {name}" + ("" if lazy else " outside a function"))
        elif own.startswith("data_prep") and house == "demos":
            wrong.append(f"line {line}: {own} imports {name}")
    assert not wrong, "\n".join(wrong)


def test_the_rules_know_every_room() -> None:
    folders = {p.parent.name for p in (ROOT / "clipkit").glob("*/__init__.py")}
    assert folders <= set(LEVEL), "a folder of clipkit has no place in the order of imports"


def test_no_module_of_clipkit_shadows_a_library() -> None:
    """`accelerate launch clipkit/train.py` puts clipkit/ first on sys.path."""
    names = {p.stem for p in (ROOT / "clipkit").glob("*.py")} | {p.parent.name for p in ROOT.glob("clipkit/*/*.py")}
    names -= {"__init__", "__main__"}
    known = set(sys.stdlib_module_names) | {"datasets", "tokenizers", "evaluate", "types", "peft", "faiss", "onnx"}
    assert not names & known
    elsewhere = [p for p in sys.path if Path(p or ".").resolve() not in (ROOT, ROOT / "clipkit")]
    found = {n: importlib.machinery.PathFinder.find_spec(n, elsewhere) for n in names}
    shadowed = [n for n, spec in found.items() if spec is not None and spec.origin is not None]
    assert not shadowed


def loaded_by(code: str) -> tuple[str, set[str]]:
    """Standard output of ``code`` in a fresh process, and the heavy packages that it has loaded at its end."""
    tail = f"\nimport sys; print('LOADED', *[m for m in {HEAVY!r} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code + tail], cwd=ROOT, capture_output=True, text=True, check=True)
    out, _, loaded = done.stdout.rpartition("LOADED")
    return out, set(loaded.split())


def test_importing_clipkit_loads_nothing_heavy() -> None:
    out, loaded = loaded_by("import clipkit; print(clipkit.__version__, dir(clipkit))")
    assert loaded == set()
    assert all(name in out for name in ("load", "train", "Aligner", "Classifier", "Index"))


@pytest.mark.parametrize("arguments", [["--help"], [], ["--version"], ["no-such-verb"]])
def test_the_command_alone_loads_nothing_heavy(arguments: list[str]) -> None:
    out, loaded = loaded_by(f"import clipkit.cli; print('status', clipkit.cli.main({arguments!r}))")
    assert loaded == set()
    assert f"status {2 if arguments == ['no-such-verb'] else 0}" in out
    if arguments == ["--help"]:
        assert all(verb in out for verb in ("prepare", "train", "evaluate", "index", "search", "classify", "match"))


def test_light_modules_stay_light() -> None:
    assert loaded_by("import clipkit.errors, clipkit.config, clipkit.recipes, clipkit.cache")[1] == set()


def test_preparing_data_loads_no_torch(tmp_path: Path) -> None:
    Image.new("RGB", (40, 30), "red").save(tmp_path / "red.png")
    (tmp_path / "data.csv").write_text("filepath,caption\nred.png,a red wall\n")
    command = ["prepare", str(tmp_path / "data.csv"), str(tmp_path / "shards"), "--processes", "1"]
    out, loaded = loaded_by(f"from clipkit.cli import main; print('status', main({command!r}))")
    assert "status 0" in out and not loaded & {"torch", "torchvision", "transformers"}


def test_the_face_is_lazy_and_honest() -> None:
    code = "import clipkit\ntry:\n    clipkit.nothing\nexcept AttributeError as e:\n    print(e)"
    assert "nothing" in loaded_by(code)[0]
    # clipkit.train is a function and a module's name; whoever imports the module first must still get the function
    code = "import clipkit.train, clipkit; print('callable', callable(clipkit.train))"
    assert "callable True" in loaded_by(code)[0]


def test_train_py_takes_its_own_folder_off_the_path() -> None:
    code = (
        "import sys, runpy\n"
        "sys.path.insert(0, 'clipkit'); sys.argv = ['clipkit/train.py', '--recipe', 'no-such-recipe']\n"
        "try:\n    runpy.run_path('clipkit/train.py', run_name='__main__')\n"
        "except SystemExit as e:\n    print('exit', e.code)\n"
        "from pathlib import Path\n"
        "print('left', [p for p in sys.path if Path(p or '.').resolve() == Path('clipkit').resolve()])"
    )
    out, _ = loaded_by(code)
    assert "exit 2" in out and "left []" in out


def test_using_a_model_loads_no_more_than_it_needs() -> None:
    """torchvision alone takes as long to import as torch, and a search for words decodes no picture."""
    code = (
        "import sys; from clipkit.inference import Index, load; import clipkit.search_commands; "
        "more = {'torchvision', 'open_clip', 'timm', 'transformers', 'sklearn', 'matplotlib', 'faiss', 'pymilvus'}; "
        "sys.exit(f'loaded {more & set(sys.modules)}' if more & set(sys.modules) else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
