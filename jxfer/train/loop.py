"""The loop. All side effects of training live here; the steps that it calls are pure."""

import dataclasses
import logging
import pathlib
import sys
from typing import Any

import jax

from jxfer.data import screen
from jxfer.data.sources import Splits
from jxfer.data.targets import Target
from jxfer.errors import UserError
from jxfer.train import parallel, prefix, run_folder, summary
from jxfer.train.checkpoint import Checkpoints
from jxfer.train.config import TrainConfig
from jxfer.train.evaluate import source_relationship
from jxfer.train.feed import Images, fingerprint, load_target
from jxfer.train.judge import Judge, Verdict
from jxfer.train.log import TrainingLog
from jxfer.train.phases import Course
from jxfer.train.plans import set_up
from jxfer.train.prefix import PrefixCache
from jxfer.train.selection import Best, evaluation_steps, out_of_patience
from jxfer.train.state import TrainState
from jxfer.train.step import compiled_train_step
from jxfer.train.writers import Clock, ProgressBar, Writers
from jxfer.zoo import store
from jxfer.zoo.pretrained import Pretrained

_log = logging.getLogger("jxfer")


def run_config(
    config: TrainConfig, run: str | pathlib.Path, *, quiet: bool = False
) -> dict[str, Any]:
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


@dataclasses.dataclass(frozen=True)
class _Run:
    """What stays the same from the first step to the summary."""

    config: TrainConfig
    folder: pathlib.Path
    splits: Splits
    pretrained: Pretrained
    course: Course
    choices: list[prefix.Choice]
    """What each phase caches."""
    evaluate_at: list[int]
    target: Target | None
    """Of a run that adapts."""
    judge: Judge
    seconds: dict[str, float]
    commit: str | None
    quiet: bool

    def is_over(self, best: Best, step: int) -> bool:
        """Whether that was the last step, planned or for want of patience."""
        before = self.course.start(len(self.course.plans) - 1)
        return step == self.course.steps or out_of_patience(
            self.config.patience, self.evaluate_at, best, step, before
        )


def _train(config: TrainConfig, folder: pathlib.Path, quiet: bool) -> dict[str, Any]:
    whole = Clock()
    commit = summary.commit()  # of the code that is about to run, whatever is committed meanwhile
    parallel.check_batch(config.batch_size, config.accumulate)
    splits = screen.load_splits(config.data)
    evaluate_at = evaluation_steps(config, len(splits.train))
    pretrained, plans = set_up(
        config,
        splits.train.class_names,
        total_steps=evaluate_at[-1],
        steps_per_epoch=len(splits.train) / config.batch_size,
        train=splits.train,
    )
    target = load_target(config, splits.train.class_names)
    unlabelled = target.train if target else None
    run = _Run(
        config=config,
        folder=folder,
        splits=splits,
        pretrained=pretrained,
        course=Course(plans, plans[0].initial_state(pretrained.variables, config.seed)),
        choices=prefix.choose_all(plans, config, splits, unlabelled),
        evaluate_at=evaluate_at,
        target=target,
        judge=Judge(config, splits, pretrained, target),
        seconds=dict.fromkeys(("compile", "data_wait", "step", "eval", "prefix"), 0.0),
        commit=commit,
        quiet=quiet,
    )
    run_folder.write_config(folder, config)
    if not quiet:
        summary.print_start(config, splits, pretrained, run.course, target)
        for choice in run.choices:
            print(choice.describe(), file=sys.stderr)
    with Checkpoints(folder / "checkpoints") as checkpoints:
        progress, steps, taken = _take_steps(run, checkpoints)
        clock = Clock()
        verdict = run.judge.conclude(
            lambda step: checkpoints.restore_variables(step, run.course.like)
        )
        run.seconds["eval"] += clock.lap()
    return _finish(run, progress, steps, taken, verdict, whole)


