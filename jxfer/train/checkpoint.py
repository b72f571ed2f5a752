"""Checkpoints of a run: Orbax, asynchronous, checksummed leaf by leaf.

Only this file and `zoo/store.py` import Orbax. Host arrays are saved, so that they restore on any
number of devices and hosts. The first host alone reads and writes; the others get from it what it
restores. Orbax restores a flipped bit without a word; the crc32 of each leaf, kept beside
the arrays under a checksum of its own, does not.
"""

import contextlib
import dataclasses
import logging
import os
import pathlib
import shutil
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from jxfer import disk, sealed, trees
from jxfer.errors import DiskError, UserError, first_line
from jxfer.train import hosts
from jxfer.train.state import TrainState
from jxfer.trees import Tree

_log = logging.getLogger("jxfer")

Like = Callable[[int], TrainState]
"""The structure and shapes of the state at a step; phases differ in their optimizer states."""


class _KeepLatestAndBest:
    """Keeps the two latest steps, and the best steps that these point to."""

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> list[bool]:
        latest = checkpoints[-2:]
        kept = {info.step for info in latest}
        for name in ("best_step", "oracle_step"):
            kept |= {(info.metrics or {}).get(name) for info in latest}
        return [info.step in kept for info in checkpoints]


class Checkpoints:
    """The `checkpoints/` folder of a run. A context manager: leaving it waits for the last save.

    Args:
      folder: made unless it is there.
      check: raises DiskError once the path leads elsewhere; see `run_folder.open_run`.
    """

    def __init__(self, folder: pathlib.Path, check: Callable[[], None] = lambda: None) -> None:
        self._folder, self._check = folder, check
        self._manager: Any = None
        self._saved: int | None = None
        """The last step that a save was started for."""
        if not hosts.is_first():
            return
        disk.tell_once()
        with disk.writing(folder):
            folder.mkdir(exist_ok=True)  # Orbax makes none where a process saves for itself
            # Held, so that no other folder gets its inode.
            self._held = os.open(folder, os.O_RDONLY)
            self._parents = {
                path: (os.stat(path), path.is_mount()) for path in folder.absolute().parents
            }
        # No barrier that waits for the other hosts.
        alone = ocp.options.MultiprocessingOptions(
            primary_host=0, active_processes={0}, barrier_sync_key_prefix="run"
        )
        options = ocp.CheckpointManagerOptions(
            preservation_policy=_KeepLatestAndBest(), create=False, multiprocessing_options=alone
        )
        self._manager = ocp.CheckpointManager(
            folder.absolute(), options=options, item_names=("state", "progress")
        )

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, _: object, error: BaseException | None, *__: object) -> None:
        if self._manager is None:
            return
        try:
            self._wait()
            with self._writing():
                self._manager.close()
            if not isinstance(error, Exception):  # a preemption says that its step is saved
                self._check()
        finally:
            self._clear_old_path()
            os.close(self._held)

    def last(self) -> str:
        """What there is to go back to, for the message of a run that stops."""
        if self._manager is None:
            return "the first host tells the last good checkpoint"
        self._wait()
        return self._whole()

    def save(self, state: TrainState, progress: dict[str, Any], place: str = "") -> None:
        """Starts to save; the device and the loop go on. All hosts must call it.

        Args:
          state: on the host.
          progress: JSON values; `progress["best"]["step"]` names a step that must be kept, and so
            does `progress["oracle"]["step"]` where there is one.
          place: the step, phase and rates, for the message.

        Raises:
          UserError: a leaf is not finite: a parameter, a statistic, or the optimizer's state, which
            a gradient reaches first; this checkpoint, or the one before, cannot be written.
        """
        tree = _to_tree(state)
        for path, leaf in trees.flatten(tree).items():
            if not np.isfinite(leaf).all():
                raise UserError(
                    f"{path} is no longer finite at {place or f'step {int(state.step)}'}; "
                    f"{self.last()}; lower --optimizer.lr or set --optimizer.clip-norm, in a new "
                    "run folder"
                )
        if self._manager is None:
            return
        checksums = {path: trees.crc32(leaf) for path, leaf in trees.flatten(tree).items()}
        self._wait()
        self._check()  # else Orbax may make the folder anew
        self._saved = int(state.step)
        with self._writing():
            self._manager.save(
                self._saved,
                args=ocp.args.Composite(
                    state=ocp.args.PyTreeSave(tree),
                    progress=ocp.args.JsonSave(sealed.seal({**progress, "checksums": checksums})),
                ),
                metrics={
                    f"{name}_step": progress[name]["step"]
                    for name in ("best", "oracle")
                    if name in progress
                },
                force=True,
            )

    def restore_latest(self, like: Like) -> tuple[TrainState, dict[str, Any]] | None:
        """The newest intact checkpoint, or None where there is none yet.

        A rotten one is reported and the one before it taken; only then is the rotten one deleted,
        since its step will be saved again.

        Args:
          like: a state of the same structure and shapes, for each step.

        Raises:
          UserError: there are checkpoints, and none is intact; one is intact and of other shapes.
        """
        return hosts.from_first(lambda: self._restore_latest(like))

    def _restore_latest(self, like: Like) -> tuple[TrainState, dict[str, Any]] | None:
        steps = sorted(self._manager.all_steps(), reverse=True)
        rotten = []
        for step in steps:
            try:
                found = self._restore(step, like)
            except _Rotten as error:
                _log.warning("checkpoint %d is damaged (%s); taking the one before", step, error)
                rotten.append(step)
            else:
                for damaged in rotten:
                    self._manager.delete(damaged)
                self._check_best(step, found[1], like)
                return found
        if steps:
            raise UserError(f"{self._folder}: no checkpoint is intact; remove the run folder")
        return None

    def _check_best(self, latest: int, progress: dict[str, Any], like: Like) -> None:
        """Tells now, not when the last step is taken, that the best model so far is lost."""
        best = {progress[name]["step"] for name in ("best", "oracle") if progress.get(name)}
        for step in sorted(best - {latest, None}):
            try:
                self._restore(step, like)
            except _Rotten as error:
                _log.warning(
                    "checkpoint %d, one of the best, is damaged (%s); the run cannot end unless a "
                    "later one is better",
                    step,
                    error,
                )

    def restore_variables(self, step: int, like: Like) -> Tree:
        """Parameters and statistics of one step as evaluation takes them, on the host.

        Raises:
          UserError: the step is missing, damaged or of other shapes.
        """
        return hosts.from_first(lambda: self._restore_variables(step, like))

    def _restore_variables(self, step: int, like: Like) -> Tree:
        self._wait()
        try:
            state, _ = self._restore(step, like)
        except _Rotten as error:
            raise UserError(
                f"{self._folder}: checkpoint {step}, one of the best, is damaged ({error}); "
                "remove the run folder and train again"
            ) from error
        return state.variables

    def _restore(self, step: int, like: Like) -> tuple[TrainState, dict[str, Any]]:
        try:
            restored = self._manager.restore(
                step,
                args=ocp.args.Composite(
                    state=ocp.args.PyTreeRestore(), progress=ocp.args.JsonRestore()
                ),
            )
            tree, progress = restored["state"], restored["progress"]
        except Exception as error:  # Orbax and TensorStore raise many kinds for a damaged file
            raise _Rotten(first_line(error)[:100]) from error
        try:
            progress = sealed.unseal(progress, "progress")
        except UserError as error:
            raise _Rotten("the checksum of its progress does not match") from error
        flat, checksums = trees.flatten(tree), progress.pop("checksums", {})
        if flat.keys() != checksums.keys():
            raise _Rotten("leaves are missing")
        for path, leaf in flat.items():
            if trees.crc32(leaf) != checksums[path]:
                raise _Rotten(f"the checksum of {path} does not match")
        return _from_tree(tree, like(step)), progress

    def _wait(self) -> None:
        """Until the save that goes on beside the loop is done."""
        with self._writing():
            self._manager.wait_until_finished()

    def _clear_old_path(self) -> None:
        """Removes what a save has made anew where the run folder was before it was moved.

        TensorStore makes all folders of a path; in their way the run could not be put back. What
        else was put there stays, and so does all of it where it cannot be told apart.
        """
        try:
            self._check()
            return
        except DiskError:
            pass
        with contextlib.suppress(OSError):  # the path is gone, or cannot be read
            disk.let_writers_end(self._folder)
            folder = self._folder.absolute()
            own = {f"{self._saved}", f"{self._saved}.orbax-checkpoint-tmp"}
            if (
                os.path.samestat(os.fstat(self._held), os.stat(folder))
                or not {path.name for path in folder.iterdir()} <= own
                or not {path.name for path in folder.parent.iterdir()} <= {folder.name, ".lock"}
            ):
                return
            shutil.rmtree(folder)
            for parent, (before, mounted) in self._parents.items():
                if mounted or os.path.samestat(before, os.stat(parent)):
                    return  # it was there when the run began
                parent.rmdir()

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        advice = f"{self._whole()}; make room, and the same command resumes"
        try:
            with disk.writing(f"a checkpoint in {self._folder}", advice):
                yield
        except Exception:
            self._check()  # where the folder is gone Orbax says many things
            raise

    def _whole(self) -> str:
        # The manager counts a save that failed; on the disk a whole one has its plain number.
        names = [path.name for path in self._folder.glob("*") if path.name.isdecimal()]
        if not names:
            return "no checkpoint was saved before"
        return f"the last good checkpoint is {self._folder / max(names, key=int)}"


