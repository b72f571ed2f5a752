"""Which checkpoints stay, and that they come back as they were saved."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jxfer.errors import DiskError, UserError
from jxfer.train.checkpoint import Checkpoints
from jxfer.train.preemption import Preempted
from jxfer.train.state import TrainState


def make_state(step):
    params = {"head": {"linear": {"kernel": np.full((2, 3), step, np.float32)}}}
    return TrainState(
        step=np.int32(step),
        params=params,
        batch_stats={"stem": {"norm": {"mean": np.full(2, -step, np.float32)}}},
        opt_state=optax.sgd(0.1, 0.9).init(params),
        seed=np.uint32(11),
    )


def progress(best):
    return {"best": {"step": best, "correct": 7}, "open_sums": [{"loss": 0.1, "examples": 3}]}


def steps(folder):
    return {int(path.name) for path in folder.iterdir() if path.name.isdigit()}


def test_an_empty_folder_has_nothing_to_restore(tmp_path):
    with Checkpoints(tmp_path / "checkpoints") as checkpoints:
        assert checkpoints.restore_latest(make_state) is None


def test_a_state_comes_back_with_its_bits_its_types_and_its_progress(tmp_path, assert_same_bits):
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(make_state(3), progress(best=3))
    with Checkpoints(tmp_path) as checkpoints:
        state, found = checkpoints.restore_latest(make_state)
    wanted = make_state(3)
    assert found == progress(best=3)
    assert int(state.step) == 3
    assert int(state.seed) == 11
    assert_same_bits(state.params, wanted.params)
    assert_same_bits(state.batch_stats, wanted.batch_stats)
    assert isinstance(state.opt_state[0], optax.TraceState)
    assert_same_bits(state.opt_state[0].trace, wanted.opt_state[0].trace)


def test_the_two_latest_and_the_best_stay(tmp_path, assert_same_bits):
    best = {1: 1, 2: 2, 3: 2, 4: 2, 5: 2, 6: 6, 7: 6}
    with Checkpoints(tmp_path) as checkpoints:
        for step in range(1, 6):
            checkpoints.save(make_state(step), progress(best[step]))
        found = checkpoints.restore_variables(2, make_state)
        assert_same_bits(found["params"], make_state(2).params)
    assert steps(tmp_path) == {2, 4, 5}
    with Checkpoints(tmp_path) as checkpoints:
        for step in (6, 7):
            checkpoints.save(make_state(step), progress(best[step]))
    assert steps(tmp_path) == {6, 7}


@pytest.mark.parametrize("part", ["params", "batch_stats", "opt_state"])
def test_a_state_that_is_not_finite_is_not_saved(part, tmp_path, one_line):
    """So the last checkpoint is good, and the message says which it is."""
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.last() == "no checkpoint was saved before"
        checkpoints.save(make_state(1), progress(best=1))
        bad = make_state(2)
        leaves = jax.tree.leaves(getattr(bad, part))
        leaf = next(leaf for leaf in leaves if np.ndim(leaf))
        spoilt = np.array(leaf)
        spoilt.flat[0] = np.inf if part == "opt_state" else np.nan
        replaced = jax.tree.map(lambda one: spoilt if one is leaf else one, getattr(bad, part))
        bad = dataclasses.replace(bad, **{part: replaced})
        words = (part, "step 2 of phase full", f"last good checkpoint is {tmp_path}/1;")
        with one_line(*words):
            checkpoints.save(bad, progress(best=1), "step 2 of phase full")
    assert steps(tmp_path) == {1}


def test_a_state_of_another_shape_is_not_taken(tmp_path, one_line):
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(make_state(1), progress(best=1))
        other = make_state(0)
        other.params["head"]["linear"]["kernel"] = jnp.zeros((2, 4))
        with one_line("checkpoint 1", "other shapes"):
            checkpoints.restore_variables(1, lambda _: other)


def test_a_best_step_that_is_gone_is_an_error(tmp_path, one_line):
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(make_state(1), progress(best=1))
        with one_line("checkpoint 9", "damaged", "remove the run folder"):
            checkpoints.restore_variables(9, make_state)


def test_a_flipped_figure_of_the_progress_is_told(tmp_path, caplog):
    """Orbax has no checksum for it: another best step, another count, would be believed."""
    with Checkpoints(tmp_path) as checkpoints:
        for step in (1, 2):
            checkpoints.save(make_state(step), progress(best=step))
    file = tmp_path / "2" / "progress" / "metadata"
    text = file.read_text()
    assert '"correct": 7' in text
    file.write_text(text.replace('"correct": 7', '"correct": 5'))
    with Checkpoints(tmp_path) as checkpoints:
        state, found = checkpoints.restore_latest(make_state)
    assert (int(state.step), found) == (1, progress(best=1))
    assert "checkpoint 2 is damaged (the checksum of its progress" in caplog.text


def test_that_the_best_is_lost_is_told_when_the_run_resumes(tmp_path, caplog):
    with Checkpoints(tmp_path) as checkpoints:
        for step in (1, 2, 3):
            checkpoints.save(make_state(step), progress(best=1))
    (tmp_path / "1" / "progress" / "metadata").unlink()
    with Checkpoints(tmp_path) as checkpoints:
        state, _ = checkpoints.restore_latest(make_state)
    assert int(state.step) == 3
    assert "checkpoint 1, one of the best, is damaged" in caplog.text


@pytest.mark.parametrize("step", [1, 2])
def test_a_checkpoint_of_a_killed_save_is_not_seen(step, tmp_path):
    """What a kill -9 during a save leaves."""
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(make_state(1), progress(best=1))
    (tmp_path / f"{step}.orbax-checkpoint-tmp").mkdir()
    with Checkpoints(tmp_path) as checkpoints:
        state, _ = checkpoints.restore_latest(make_state)
        assert int(state.step) == 1
        checkpoints.save(make_state(2), progress(best=1))
    assert steps(tmp_path) == {1, 2}


@pytest.fixture
def moving(tmp_path):
    """A run in a sweep with a checkpoint of step 1, and whether its folder is no longer there."""
    run, moved = tmp_path / "sweep" / "run", []
    run.mkdir(parents=True)

    def check():
        if moved:
            raise DiskError("it was moved")

    checkpoints = Checkpoints(run / "checkpoints", check)
    checkpoints.save(make_state(1), progress(best=1))
    checkpoints.last()
    return run, checkpoints, moved


def leave(checkpoints, error=None):
    with pytest.raises(DiskError, match="it was moved"):
        checkpoints.__exit__(type(error), error, None)


@pytest.mark.parametrize("which", ["run", "sweep"])
@pytest.mark.parametrize("name", ["1", "1.orbax-checkpoint-tmp"])
def test_what_a_save_made_anew_does_not_stay_where_the_run_was(which, name, moving, tmp_path):
    """TensorStore makes all folders of a path."""
    run, checkpoints, moved = moving
    old = {"run": run, "sweep": run.parent}[which]
    moved.append(old.rename(tmp_path / "aside"))
    (run / "checkpoints" / name / "state").mkdir(parents=True)
    leave(checkpoints)
    assert not old.exists()
    assert old.parent.exists()


def test_a_save_under_way_does_not_stay_where_the_run_was(moving, tmp_path):
    run, checkpoints, moved = moving
    checkpoints.save(make_state(2), progress(best=2))
    moved.append(run.rename(tmp_path / "aside"))
    leave(checkpoints)
    assert not run.exists()


@pytest.mark.parametrize("name", ["config.json", "checkpoints/7", "of_a_user"])
def test_what_others_put_where_the_run_was_stays(name, moving, tmp_path):
    run, checkpoints, moved = moving
    moved.append(run.rename(tmp_path / "aside"))
    for made in (name, "checkpoints/1"):
        (run / made).mkdir(parents=True)
    leave(checkpoints)
    assert (run / name).exists()
    assert (run / "checkpoints" / "1").exists()


def test_a_run_that_is_still_in_its_place_keeps_its_checkpoints(moving):
    """Its lock was removed, by a program that clears old files away, say."""
    run, checkpoints, moved = moving
    moved.append(run)
    leave(checkpoints)
    assert steps(run / "checkpoints") == {1}


def test_where_a_disk_was_mounted_the_folder_stays(moving, tmp_path):
    run, checkpoints, moved = moving
    stat, _ = checkpoints._parents[run]
    checkpoints._parents[run] = stat, True
    moved.append(run.rename(tmp_path / "aside"))
    (run / "checkpoints" / "1").mkdir(parents=True)
    leave(checkpoints)
    assert list(run.iterdir()) == []


def test_a_preempted_run_whose_folder_was_moved_is_not_said_to_be_saved(moving, tmp_path):
    run, checkpoints, moved = moving
    moved.append(run.rename(tmp_path / "aside"))
    leave(checkpoints, Preempted("saved at step 1 of 9"))


def test_another_error_is_told_first(moving, tmp_path):
    run, checkpoints, moved = moving
    moved.append(run.rename(tmp_path / "aside"))
    with pytest.raises(UserError, match="another"), checkpoints:
        raise UserError("another")
