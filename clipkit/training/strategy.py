"""How the weights lie on the processes: whole on each (DDP), or a shard on each (FSDP2).

Accelerate's config says which. It engages FSDP itself on accelerators only; clipkit calls torch's ``fully_shard`` with
the config's choices instead, so that the code that runs on accelerators is the code that runs on CPUs, and is tested
there. Only the trained copy is sharded: evaluations and checkpoints read a whole one, made current by ``collect``.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Iterator
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from clipkit.config import RunConfig
from clipkit.encoders import DualEncoder, Embeddings
from clipkit.errors import ClipkitError
from clipkit.objectives.exchange import all_counts, world_size
from clipkit.pairs import PairBatch

if TYPE_CHECKING:
    from accelerate import Accelerator


def make_accelerator(config: RunConfig, project: str) -> Accelerator:
    """The processes and devices of a launch, and its tracker.

    Args:
        project: folder of the tracker's files.

    Raises:
        ClipkitError: a tracker that is unknown or not installed.
    """
    import warnings

    from accelerate import Accelerator, InitProcessGroupKwargs
    from accelerate.state import PartialState

    state = PartialState._shared_state  # as an earlier run has left it
    if state.get("num_processes", 1) > 1 and not torch.distributed.is_initialized():
        raise ClipkitError("an earlier run has sent its other processes home: launch every run of several anew")

    # Without cpu=True, Accelerate takes the processes of torchrun on a machine without accelerators for as many
    # runs of one process each. Autocast is entered by the encoder, piece by piece, so Accelerate gets no mixed
    # precision of its own. A first use may convert a large table while the other processes wait: a long timeout.
    accelerators = (torch.cuda, torch.backends.mps, torch.xpu)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*no supported trackers")  # it becomes an error below
            accelerator = Accelerator(
                cpu=not any(kind.is_available() for kind in accelerators),
                mixed_precision="no",
                log_with=config.log_with,
                project_dir=project,
                kwargs_handlers=[InitProcessGroupKwargs(timeout=timedelta(hours=6))],
            )
    except ValueError as error:  # an unknown tracker
        raise ClipkitError(f"--log-with {config.log_with}: {str(error).splitlines()[0]}") from None
    if config.log_with and not accelerator.log_with:
        raise ClipkitError(f"--log-with {config.log_with}: its package is not installed; pip install it first")
    return accelerator


def distribute(model: DualEncoder, accelerator: Accelerator) -> nn.Module:
    """``model`` as it is trained: itself on one process, wrapped for DDP, or a sharded copy where Accelerate's config
    says ``distributed_type: FSDP``.

    Raises:
        ClipkitError: the config asks for FSDP's first version, or for what clipkit does not do.
    """
    if world_size() == 1 or not _is_set("ACCELERATE_USE_FSDP"):
        return accelerator.prepare_model(model)
    if os.environ.get("FSDP_VERSION", "2") != "2":
        raise ClipkitError("the Accelerate config asks for FSDP version 1; set fsdp_version: 2 in its fsdp_config")
    if _is_set("FSDP_OFFLOAD_PARAMS"):
        raise ClipkitError("fsdp_offload_params: true is not supported; set it to false, or lower --micro-batch-size")
    return shard(model, reshard_after_forward=_is_set("FSDP_RESHARD_AFTER_FORWARD", "true"))


def shard(model: DualEncoder, reshard_after_forward: bool = True) -> DualEncoder:
    """A copy of ``model`` whose parameters are sharded over all processes (FSDP2), a unit for each repeated block.

    Args:
        model: equal on all processes.
        reshard_after_forward: free a block's weights after each use. Then every piece of a micro-batched step gathers
            them twice, forward and backward; without, they stay for the backward pass, which halves the gathers.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    sharded = copy.deepcopy(model)
    mesh = init_device_mesh(model.device.type, (world_size(),))
    for unit in list(units(sharded)):
        fully_shard(unit, mesh=mesh, reshard_after_forward=reshard_after_forward)
    fully_shard(sharded, mesh=mesh)
    return sharded


def units(module: nn.Module) -> Iterator[nn.Module]:
    """The repeated blocks of ``module``: members of its outermost lists of at least two modules of one class."""
    for child in module.children():
        members = list(child.children())
        is_list = isinstance(child, (nn.ModuleList, nn.Sequential)) and len(members) > 1
        if is_list and len({type(m) for m in members}) == 1 and all(len(list(m.parameters())) for m in members):
            yield from members
        else:
            yield from units(child)


def encode(
    model: nn.Module, batch: PairBatch, micro_batch_size: int | None, autocast: torch.dtype | None = None
) -> Embeddings:
    """This process's part of a batch through ``model``, in pieces of ``micro_batch_size``; see ``DualEncoder``."""
    from torch.distributed.fsdp import FSDPModule

    most = (0, 0)
    if micro_batch_size is not None and isinstance(model, FSDPModule):
        rows = [0 if x is None else len(x) for x in (batch.images, batch.texts)]
        images, texts = all_counts(rows, batch.image_ids.device)
        most = (max(images), max(texts))
    embeddings: Embeddings = model(batch.images, batch.texts, micro_batch_size, autocast, most)
    return embeddings


@torch.no_grad()
def collect(trained: DualEncoder, model: DualEncoder) -> None:
    """Make the whole ``model`` equal to the trained one; all processes take part, and nothing moves without shards."""
    if trained is model:
        return
    theirs = dict(trained.named_parameters()) | dict(trained.named_buffers())
    for name, mine in (dict(model.named_parameters()) | dict(model.named_buffers())).items():
        mine.copy_(whole(theirs[name]))


def whole(tensor: Tensor) -> Tensor:
    """All of a tensor that may be sharded; all processes take part."""
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def optimizer_state(optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """``optimizer.state_dict()`` with whole tensors on the CPU; all processes take part."""
    saved = optimizer.state_dict()
    saved["state"] = {
        index: {name: whole(value).detach().cpu() if isinstance(value, Tensor) else value for name, value in s.items()}
        for index, s in saved["state"].items()
    }
    return saved


def load_optimizer_state(optimizer: torch.optim.Optimizer, saved: dict[str, Any]) -> None:
    """The inverse of ``optimizer_state``, on as many processes as there are now."""
    from torch.distributed.tensor import DTensor, distribute_tensor

    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    for index, fields in saved["state"].items():
        parameter = parameters[index] if index < len(parameters) else None
        if isinstance(parameter, DTensor):
            for name, value in fields.items():
                if value.shape == parameter.shape:
                    value = value.to(parameter.device)
                    fields[name] = distribute_tensor(value, parameter.device_mesh, parameter.placements)
    optimizer.load_state_dict(saved)


def _is_set(name: str, default: str = "false") -> bool:
    return os.environ.get(name, default).lower() in ("true", "1", "yes")
