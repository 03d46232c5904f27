"""One checkpoint: written whole or not at all, and nothing in it is executed when it is read.

A checkpoint is a folder ``checkpoints/step-N`` with ``model.safetensors``, ``frozen.safetensors`` (locked towers, a
link to one file of the run), ``optimizer.safetensors`` and ``.json``, ``state.json``, ``config.yaml``, the model's
description, and ``digests.json`` with the SHA-256 of what must not change. It is written under a temporary name,
flushed, and renamed. Which checkpoints a run has, and which of them counts, is in ``kept.py``.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from clipkit.cache import sync_folder
from clipkit.config import Config
from clipkit.encoders import DualEncoder, rebuild, save_description
from clipkit.encoders.build import MODEL_FILE
from clipkit.errors import ClipkitError
from clipkit.run_file import save_config
from clipkit.training.strategy import load_optimizer_state

FOLDER = "checkpoints"
STATE, CONFIG, DIGESTS = "state.json", "config.yaml", "digests.json"
WEIGHTS, FROZEN, OPTIMIZER = "model.safetensors", "frozen.safetensors", "optimizer"
MEMORY = "memory.safetensors"
REPLACED = ".replaced-"  # before the name of a checkpoint that gives way to a new one of the same step


@dataclass(frozen=True)
class State:
    """Where a run stands.

    Attributes:
        step: steps done, which is also the stream's whole state.
        fingerprint: of the training shards; another one means other data.
        best: best validation figure so far (``SplitReport.goal``), and its step.
        arithmetic: precision, matmul setting and threads of the run.
        seconds: of training so far.
        evaluated: last step at which the validation data were looked at.
        receipts: counts of the epochs that are under way, see ``clipkit.training.receipts``.
        written: seconds since 1970 when the checkpoint was written: the newest is not always that of the last step.
    """

    step: int
    fingerprint: str
    best: tuple[float, int] | None
    arithmetic: dict[str, Any]
    seconds: float
    evaluated: int = 0
    written: float = 0.0
    receipts: dict[str, list[int]] = field(default_factory=dict)


def save_checkpoint(
    run: Path,
    model: DualEncoder,
    optimizer_state: dict[str, Any],
    state: State,
    config: Config,
    memory: Mapping[str, Tensor] | None = None,
) -> Path:
    """Write ``run/checkpoints/step-N``. Called by one process.

    Args:
        model: whole, not sharded.
        optimizer_state: as ``clipkit.training.strategy.optimizer_state`` gives it.
        memory: what is remembered between steps beside the weights.

    Raises:
        ClipkitError: the disk is full or cannot be written; earlier checkpoints stay as they are.
    """
    final = run / FOLDER / f"step-{state.step}"
    temporary = run / FOLDER / f".tmp-step-{state.step}-{os.getpid()}"
    try:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        frozen_names = _frozen_names(model)
        tensors = {k: v.detach().cpu().contiguous() for k, v in model.state_dict().items()}
        save_file({k: v for k, v in tensors.items() if k not in frozen_names}, temporary / WEIGHTS)
        if frozen_names:
            _link_frozen(run, {k: v for k, v in tensors.items() if k in frozen_names}, temporary / FROZEN)
        save_description(model, temporary)
        _save_optimizer(optimizer_state, temporary)
        if memory:
            save_file({k: v.detach().cpu().contiguous() for k, v in memory.items()}, temporary / MEMORY)
        save_config(config, temporary / CONFIG)
        digests = {path.relative_to(temporary).as_posix(): _digest(path) for path in _digested(temporary)}
        (temporary / DIGESTS).write_text(json.dumps(digests, indent=2), encoding="utf-8")
        (temporary / STATE).write_text(json.dumps(state.__dict__, indent=2), encoding="utf-8")
        for path in temporary.rglob("*"):
            (sync_folder if path.is_dir() else _sync)(path)
        sync_folder(temporary)
        _rename_into_place(temporary, final)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(temporary, ignore_errors=True)
        raise ClipkitError(
            f"{final}: the checkpoint could not be written ({_reason(error)}); earlier ones are whole: free space and "
            f"continue with --resume auto"
        ) from None
    return final


def read_state(checkpoint: Path) -> State:
    """The checkpoint's ``State``.

    Raises:
        ClipkitError: ``state.json`` is missing or damaged.
    """
    try:
        values = json.loads((checkpoint / STATE).read_text(encoding="utf-8"))
        best = values.pop("best")
        state = State(best=(float(best[0]), int(best[1])) if best else None, **values)
        if not (isinstance(state.step, int) and isinstance(state.arithmetic, dict)):
            raise ValueError(f"step is {state.step!r}, arithmetic is {state.arithmetic!r}")
        return state
    except (OSError, ValueError, TypeError, KeyError, AttributeError, IndexError) as error:
        raise ClipkitError(f"{checkpoint / STATE}: no whole checkpoint's state ({_reason(error)})") from None


def damage(checkpoint: Path, contents: bool = False) -> str | None:
    """What is wrong with a checkpoint, in a few words that name the file; None when it is whole.

    Args:
        contents: also read every file to its end and compare it with its digest. Without it, files are opened, which
            finds missing, cut and overwritten ones.
    """
    try:
        read_state(checkpoint)
        listed = checkpoint / DIGESTS  # earlier versions wrote none
        digests: dict[str, str] = json.loads(listed.read_text(encoding="utf-8")) if listed.is_file() else {}
        parsed = (f"{OPTIMIZER}.json", MODEL_FILE)
        for name in dict.fromkeys((WEIGHTS, f"{OPTIMIZER}.safetensors", *parsed, *digests)):
            path = checkpoint / name
            if not path.is_file():
                return f"{name} is missing"
            if contents and name in digests and _digest(path) != digests[name]:
                return f"{name} is not what was written"
            try:
                if path.suffix == ".safetensors":
                    with safe_open(path, "pt"):
                        pass
                elif name in parsed:
                    json.loads(path.read_text(encoding="utf-8"))
            except (SafetensorError, ValueError) as error:
                return f"{name}: {error}"
    except ClipkitError as error:
        return str(error).removeprefix(f"{checkpoint}{os.sep}")
    except (OSError, ValueError, TypeError) as error:
        return f"{DIGESTS}: {_reason(error)}"
    return None


def load_weights(model: nn.Module, checkpoint: Path) -> None:
    """The checkpoint's weights into ``model``.

    Raises:
        ClipkitError: damaged files, or weights of another shape.
    """
    tensors: dict[str, Tensor] = {}
    for name in (WEIGHTS, FROZEN):
        path = checkpoint / name
        if path.is_file():
            try:
                tensors |= load_file(path)
            except (SafetensorError, OSError) as error:
                raise ClipkitError(f"{path}: damaged ({error}); use an earlier checkpoint") from None
        elif name == WEIGHTS:
            raise ClipkitError(f"{path}: missing, so {checkpoint} is no whole checkpoint; use an earlier one")
    mine = model.state_dict()
    for name in mine:
        if name not in tensors:
            raise ClipkitError(f"{checkpoint}: it has no weight {name!r}; it belongs to another model than this run's")
        if tensors[name].shape != mine[name].shape:
            raise ClipkitError(
                f"{checkpoint}: {name} has shape {tuple(tensors[name].shape)}, this run's model wants "
                f"{tuple(mine[name].shape)}; resume with the settings in {checkpoint / 'config.yaml'}"
            )
    extra = next((name for name in tensors if name not in mine), None)
    if extra is not None:
        raise ClipkitError(f"{checkpoint}: weight {extra!r} is not in this run's model; it belongs to another model")
    model.load_state_dict(tensors)


def load_memory(memory: nn.Module, checkpoint: Path) -> None:
    """What the objective and the mining remembered, back into them.

    Raises:
        ClipkitError: the checkpoint has none, or that of other settings.
    """
    path = checkpoint / MEMORY
    try:
        memory.load_state_dict(load_file(path))
    except FileNotFoundError:
        raise ClipkitError(f"{path}: missing; resume with the --objective and --negatives of before") from None
    except (SafetensorError, OSError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise ClipkitError(
            f"{path}: does not fit this run ({reason}); resume with the --objective and --negatives of before"
        ) from None


def load_optimizer(optimizer: torch.optim.Optimizer, checkpoint: Path) -> None:
    """The optimizer's state, tensors from safetensors and the rest from JSON."""
    try:
        tensors = load_file(checkpoint / f"{OPTIMIZER}.safetensors")
        groups = json.loads((checkpoint / f"{OPTIMIZER}.json").read_text(encoding="utf-8"))
    except (SafetensorError, OSError, ValueError) as error:
        raise ClipkitError(f"{checkpoint}: damaged optimizer state ({error}); use an earlier checkpoint") from None
    state: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        index, _, field = name.partition(".")
        state.setdefault(int(index), {})[field] = tensor
    try:
        load_optimizer_state(optimizer, {"state": state, "param_groups": groups})
    except ValueError as error:
        raise ClipkitError(f"{checkpoint}: its optimizer state does not fit this run ({error})") from None