def _take_steps(run: _Run, checkpoints: Checkpoints) -> tuple[dict[str, Any], int, int]:
    """Takes the steps that are left.

    Returns:
      (what the last checkpoint says of the run's progress; the steps of the whole run; those that
      this process took).
    """
    config, course, seconds = run.config, run.course, run.seconds
    restored = checkpoints.restore_latest(course.like)
    empty: dict[str, Any] = {"open_sums": [], "frozen_unchanged": []}
    host_state, progress = restored or (course.initial, empty)
    judge = run.judge
    judge.restore(progress)
    start = int(host_state.step)
    data = fingerprint(run.splits, run.target)
    if progress.setdefault("data", data) != data:
        raise UserError(
            f"{run.folder}: the data changed since this run began ({progress['data']} then, {data} "
            "now); restore it, or take a new folder as --run"
        )
    if restored:
        _log.warning("%s resumes from step %d of %d", run.folder, start, course.steps)
    if run.is_over(judge.best, start):
        return progress, start, 0
    relationship = source_relationship(run.pretrained, run.splits.train, config.batch_size)
    with Writers(run.folder, start) as writers, ProgressBar(course.steps, start, run.quiet) as bar:
        for index in range(course.index(start + 1), len(course.plans)):
            plan, before, end = course.plans[index], course.start(index), course.ends[index]
            first = int(host_state.step) + 1
            if index and first == before + 1:
                host_state = course.enter(host_state, index)
            feed = _feed(run, index, host_state, bar)
            stream = parallel.shard(feed.train_batches(first - 1))
            state = parallel.replicate(host_state)
            start_of = plan.reference(run.pretrained.variables, config.seed)
            reference = parallel.replicate(start_of | relationship)
            train_step = compiled_train_step(plan, feed.after)
            log = TrainingLog(writers, bar, plan, before, progress["open_sums"])
            clock = Clock()
            for step in range(first, end + 1):
                batch = next(stream)
                seconds["data_wait"] += clock.lap()
                state, sums = train_step(state, batch, reference)
                if step == first:
                    jax.block_until_ready(sums)
                    seconds["compile"] += clock.lap()
                    log.clock.lap()
                log.add(step, sums)
                evaluating = step in run.evaluate_at
                saving = step == end or step % config.checkpoint_every == 0
                if evaluating or step == end or step % config.log_every == 0:
                    log.end_line(step)
                if evaluating or saving:
                    log.flush()
                seconds["step"] += clock.lap()
                if evaluating:
                    figures, keep = judge.evaluate(step, feed, state.variables)
                    saving |= keep
                    place = {"epoch": step / plan.steps_per_epoch, "phase": plan.phase.name}
                    writers.write(step, place | figures)
                    seconds["eval"] += clock.lap()
                over = evaluating and run.is_over(judge.best, step)
                if saving or over:
                    host_state = parallel.fetch(state)
                    progress |= judge.progress() | {"open_sums": log.open_sums()}
                    if step == end or over:
                        unchanged = course.frozen_unchanged(host_state)
                        progress["frozen_unchanged"] = [*progress["frozen_unchanged"], unchanged]
                    checkpoints.save(host_state, progress)
                if evaluating or saving:
                    clock.lap()
                    log.clock.lap()
                if over:
                    break
            del feed, stream  # before those of the next phase take their place
    return progress, step, step - start


def _feed(run: _Run, index: int, state: TrainState, bar: ProgressBar) -> Images | PrefixCache:
    """What a phase trains and validates on; `state` is on the host."""
    choice = run.choices[index]
    acts = choice.plan.adaptation.acts
    target = run.target.train if run.target and acts else None
    if choice.output is None:
        return Images(run.config, run.splits, choice.plan.preprocessing, target)
    clock = Clock()
    variables = {"params": state.params, "batch_stats": state.batch_stats}
    cache = PrefixCache(choice, run.config, run.splits, variables, bar.describe, target)
    run.seconds["prefix"] += clock.lap()
    return cache


def _finish(
    run: _Run, progress: dict[str, Any], steps: int, taken: int, verdict: Verdict, whole: Clock
) -> dict[str, Any]:
    """Writes what the run leaves behind; the summary comes last."""
    result = summary.build(
        run.splits,
        run.pretrained,
        run.config.strategy.name,
        run.course,
        best=progress["best"],
        steps=steps,
        test=verdict.test,
        adapt=verdict.adapt,
        frozen_unchanged=progress["frozen_unchanged"],
        commit=run.commit,
    )
    card = summary.model_card(run.folder.name, run.config, run.pretrained, result)
    store.save(run.folder / "model", card, verdict.variables, overwrite=True)
    busy = sum(run.seconds[part] for part in ("compile", "data_wait", "step", "prefix"))
    timing = {
        "seconds": run.seconds | {"total": whole.lap()},
        "steps": taken,  # by this process, as the seconds: fewer than the run's if it resumed
        "examples_per_second": taken * run.config.batch_size / busy if busy else None,
    }
    run_folder.write_json(run.folder / "timing.json", timing)
    run_folder.write_json(run.folder / "summary.json", result)
    return result
