"""``clipkit verify-gradients``: a table of every parameter's gradient beside that of one process.

Launched like the main job and with its flags, on one process or many:
``torchrun --nproc_per_node 4 -m clipkit.cli verify-gradients --config run.yaml``.
"""

from __future__ import annotations

import sys

SMALL_BATCH = 64  # pairs that are compared at most: the reference encodes them at once, in float64


def main(arguments: list[str]) -> int:
    """The command; returns 0 if every gradient is right, else 1."""
    import torch

    from clipkit.errors import ClipkitError
    from clipkit.options import parse_training
    from clipkit.pairs import PipeSet, make_order
    from clipkit.pairs.stream import check_batch_size, step_items
    from clipkit.settings import check_settings
    from clipkit.training.data import training_reader
    from clipkit.training.precision import apply_arithmetic, choose_arithmetic
    from clipkit.training.step import settle_objective
    from clipkit.training.strategy import make_accelerator
    from clipkit.training.verify import advice, check_gradients

    recipe, config = parse_training(arguments, "clipkit verify-gradients")
    check_settings(config)
    accelerator = make_accelerator(config.run, "runs")
    world, rank = accelerator.num_processes, accelerator.process_index
    arithmetic = choose_arithmetic(config.optim.precision, accelerator.device)
    apply_arithmetic(arithmetic, accelerator.device)
    with accelerator.main_process_first():
        pairs = recipe.pairs(config)
        model = recipe.encoders(config).to(accelerator.device)
    if isinstance(pairs.train, PipeSet):
        raise ClipkitError(f"{pairs.train.name}: gradients are compared on samples that can be read twice; give shards")
    size = max(world, min(config.optim.batch_size, SMALL_BATCH, len(pairs.train)))
    check_batch_size(pairs.train, size, world)
    micro = config.optim.micro_batch_size
    if micro is not None:  # as many pieces as the real batch would have, down to one pair each
        local = -(-config.optim.batch_size // world)
        micro = max(1, -(-size // world) * micro // local)
    config = config.replace(batch_size=size, micro_batch_size=micro)
    reader = training_reader(model, pairs.train, config)
    order = make_order(pairs.train, config.run.seed)
    mine, everyone = (
        reader(step_items(order, 0, size, *part)).to(accelerator.device) for part in ((rank, world), (0, 1))
    )
    checks = check_gradients(
        model,
        mine,
        everyone,
        recipe.compare(config),
        settle_objective(recipe.objective(config), pairs.train, accelerator.device),
        accelerator,
        config.optim,
        arithmetic.autocast,
    )
    verdict = torch.tensor([int(any(not c.right for c in checks))], device=accelerator.device)
    if accelerator.is_main_process:
        pieces = "at once" if micro is None else f"{micro} at a time"
        print(
            f"{len(everyone.image_ids)} pictures, {len(everyone.text_ids)} captions on {world} process(es), {pieces}, "
            f"{arithmetic.precision}, exchange {config.optim.exchange}"
        )
        width = max(len(c.name) for c in checks)
        print(f"{'parameter':{width}}  {'error':>9}  {'one process':>11}  verdict")
        for c in checks:
            factor = "" if c.right else f"  (about {c.factor:.3g} times the reference)"
            print(f"{c.name:{width}}  {c.error:9.1e}  {c.alone:11.1e}  {'right' if c.right else 'WRONG'}{factor}")
        wrong = sum(not c.right for c in checks)
        print(f"{len(checks) - wrong} of {len(checks)} gradients are those of one process with the whole batch")
        if wrong:
            print(f"clipkit: {wrong} gradients are wrong: {advice(checks)}", file=sys.stderr)
    return int(accelerator.reduce(verdict, reduction="sum").item() > 0)