def load_model(checkpoint: Path) -> DualEncoder:
    """The model of a checkpoint, in evaluation mode."""
    model = rebuild(checkpoint)
    load_weights(model, checkpoint)
    return model.eval()


def _rename_into_place(temporary: Path, final: Path) -> None:
    """``temporary`` becomes ``final``; at every moment one of them, or the set-aside old one, is whole under a name
    that ``kept.survey`` knows. The same step is written again after a resume."""
    aside = final.with_name(f"{REPLACED}{final.name}")
    if final.exists():
        if damage(final) is None:
            shutil.rmtree(aside, ignore_errors=True)
            os.rename(final, aside)
        else:
            shutil.rmtree(final)
    os.rename(temporary, final)
    sync_folder(final.parent)
    shutil.rmtree(aside, ignore_errors=True)


def _frozen_names(model: DualEncoder) -> set[str]:
    """Weights that a run never changes: locked trunks with their buffers, and what else has no gradient. A momentum
    encoder has none either, but follows."""
    momentum = None if model.two_views is None else model.two_views.momentum
    follows = {id(p) for p in momentum.parameters()} if momentum is not None else set()
    constant = {name for name, p in model.named_parameters() if not p.requires_grad and id(p) not in follows}
    locked = tuple(f"{name}.trunk." for name, tower in model.towers.items() if tower.locked)
    return constant | {name for name in model.state_dict() if name.startswith(locked)}


