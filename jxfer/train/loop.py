"""The loop. All side effects of training live here; the steps that it calls are pure."""

import contextlib
import logging
import pathlib
import sys
from collections.abc import Callable
from typing import Any

import jax

from jxfer import disk, sealed
from jxfer.errors import UserError
from jxfer.train import config as configs
from jxfer.train import fit, hosts, parallel, run_folder, summary
from jxfer.train.checkpoint import Checkpoints
from jxfer.train.config import TrainConfig
from jxfer.train.evaluate import source_relationship
from jxfer.train.feed import Images
from jxfer.train.judge import Verdict
from jxfer.train.log import TrainingLog
from jxfer.train.preemption import Preempted, Preemption
from jxfer.train.prefix import PrefixCache
from jxfer.train.prepare import Run, prepare
from jxfer.train.state import TrainState
from jxfer.train.step import compiled_train_step
from jxfer.train.writers import Clock, ProgressBar, Writers, check_metrics, has_begun
from jxfer.zoo import store

_log = logging.getLogger("jxfer")


def run_config(
    config: TrainConfig, run: str | pathlib.Path, *, quiet: bool = False, profile: bool = False
) -> dict[str, Any]:
    """Trains, or resumes, or says that the run has finished.

    Args:
      config: what to do; the same config gives the same bits on the same machine.
      run: the run folder; the same call on it again resumes from its last checkpoint.
      quiet: print neither tables nor a progress bar.
      profile: trace a few steps into the run folder; see `train.profile`.

    Returns:
      What `summary.json` holds.

    Raises:
      UserError: what a person can cause, in one line.
      Preempted: SIGTERM asked it to make way; with exit code 75 unless it is caught.
    """
    folder = pathlib.Path(run)
    hosts.check_same({"config": configs.to_dict(config), "--run": str(folder)})
    with Preemption() as preemption, contextlib.ExitStack() as held:
        checks: list[Callable[[], None]] = []

        def open_run() -> dict[str, Any] | None:
            checks.append(held.enter_context(run_folder.open_run(folder, config)))
            return run_folder.read_summary(folder)

        finished = hosts.from_first(open_run)
        if finished is not None:
            _log.warning("%s has finished; nothing is left to do", folder)
            return finished

        def check() -> None:
            for first in checks:  # of the host that has the folder
                first()

        return _train(config, folder, quiet, profile, preemption, check)


def _train(
    config: TrainConfig,
    folder: pathlib.Path,
    quiet: bool,
    profile: bool,
    preemption: Preemption,
    check: Callable[[], None],
) -> dict[str, Any]:
    whole = Clock()
    quiet = quiet or not hosts.is_first()
    run = hosts.together(lambda: prepare(config, folder, quiet, profile))
    if jax.process_count() > 1:
        hosts.check_same({"data": run.fingerprint(), "weights": run.weights()})
    if hosts.is_first():
        run_folder.write_config(folder, config)
    if not quiet:
        summary.print_start(config, run.splits, run.pretrained, run.course, run.target)
        for line in filter(None, [*(choice.describe() for choice in run.choices), run.images]):
            print(line, file=sys.stderr)
    with Checkpoints(folder / "checkpoints", check) as checkpoints:
        progress, steps, taken = _take_steps(run, checkpoints, preemption, check)
        clock = Clock()
        verdict = run.judge.conclude(
            lambda step: checkpoints.restore_variables(step, run.course.like)
        )
        run.seconds["eval"] += clock.lap()

    def finish() -> dict[str, Any]:
        check()
        return _finish(run, progress, steps, taken, verdict, whole)

    return hosts.from_first(finish)


def _take_steps(
    run: Run, checkpoints: Checkpoints, preemption: Preemption, check: Callable[[], None]
) -> tuple[dict[str, Any], int, int]:
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
    for name, now in {"data": run.fingerprint(), "starting weights": run.weights()}.items():
        if progress.setdefault(name, now) != now:
            raise UserError(
                f"{run.folder}: the {name} changed since this run began ({progress[name]} then, "
                f"{now} now); restore what was there, or take a new folder as --run"
            )
    if restored:
        _log.warning("%s resumes from step %d of %d", run.folder, start, course.steps)
    elif hosts.is_first() and has_begun(run.folder):
        _log.warning("%s holds no checkpoint; it begins again at its first step", run.folder)
    mark = progress.get("metrics")
    hosts.from_first(lambda: check_metrics(run.folder, mark))
    if run.is_over(judge.best, start):
        return progress, start, 0
    relationship = source_relationship(run.pretrained, run.splits.train, config.batch_size)
    folder = run.folder if hosts.is_first() else None
    bar = ProgressBar(course.steps, start, run.quiet)
    with Writers(folder, start, run.profile, mark, check) as writers, bar:
        for index in range(course.index(start + 1), len(course.plans)):
            plan, before, end = course.plans[index], course.start(index), course.ends[index]
            first = int(host_state.step) + 1
            if index and first == before + 1:
                host_state = course.enter(host_state, index)
            feed = _feed(run, index, host_state, bar)
            stream = parallel.shard(feed.train_batches(first - 1))
            state = parallel.replicate(host_state)
            start_of = plan.reference(run.pretrained.variables, config.seed)
            fixed = parallel.replicate((start_of | relationship, plan.rate_table))
            compiled = compiled_train_step(plan, feed.after)
            train_step = writers.profile.of(compiled, first, end)
            log = TrainingLog(writers, bar, plan, before, progress["open_sums"], checkpoints.last)
            clock, waiting = Clock(), "compile"
            for step in range(first, end + 1):
                batch = next(stream)
                seconds[waiting] += (waited := clock.lap())
                if step == first:
                    fit.check(compiled, state, batch, *fixed, parts=config.accumulate)
                preemption.unsaved = True
                state, sums = train_step(state, batch, *fixed)
                if step == first:
                    jax.block_until_ready(sums)
                    seconds["compile"] += clock.lap()
                    log.clock.lap()
                waiting = log.add(step, sums, waited)
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
                leaving = preemption.asked()
                if saving or over or leaving:
                    log.flush()
                    host_state = parallel.fetch(state)
                    progress |= judge.progress() | {"open_sums": log.open_sums()}
                    progress["metrics"] = writers.mark()
                    if step == end or over:
                        unchanged = course.frozen_unchanged(host_state)
                        progress["frozen_unchanged"] = [*progress["frozen_unchanged"], unchanged]
                    checkpoints.save(host_state, progress, log.place(step))
                    leaving |= preemption.saved()
                if leaving:
                    raise Preempted(f"saved at step {step} of {course.steps}")
                if evaluating or saving:
                    clock.lap()
                    log.clock.lap()
                if over:
                    break
            del feed, stream  # before those of the next phase take their place
    return progress, step, step - start


def _feed(run: Run, index: int, state: TrainState, bar: ProgressBar) -> Images | PrefixCache:
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
    run: Run, progress: dict[str, Any], steps: int, taken: int, verdict: Verdict, whole: Clock
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
    timing = summary.timing(run.seconds, whole.lap(), taken, run.config.batch_size)
    timing["metrics"] = progress.get("metrics")
    disk.write_json(run.folder / "timing.json", sealed.seal(timing))
    disk.write_json(run.folder / "summary.json", sealed.seal(result))
    return result
