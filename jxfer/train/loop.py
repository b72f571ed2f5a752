"""The loop. All side effects of training live here; the steps that it calls are pure."""

import dataclasses
import logging
import math
import pathlib
from typing import Any

import jax
from rich.console import Console

from jxfer.data import loader
from jxfer.data.sources import Splits
from jxfer.train import parallel, run_folder, summary
from jxfer.train.checkpoint import Checkpoints
from jxfer.train.config import TrainConfig
from jxfer.train.evaluate import Evaluator
from jxfer.train.log import TrainingLog, rate_tables
from jxfer.train.metrics import Evaluation
from jxfer.train.state import Setup, TrainState, set_up
from jxfer.train.step import make_train_step
from jxfer.train.writers import Clock, ProgressBar, Writers
from jxfer.trees import Tree

_log = logging.getLogger("jxfer")


def train(config: TrainConfig, run: str | pathlib.Path, *, quiet: bool = False) -> dict[str, Any]:
    """Trains, or resumes, or says that the run has finished.

    Args:
      config: what to do; the same config gives the same bits on the same machine.
      run: the run folder; the same call on it again resumes from its last checkpoint.
      quiet: print neither tables nor a progress bar.

    Returns:
      What `summary.json` holds.

    Raises:
      UserError: what a person can cause, in one line.
    """
    folder = pathlib.Path(run)
    with run_folder.open_run(folder, config):
        finished = run_folder.read_summary(folder)
        if finished is not None:
            _log.warning("%s has finished; nothing is left to do", folder)
            return finished
        return _train(config, folder, quiet)


def evaluation_steps(config: TrainConfig, examples: int) -> list[int]:
    """Steps after which the run evaluates, in order; the last one ends it."""
    steps_per_epoch = examples / config.batch_size
    total = max(1, math.ceil(config.epochs * steps_per_epoch))
    evaluations = math.ceil(config.epochs / config.eval_every)
    ends = (math.ceil(i * config.eval_every * steps_per_epoch) for i in range(1, evaluations))
    return sorted({end for end in ends if end < total} | {total})


@dataclasses.dataclass
class _Best:
    """The best evaluation so far; the first of equals."""

    step: int | None = None
    correct: int = -1

    def update(self, step: int, result: Evaluation) -> None:
        if result.correct > self.correct:
            self.step, self.correct = step, result.correct


def _train(config: TrainConfig, folder: pathlib.Path, quiet: bool) -> dict[str, Any]:
    whole = Clock()
    parallel.check_batch(config.batch_size)
    splits = loader.load_splits(config.data)
    evaluate_at = evaluation_steps(config, len(splits.train))
    steps_per_epoch = len(splits.train) / config.batch_size
    setup = set_up(config, splits.train.class_names, evaluate_at[-1], steps_per_epoch)
    initial = setup.initial_state()
    if not quiet:
        summary.print_start(config, splits, setup, initial, Console(stderr=True))
    pretrained = setup.pretrained
    evaluator = Evaluator(pretrained.model, pretrained.preprocessing, config.batch_size)
    seconds = dict.fromkeys(("compile", "data_wait", "step", "eval"), 0.0)
    with Checkpoints(folder / "checkpoints") as checkpoints:
        final, best, images = _run_steps(
            config,
            folder,
            splits,
            setup,
            initial,
            evaluate_at,
            evaluator,
            checkpoints,
            seconds,
            quiet,
        )
        assert best.step is not None  # the last step evaluates
        variables = checkpoints.restore_variables(best.step, initial)
    test = None
    if splits.test is not None:
        clock = Clock()
        test = evaluator.evaluate(parallel.replicate(variables), splits.test)
        seconds["eval"] += clock.lap()
    result = summary.build(config, splits, setup, initial, final, best.step, best.correct, test)
    summary.save_model(folder / "model", config, splits, setup, variables, result)
    timing = {"seconds": seconds | {"total": whole.lap()}}
    busy = seconds["compile"] + seconds["data_wait"] + seconds["step"]
    run_folder.write_json(
        folder / "timing.json", timing | {"examples_per_second": images / busy if busy else None}
    )
    run_folder.write_json(folder / "summary.json", result)
    return result


def _run_steps(
    config: TrainConfig,
    folder: pathlib.Path,
    splits: Splits,
    setup: Setup,
    initial: TrainState,
    evaluate_at: list[int],
    evaluator: Evaluator,
    checkpoints: Checkpoints,
    seconds: dict[str, float],
    quiet: bool,
) -> tuple[TrainState, _Best, int]:
    """Takes the steps that are left; returns the last state, on the host, and the best step."""
    total = evaluate_at[-1]
    steps_per_epoch = len(splits.train) / config.batch_size
    restored = checkpoints.restore_latest(initial)
    host_state, progress = restored or (initial, {"best": {}, "open_sums": []})
    best = _Best(**progress["best"])
    start = int(host_state.step)
    if restored:
        _log.warning("%s resumes from step %d of %d", folder, start, total)
    if start == total:
        return host_state, best, 0
    state = parallel.replicate(host_state)
    train_step = parallel.compile_step(make_train_step(setup, config.loss), donate_state=True)
    batches = parallel.shard(
        loader.train_batches(
            splits.train,
            setup.pretrained.preprocessing,
            config.augment,
            batch_size=config.batch_size,
            seed=config.seed,
            start_step=start,
        )
    )
    with Writers(folder, start) as writers, ProgressBar(total, start, quiet) as bar:
        rates = rate_tables(setup.rates, total)
        log = TrainingLog(writers, bar, rates, steps_per_epoch, progress["open_sums"])
        clock = Clock()
        for step in range(start + 1, total + 1):
            batch = next(batches)
            seconds["data_wait"] += clock.lap()
            state, sums = train_step(state, batch)
            if step == start + 1:
                jax.block_until_ready(sums)
                seconds["compile"] += clock.lap()
                log.clock.lap()
            log.add(step, sums)
            evaluating = step in evaluate_at
            if evaluating or step % config.log_every == 0:
                log.end_line(step)
            saving = evaluating or step % config.checkpoint_every == 0
            if saving:
                log.flush()
            seconds["step"] += clock.lap()
            if evaluating:
                result = evaluator.evaluate(_variables(state), splits.val)
                best.update(step, result)
                figures = {f"val_{k}": v for k, v in dataclasses.asdict(result).items()}
                writers.write(step, {"epoch": step / steps_per_epoch} | figures)
                seconds["eval"] += clock.lap()
            if saving:
                host_state = parallel.fetch(state)
                open_sums = log.open_sums()
                checkpoints.save(
                    host_state, {"best": dataclasses.asdict(best), "open_sums": open_sums}
                )
                clock.lap()
                log.clock.lap()
    return host_state, best, (total - start) * config.batch_size


def _variables(state: TrainState) -> Tree:
    return {"params": state.params, "batch_stats": state.batch_stats}
