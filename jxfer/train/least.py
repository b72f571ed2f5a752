"""The least that a plan's step can do: the same step written by hand, on what trains alone.

Before `audit` in the flow, which holds the real step against this one. It reads of a plan only what
the user decides: the labels, the policy of the norms, the optimizer's options, the loss. What the
plan and `make_train_step` work out from these (`trainable`, `train_layers`, `transform`) is what
is audited, so it is not used here.
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

from jxfer import trees
from jxfer.data.transforms import normalise
from jxfer.losses.classification import cross_entropy
from jxfer.train.parallel import AXIS, example_indices
from jxfer.train.state import Plan, TrainState
from jxfer.transfer import optimizer
from jxfer.transfer.labels import FROZEN
from jxfer.trees import Tree

Leaves = dict[str, jax.Array]
"""By path."""
Result = tuple[Leaves, Leaves, dict[str, optax.OptState], jax.Array]
"""(trainable parameters, statistics that move, optimizer state by label, mean loss)."""


def groups(plan: Plan) -> dict[str, list[str]]:
    """Paths of the parameters under each label; the frozen ones too."""
    found: dict[str, list[str]] = {}
    for path, label in trees.flatten(plan.labels).items():
        found.setdefault(label, []).append(path)
    return found


def moving_norms(plan: Plan) -> frozenset[str]:
    """Paths of the norm layers that run on the batch and move their averages, by the policy."""
    if plan.folded:
        return frozenset()
    labels = trees.flatten(plan.labels)
    learning = {path.rpartition("/")[0] for path, label in labels.items() if label != FROZEN}
    norms = plan.model.norm_paths()
    chosen = {norm for norm in norms if norm in learning and plan.phase.trainable_norms == "train"}
    if plan.phase.frozen_norms == "adapt":
        chosen |= {norm for norm in norms if norm not in learning}
    return frozenset(chosen)


def moving_statistics(plan: Plan) -> frozenset[str]:
    """Paths of the statistics of `moving_norms`."""
    return frozenset(f"{norm}/{name}" for norm in moving_norms(plan) for name in ("mean", "var"))


def initial_opt_state(plan: Plan, params: Tree) -> dict[str, optax.OptState]:
    """The optimizer state of each group that trains."""
    flat = trees.flatten(params)
    return {
        label: transform.init({path: flat[path] for path in groups(plan)[label]})
        for label, transform in _transforms(plan).items()
    }


def peaks(plan: Plan) -> dict[str, float]:
    """Peak learning rate of each label that may train."""
    return plan.optimizer.peaks(plan.model.stages)


def make_least_step(plan: Plan) -> Callable[[TrainState, dict[str, jax.Array]], Result]:
    """Forward, gradient of the trainable leaves, each group's update on its own; nothing else.

    Takes the same arguments as the step of `make_train_step`, but that `opt_state` is that of
    `initial_opt_state`.
    """
    paths = groups(plan)
    transforms = _transforms(plan)
    learning = [path for label in transforms for path in paths[label]]
    dropouts = {
        path
        for path in plan.model.dropout_paths()
        if any(leaf.startswith(path.rpartition("/")[0] + "/") for leaf in learning)
    }
    train_layers = moving_norms(plan) | dropouts
    moves = moving_statistics(plan)

    def least_step(state: TrainState, batch: dict[str, jax.Array]) -> Result:
        params = trees.flatten(state.params)
        frozen = {path: params[path] for path in paths.get(FROZEN, [])}
        moving = {path: leaf for path, leaf in params.items() if path not in frozen}
        images = normalise(batch["image"], plan.preprocessing)
        keys = None
        if dropouts:
            key = jax.random.fold_in(jax.random.key(state.seed), state.step)
            indices = example_indices(len(images))
            keys = jax.vmap(lambda index: jax.random.fold_in(key, index))(indices)

        def objective(moving: Leaves) -> tuple[jax.Array, Tree]:
            params = trees.unflatten({**frozen, **moving})
            variables = {"params": params, "batch_stats": state.batch_stats}
            outputs, batch_stats = plan.model.apply(variables, images, train_layers, keys)
            smoothing = plan.loss.label_smoothing
            losses = cross_entropy(outputs["logits"], batch["label"], smoothing)
            return jnp.mean(losses), batch_stats

        (loss, batch_stats), gradients = jax.value_and_grad(objective, has_aux=True)(moving)
        gradients = jax.lax.pmean(gradients, AXIS)
        moved: Leaves = {}
        opt_states = {}
        for label, transform in transforms.items():
            own = {path: moving[path] for path in paths[label]}
            updates, opt_states[label] = transform.update(
                {path: gradients[path] for path in own}, state.opt_state[label], own
            )
            moved |= optax.apply_updates(own, updates)
        statistics = trees.flatten(batch_stats)
        averages = jax.lax.pmean({path: statistics[path] for path in sorted(moves)}, AXIS)
        return moved, averages, opt_states, jax.lax.pmean(loss, AXIS)

    return least_step


def advance(state: TrainState, result: Result) -> TrainState:
    """The state after a step of `make_least_step`."""
    moved, averages, opt_states, _ = result
    return dataclasses.replace(
        state,
        step=state.step + 1,
        params=trees.unflatten(trees.flatten(state.params) | moved),
        batch_stats=trees.unflatten(trees.flatten(state.batch_stats) | averages),
        opt_state=opt_states,
    )


def _transforms(plan: Plan) -> dict[str, optax.GradientTransformation]:
    """What moves each group that trains, as if it were alone."""
    rates = optimizer.schedules(
        plan.optimizer, plan.total_steps, plan.steps_per_epoch, plan.model.stages
    )
    return {
        label: optimizer.group(plan.optimizer, rates[label])
        for label in sorted(groups(plan))
        if label != FROZEN
    }