class _Rotten(Exception):
    """A checkpoint that cannot be read back as it was written."""


def _to_tree(state: TrainState) -> Tree:
    # Optax's named tuples come back as lists and dicts, so their leaves are stored by path.
    leaves, _ = jax.tree_util.tree_flatten_with_path(state.opt_state)
    averages = {"ema": state.ema} if state.ema else {}
    return averages | {
        "step": np.asarray(state.step),
        "params": state.params,
        "batch_stats": state.batch_stats,
        "seed": np.asarray(state.seed),
        "opt_state": {_name(path): np.asarray(leaf) for path, leaf in leaves},
    }


def _from_tree(tree: Tree, like: TrainState) -> TrainState:
    leaves, structure = jax.tree_util.tree_flatten_with_path(like.opt_state)
    stored = tree.get("opt_state", {})
    if {_name(path) for path, _ in leaves} != set(stored) or "seed" not in tree:
        raise UserError(
            f"checkpoint {int(tree['step'])} is of another optimizer than this run's: the code "
            "changed since; take a new folder as --run"
        )
    opt_state = jax.tree.unflatten(structure, [stored[_name(path)] for path, _ in leaves])
    state = dataclasses.replace(
        like,
        step=tree["step"],
        params=tree["params"],
        batch_stats=tree.get("batch_stats", {}),
        seed=tree["seed"],
        opt_state=opt_state,
        ema=tree.get("ema", {}),
    )
    if jax.tree.map(np.shape, state) != jax.tree.map(np.shape, like):
        raise UserError(
            f"checkpoint {int(tree['step'])} holds leaves of other shapes than this run: the "
            "classes or the code changed since; take a new folder as --run"
        )
    return state


def _name(path: tuple[Any, ...]) -> str:
    return jax.tree_util.keystr(path, simple=True, separator=".")
