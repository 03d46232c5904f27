"""The run: steps, records, evaluations, checkpoints, and a clean end whatever happens."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list

from clipkit.cache import atomic_write
from clipkit.config import Config
from clipkit.encoders import DualEncoder
from clipkit.errors import ClipkitError
from clipkit.evaluation.split import SplitReport, evaluate_split
from clipkit.objectives import Compare, GlobalContrastive, falling_gamma
from clipkit.pairs import PairBatch, make_order
from clipkit.pairs.order import piece, sample_seed
from clipkit.pairs.stream import stream
from clipkit.training.checkpoint import (
    State,
    load_memory,
    load_optimizer,
    load_weights,
    read_state,
    save_checkpoint,
)
from clipkit.training.console import Console
from clipkit.training.data import Readers
from clipkit.training.kept import checkpoint_of, prune
from clipkit.training.mining import Miner
from clipkit.training.optim import learning_rate, make_optimizer, total_steps, warmup_steps
from clipkit.training.precision import Arithmetic
from clipkit.training.quarantine import Quarantine
from clipkit.training.receipts import Counts, Receipts, summary
from clipkit.training.records import read_figures, said, train_record
from clipkit.training.run import Metrics
from clipkit.training.step import Objective, StepResult, settle_batchnorm, train_step
from clipkit.training.stopping import StopRequest
from clipkit.training.strategy import collect, distribute, optimizer_state
from clipkit.training.watch import Watch

BASELINE = "baseline.json"
_COUNTED = 1 << 24  # cells of a table in which those that the guard clears are counted
DROPOUT = 4  # purpose of the seed of a step's dropout, beside those in clipkit.pairs.stream


@dataclass(frozen=True)
class Outcome:
    """How a run ended.

    Attributes:
        step: steps done.
        stopped: why it ended before its last step, or None.
        best: step of the checkpoint with the best validation figure, if there was one.
    """

    step: int
    stopped: str | None
    best: int | None


@dataclass(frozen=True)
class _Job:
    """What a run sets up once.

    Attributes:
        wrapped: the model as the processes train it (DDP, FSDP2 or itself).
        metrics: the run's records, on the main process.
        start, steps: steps done before, and in all.
        save_every, eval_every: in steps.
    """

    wrapped: torch.nn.Module
    optimizer: torch.optim.Optimizer
    batches: Iterator[PairBatch]
    quarantine: Quarantine
    metrics: Metrics | None
    start: int
    steps: int
    warmup: int
    save_every: int
    eval_every: int


class _Clock:
    """Steps and seconds since the last lap."""

    def __init__(self, step: int) -> None:
        self._step, self._since = step, time.perf_counter()

    def lap(self, step: int) -> tuple[int, float]:
        """Steps and seconds since then; the next lap starts now."""
        now = time.perf_counter()
        passed = step - self._step, now - self._since
        self._step, self._since = step, now
        return passed


@dataclass
class Trainer:
    """Everything that a run needs, made once; ``train`` does it.

    Args:
        config: the run's settings.
        run: the run directory, claimed.
        model: the dual encoder, on its device, unwrapped.
        compare, objective: the tables of a step, and the loss over them.
        miner: finds hard negatives, or None.
        readers: of the training data and of the held-out splits; ``val`` is evaluated during training.
        accelerator: processes and device.
        arithmetic: how the run computes.
        console: where people look.
        resume: checkpoint to go on from, or None.
        baseline_name: what the model is before its first step.
    """

    config: Config
    run: Path
    model: DualEncoder
    compare: Compare
    objective: Objective
    readers: Readers
    accelerator: Accelerator
    arithmetic: Arithmetic
    console: Console
    resume: Path | None = None
    baseline_name: str = "before training"
    miner: Miner | None = None
    _seconds: float = 0.0
    _best: tuple[float, int] | None = None
    _evaluated: int = 0
    _trained: DualEncoder = field(init=False)
    _counts: Counts = field(default_factory=dict)

    @property
    def final_split(self) -> str | None:
        """The held-out split that the run ends with: ``test`` if there is one, else ``val``."""
        return next((name for name in ("test", "val") if name in self.readers.held_out), None)

    def measure(self) -> SplitReport | None:
        """The final split, measured with the model as it is; None without held-out data."""
        if self.final_split is None:
            return None
        return evaluate_split(self.model, self.readers.held_out[self.final_split], autocast=self.arithmetic.autocast)

    def measure_before(self) -> dict[str, Any]:
        """The figures before the first step, kept with the run: what training has to beat.

        Measured before the long part, so that a mistake in the held-out data shows at once and not at the end.
        """
        path = self.run / BASELINE
        if self.resume is not None:
            return read_figures(path)
        report = self.measure()
        figures = report.to_dict() if report else {}
        if self.accelerator.is_main_process:
            with atomic_write(path) as file:
                file.write(json.dumps(figures).encode())
        return figures

    def train(self) -> Outcome:
        """Run to the last step, or to a request to stop.

        Raises:
            ClipkitError: too many bad samples, a loss that is not finite, a disk that is full, or a checkpoint that
                belongs to other data or another model.
        """
        job = self._set_up()
        step, steps, saved = job.start, job.steps, job.start
        if self._evaluation_due(job, step) and step:  # stopped between a step and its evaluation
            self._validate(step, job.metrics)
            self._save(step, job.optimizer)
        watch = Watch(job.warmup)
        with StopRequest() as stop, self.console.bar("training", steps, step) as bar:
            clock = _Clock(step)
            for batch in job.batches:
                batch, result = self._step(job, batch.to(self.model.device), step)
                step += 1
                self._account(job, batch, step)
                if self._logs(job, step):
                    self._record(job.metrics, self._train_record(job, result, step, clock))
                bar.advance(f"loss {result.loss:.3f}")
                stopping = stop.agreed(self.model.device)
                if step % job.eval_every == 0 or step == steps:
                    self._watch(watch, result, batch, step, job.metrics)
                if self._evaluation_due(job, step) and not stopping:
                    self._validate(step, job.metrics)
                    clock = _Clock(step)
                if step % job.save_every == 0 or step == steps or stopping or (self._best or (0, -1))[1] == step:
                    self._save(step, job.optimizer)
                    saved = step
                if stopping:
                    return Outcome(step, stop.reason, self._best[1] if self._best else None)
        if saved != step:
            self._save(step, job.optimizer)
        return Outcome(step, None, self._best[1] if self._best else None)

    def _set_up(self) -> _Job:
        """The model as it was left or is to begin, spread over the processes, and what its steps need."""
        config, shards, world = self.config, self.readers.train.shards, self.accelerator.num_processes
        size, steps = config.optim.batch_size, total_steps(config.optim, len(shards))
        local = len(range(size)[piece(size, 0, world)])
        self.model, message = settle_batchnorm(self.model, config.optim.micro_batch_size, local)
        if message:
            self.console.say(message)
        start = self._restore()
        wrapped = distribute(self.model, self.accelerator)
        self._trained = self.accelerator.unwrap_model(wrapped)
        if self._trained is not self.model:
            self.console.say(f"weights, gradients and optimizer are sharded over {world} processes (FSDP2)")
        optimizer = make_optimizer(self._trained, config.optim)
        if self.resume is not None:
            load_optimizer(optimizer, self.resume)
        order = make_order(shards, config.run.seed)
        self._receipts = Receipts(self.run, shards, order, self.accelerator, start, self._counts)
        metrics = Metrics(self.run, start) if self.accelerator.is_main_process else None
        if metrics and start == 0:
            start_record = {"kind": "start", "step": 0, "steps": steps, "processes": world}
            self._record(metrics, {**start_record, **self.arithmetic.to_dict()})
        every_epoch = max(1, math.ceil(len(shards) / size))
        batches = stream(
            self.readers.train,
            order,
            size,
            start=start,
            stop=steps,
            rank=self.accelerator.process_index,
            world=world,
            workers=0 if self._cached() else config.data.workers,
        )
        return _Job(
            wrapped=wrapped,
            optimizer=optimizer,
            batches=batches,
            quarantine=Quarantine(self.run, shards, self.accelerator, self.console, start),
            metrics=metrics,
            start=start,
            steps=steps,
            warmup=warmup_steps(config.optim, steps),
            save_every=config.run.save_every or every_epoch,
            eval_every=config.run.eval_every or every_epoch,
        )

    def _step(self, job: _Job, batch: PairBatch, step: int) -> tuple[PairBatch, StepResult]:
        """The step after ``step``: the batch with what was mined for it, and what came out."""
        config = self.config
        for group in job.optimizer.param_groups:
            group["lr"] = self._rate(job, step)
        # Dropout is a function of (seed, step, process): there is no generator to save and restore.
        torch.manual_seed(sample_seed(config.run.seed, step, self.accelerator.process_index, DROPOUT))
        if not job.wrapped.training:  # as evaluation leaves it
            job.wrapped.train()
        if self.miner is not None:
            batch = self.miner.add_to(batch, self.readers.train)
        if isinstance(self.objective, GlobalContrastive) and config.optim.gamma_falling:
            epochs = config.optim.batch_size / len(self.readers.train.shards)  # of a step
            self.objective.gamma = falling_gamma(config.optim.gamma, step * epochs, job.steps * epochs / 2)
        counted = self.readers.train.guard and config.optim.batch_size**2 <= _COUNTED
        result = train_step(
            job.wrapped,
            batch,
            self.compare,
            self.objective,
            job.optimizer,
            self.accelerator,
            config.optim,
            self.arithmetic.autocast,
            (step + 1) / job.steps,
            count_cleared=counted and self._logs(job, step + 1),
        )
        if self.miner is not None:
            self.miner.learn_from(result.embeddings, batch)
        return batch, result

    def _rate(self, job: _Job, step: int) -> float:
        return learning_rate(step, job.steps, job.warmup, self.config.optim.lr)

    def _account(self, job: _Job, batch: PairBatch, step: int) -> None:
        """Write down what ``step`` read, and the receipt of an epoch that it ended."""
        self._receipts.quarantine(job.quarantine.take(batch, step))
        self._receipts.count(batch)
        size = self.config.optim.batch_size
        for receipt in self._receipts.close((step - 1) * size, step * size, step):
            if line := summary(receipt):
                self.console.say(line, detail=True)

    def _train_record(self, job: _Job, result: StepResult, step: int, clock: _Clock) -> dict[str, Any]:
        size = self.config.optim.batch_size
        steps, seconds = clock.lap(step)
        self._seconds += seconds
        timing = {"samples_per_second": round(steps * size / seconds, 1), "seconds": round(self._seconds, 3)}
        epoch = step * size / len(self.readers.train.shards)
        return train_record(result, step, epoch, self._rate(job, step - 1)) | timing

    def _restore(self) -> int:
        if self.resume is None:
            return 0
        state = read_state(self.resume)
        if state.fingerprint != self.readers.train.shards.fingerprint:
            raise ClipkitError(
                f"{self.resume} was trained on other data than {self.readers.train.shards.name}; give the same "
                f"--train-data, or start a new run with --output"
            )
        load_weights(self.model, self.resume)
        if len(self._memory):
            load_memory(self._memory, self.resume)
        self._counts = state.receipts
        self._best, self._seconds, self._evaluated = state.best, state.seconds, state.evaluated
        self.console.say(f"continuing from {self.resume} (step {state.step})")
        if self._best and checkpoint_of(self.run, self._best[1]) is None:
            self.console.say(f"the best checkpoint so far, step {self._best[1]}, is not there: the best is sought anew")
            self._best = None
        return state.step

    @property
    def _memory(self) -> torch.nn.ModuleDict:
        """What is remembered between steps: by the objective, if it is one that does, and for mining."""
        parts = {"objective": self.objective, "miner": self.miner}
        return torch.nn.ModuleDict({name: part for name, part in parts.items() if isinstance(part, torch.nn.Module)})

    def _cached(self) -> bool:
        return self.model.image is not None and self.model.image.locked and self.config.data.augment != "crop"

    def _evaluation_due(self, job: _Job, step: int) -> bool:
        due = step % job.eval_every == 0 or step == job.steps
        return due and "val" in self.readers.held_out and self._evaluated < step

    def _validate(self, step: int, metrics: Metrics | None) -> None:
        collect(self._trained, self.model)
        report = evaluate_split(
            self.model, self.readers.held_out["val"], bootstrap=0, labels=False, autocast=self.arithmetic.autocast
        )
        box: list[Any] = [report.metrics(), report.goal]
        if self.accelerator.num_processes > 1:
            broadcast_object_list(box)
        figures, goal = box
        self._record(metrics, {"kind": "eval", "step": step, **figures})
        if goal is not None:
            self.console.say(f"step {step}: validation {said(figures)}", detail=True)
        self._evaluated = step
        if self.config.run.keep_best and goal is not None and (self._best is None or goal > self._best[0]):
            self._best = (goal, step)

    def _watch(self, watch: Watch, result: StepResult, batch: PairBatch, step: int, metrics: Metrics | None) -> None:
        if metrics is None:  # one process looks at its own part
            return
        record, sentences = watch.look(result.embeddings, batch, step)
        if record:
            self._record(metrics, record)
        for sentence in sentences:
            self.console.say(sentence)

    def _save(self, step: int, optimizer: torch.optim.Optimizer) -> None:
        collect(self._trained, self.model)
        moments = optimizer_state(optimizer)
        counts = self._receipts.counts()
        if self.accelerator.is_main_process:
            fingerprint = self.readers.train.shards.fingerprint
            state = State(
                step,
                fingerprint,
                self._best,
                self.arithmetic.to_dict(),
                self._seconds,
                self._evaluated,
                time.time(),
                counts,
            )
            save_checkpoint(self.run, self.model, moments, state, self.config, self._memory.state_dict())
            prune(self.run, self.config.run.keep_last, self._best[1] if self._best else None)
        self.accelerator.wait_for_everyone()

    def _logs(self, job: _Job, step: int) -> bool:
        return step % self.config.run.log_every == 0 or step in (job.start + 1, job.steps)

    def _record(self, metrics: Metrics | None, record: dict[str, Any]) -> None:
        if metrics is not None:
            metrics.write(record)
        if self.config.run.log_with:
            numbers = {k: v for k, v in record.items() if isinstance(v, (int, float)) and k != "step"}
            self.accelerator.log(numbers, step=record["step"])