def _link_frozen(run: Path, tensors: dict[str, Tensor], path: Path) -> None:
    """Locked weights stay the same: one file in the run, named by its content, linked into each checkpoint."""
    digest = hashlib.blake2b(digest_size=8)
    for name, tensor in sorted(tensors.items()):
        digest.update(name.encode())
        digest.update(tensor.flatten().view(torch.uint8).numpy().data)
    shared = run / FOLDER / f"frozen-{digest.hexdigest()}.safetensors"
    if not shared.is_file():
        temporary = shared.with_name(f".tmp-{shared.name}")
        save_file(tensors, temporary)
        _sync(temporary)
        os.replace(temporary, shared)
    try:
        os.link(shared, path)
    except OSError:  # a file system without links
        shutil.copyfile(shared, path)


def _save_optimizer(saved: dict[str, Any], folder: Path) -> None:
    tensors = {
        f"{index}.{name}": value.detach().cpu().contiguous()
        for index, fields in saved["state"].items()
        for name, value in fields.items()
    }
    save_file(tensors, folder / f"{OPTIMIZER}.safetensors")
    (folder / f"{OPTIMIZER}.json").write_text(json.dumps(saved["param_groups"]), encoding="utf-8")


def _sync(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _digested(folder: Path) -> list[Path]:
    """The files that nobody has a reason to change: all but the state and the config."""
    return sorted(p for p in folder.rglob("*") if p.is_file() and p.name not in (STATE, CONFIG))


def _digest(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _reason(error: Exception) -> str:
    return str(getattr(error, "strerror", None) or error)
