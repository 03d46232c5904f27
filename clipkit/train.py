"""The main job: ``accelerate launch clipkit/train.py``, or ``clipkit.train(...)`` from Python.

Reads the config, builds the run, runs it.
"""

from __future__ import annotations

import sys
import types
from pathlib import Path

if __name__ == "__main__":
    # A launcher puts this script's own folder first on the path, where clipkit's modules would shadow libraries.
    _here = Path(__file__).resolve().parent
    sys.path[:] = [p for p in sys.path if Path(p or ".").resolve() != _here]
    if str(_here.parent) not in sys.path:
        sys.path.insert(0, str(_here.parent))

from typing import Any

from clipkit.config import Config
from clipkit.errors import ClipkitError, exit_status
from clipkit.recipes import Recipe, find_recipe
from clipkit.settings import check_settings


def train(recipe: str | Recipe = "starter", **settings: Any) -> Path:
    """Train, and return the run directory.

    Args:
        recipe: name of a recipe, or one of your own.
        settings: flags of the command line by their Python names, as ``train_data="shards/"``, ``lr=1e-3``; or
            ``config=Config(...)`` for all of them.

    Raises:
        ClipkitError: a setting or the data is wrong; the message says how to mend it.

    Example:
        >>> run = clipkit.train("clip", train_data="captions.csv", epochs=5, output="runs/mine")
        >>> model = clipkit.load(run)
    """
    chosen = find_recipe(recipe) if isinstance(recipe, str) else recipe
    config = settings.pop("config", chosen.defaults)
    if not isinstance(config, Config):
        raise ClipkitError(f"config is a {type(config).__name__}; give a clipkit.Config")
    return run(chosen, config.replace(**settings))


class _Callable(types.ModuleType):
    """``clipkit.train`` is this module as soon as anything imports it, and the function to everybody else."""

    def __call__(self, recipe: str | Recipe = "starter", **settings: Any) -> Path:
        return train(recipe, **settings)


sys.modules[__name__].__class__ = _Callable


def run(recipe: Recipe, config: Config) -> Path:
    """Build the run that ``config`` describes, train, and measure what came of it."""
    from dataclasses import replace

    from clipkit.pairs import NOT_PROMISED, PipeSet
    from clipkit.pairs.stream import check_batch_size
    from clipkit.results import show_results
    from clipkit.training.checkpoint import read_state
    from clipkit.training.console import Console
    from clipkit.training.data import check_samples, make_readers
    from clipkit.training.loop import Trainer
    from clipkit.training.mining import make_miner
    from clipkit.training.plan import show_plan
    from clipkit.training.precision import apply_arithmetic, choose_arithmetic
    from clipkit.training.quarantine import log_bad, report_left_out
    from clipkit.training.run import claim, start_run
    from clipkit.training.step import bounded_scale, settle_objective
    from clipkit.training.strategy import make_accelerator

    check_settings(config)
    accelerator = make_accelerator(config.run, config.run.output or f"runs/{config.recipe}")
    main = accelerator.is_main_process
    console = Console(main)
    claimed = claim(config)
    directory, checkpoint = claimed.directory, claimed.checkpoint
    for note in claimed.notes:
        console.say(note)
    saved = read_state(checkpoint).arithmetic if checkpoint else None
    arithmetic = choose_arithmetic(config.optim.precision, accelerator.device, saved)
    apply_arithmetic(arithmetic, accelerator.device)
    with accelerator.main_process_first():
        pairs = recipe.pairs(config)
        model = recipe.encoders(config).to(accelerator.device)
        check_batch_size(pairs.train, config.optim.batch_size, accelerator.num_processes)
        check_samples(model, pairs.train, config)
    if isinstance(pairs.train, PipeSet):
        console.say(f"{pairs.train.name}: {NOT_PROMISED}")
    if checkpoint is None and (message := bounded_scale(model, config.optim.scale_max)):
        console.say(message)
    compare = recipe.compare(config)
    objective = settle_objective(recipe.objective(config), pairs.train, accelerator.device)
    miner = make_miner(config, model, pairs.train)
    if config.run.dry_run:
        world = accelerator.num_processes
        show_plan(config, model, pairs.train, pairs.held_out, compare, objective, arithmetic, world, console)
        return directory
    if main:
        start_run(claimed, config)
        if checkpoint is None:
            log_bad(directory, pairs.left_out)
    report_left_out(pairs.left_out, pairs.train, directory, console)
    accelerator.wait_for_everyone()
    if config.run.log_with:
        accelerator.init_trackers("clipkit", config.to_dict())
    readers = make_readers(model, pairs.train, pairs.held_out, config, console.progress)
    if readers.cached and accelerator.device.type == "cpu":
        # Only heads are left to train, on matrices too small to share: one thread, whatever else the machine does.
        arithmetic = replace(arithmetic, threads=1)
        apply_arithmetic(arithmetic, accelerator.device)
    trainer = Trainer(
        config, directory, model, compare, objective, readers, accelerator, arithmetic, console, checkpoint,
        miner=miner,
    )  # fmt: skip
    baseline = trainer.measure_before()
    outcome = trainer.train()
    accelerator.end_training()
    if outcome.stopped:
        console.say(
            f"stopped at step {outcome.step} ({outcome.stopped}); the checkpoint is whole: continue with --resume auto"
        )
        return directory
    show_results(trainer, baseline, outcome)
    return directory


def main(arguments: list[str] | None = None) -> int:
    """The command line; returns the exit status."""
    from clipkit.options import parse_training

    def job() -> None:
        run(*parse_training(sys.argv[1:] if arguments is None else arguments))

    return exit_status(job)


if __name__ == "__main__":
    sys.exit(main())
