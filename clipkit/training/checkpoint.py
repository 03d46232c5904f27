"""Checkpoints: whole or absent, and nothing in them is executed when they are read.

A checkpoint is a folder ``checkpoints/step-N`` with ``model.safetensors``, ``frozen.safetensors`` (locked towers, a
link to one file of the run), ``optimizer.safetensors`` and ``.json``, ``state.json``, ``config.yaml`` and the model's
description. It is written under a temporary name, flushed, and renamed.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from clipkit.cache import sync_folder
from clipkit.config import Config, save_config
from clipkit.encoders import DualEncoder, rebuild, save_description
from clipkit.errors import ClipkitError

FOLDER = "checkpoints"
STATE = "state.json"
WEIGHTS, FROZEN, OPTIMIZER = "model.safetensors", "frozen.safetensors", "optimizer"


@dataclass(frozen=True)
class State:
    """Where a run stands.

    Attributes:
        step: steps done, which is also the stream's whole state.
        fingerprint: of the training shards; another one means other data.
        best: best validation recall@1 so far, and its step.
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
    run: Path, model: DualEncoder, optimizer: torch.optim.Optimizer, state: State, config: Config
) -> Path:
    """Write ``run/checkpoints/step-N``. Called by one process.

    Raises:
        ClipkitError: the disk is full or cannot be written; earlier checkpoints stay as they are.
    """
    final = run / FOLDER / f"step-{state.step}"
    temporary = run / FOLDER / f".tmp-step-{state.step}-{os.getpid()}"
    try:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        frozen_names = {name for name, p in model.named_parameters() if not p.requires_grad} | _locked_buffers(model)
        tensors = {k: v.detach().cpu().contiguous() for k, v in model.state_dict().items()}
        save_file({k: v for k, v in tensors.items() if k not in frozen_names}, temporary / WEIGHTS)
        if frozen_names:
            _link_frozen(run, {k: v for k, v in tensors.items() if k in frozen_names}, temporary / FROZEN)
        save_description(model, temporary)
        _save_optimizer(optimizer, temporary)
        save_config(config, temporary / "config.yaml")
        (temporary / STATE).write_text(json.dumps(state.__dict__, indent=2), encoding="utf-8")
        for path in temporary.rglob("*"):
            if path.is_file():
                _sync(path)
        sync_folder(temporary)
        if final.exists():  # the same step written again after a resume
            shutil.rmtree(final)
        os.rename(temporary, final)
        sync_folder(final.parent)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(temporary, ignore_errors=True)
        reason = getattr(error, "strerror", None) or error
        raise ClipkitError(
            f"{final}: the checkpoint could not be written ({reason}); earlier ones are whole: free space and continue "
            f"with --resume auto"
        ) from None
    return final


def checkpoints(run: Path) -> list[Path]:
    """The run's whole checkpoints in the order in which they were written.

    Raises:
        ClipkitError: one of them is damaged; passing over it could cost the steps behind an older one.
    """
    found = []
    for path in (run / FOLDER).glob("step-*"):
        if re.fullmatch(r"step-\d+", path.name) and (path / STATE).is_file():
            state = read_state(path)
            found.append((state.written, state.step, path))
    return [path for _, _, path in sorted(found)]


def read_state(checkpoint: Path) -> State:
    """The checkpoint's ``State``."""
    try:
        values = json.loads((checkpoint / STATE).read_text(encoding="utf-8"))
        best = values.pop("best")
        return State(best=tuple(best) if best else None, **values)
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise ClipkitError(f"{checkpoint}: not a whole clipkit checkpoint ({error})") from None


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
        optimizer.load_state_dict({"state": state, "param_groups": groups})
    except ValueError as error:
        raise ClipkitError(f"{checkpoint}: its optimizer state does not fit this run ({error})") from None


def load_model(checkpoint: Path) -> DualEncoder:
    """The model of a checkpoint, in evaluation mode."""
    model = rebuild(checkpoint)
    load_weights(model, checkpoint)
    return model.eval()


def find_checkpoint(path: Path) -> Path:
    """The checkpoint that ``path`` means: itself, or a run's best or newest one.

    Raises:
        ClipkitError: there is none.
    """
    if (path / STATE).is_file():
        return path
    kept = checkpoints(path)
    if not kept:
        raise ClipkitError(f"{path}: no checkpoint in it; give a run directory or a checkpoint folder")
    best = read_state(kept[-1]).best
    wanted = path / FOLDER / f"step-{best[1]}" if best else kept[-1]
    return wanted if wanted in kept else kept[-1]


def prune(run: Path, keep_last: int, best_step: int | None) -> None:
    """Delete checkpoints but the last ``keep_last`` and the best one, and what a killed writer left."""
    kept = checkpoints(run)
    for path in kept[: -max(1, keep_last)]:
        if path.name != f"step-{best_step}":
            shutil.rmtree(path)
    for path in (run / FOLDER).glob(".tmp-step-*"):
        shutil.rmtree(path, ignore_errors=True)


def _locked_buffers(model: DualEncoder) -> set[str]:
    towers = {"image": model.image, "text": model.text}
    state = model.state_dict()
    return {k for name, tower in towers.items() if tower.locked for k in state if k.startswith(f"{name}.trunk.")}


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


def _save_optimizer(optimizer: torch.optim.Optimizer, folder: Path) -> None:
    saved = optimizer.state_dict()
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
