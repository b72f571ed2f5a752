"""The pure train and eval steps, written for one device with collectives over `parallel.AXIS`."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from jxfer import trees
from jxfer.data.transforms import Preprocessing, normalise
from jxfer.losses.classification import cross_entropy
from jxfer.models.registry import Model
from jxfer.train.metrics import Sums, evaluation_sums, training_sums
from jxfer.train.parallel import AXIS, example_indices
from jxfer.train.state import Plan, TrainState
from jxfer.trees import Tree

Batch = dict[str, jax.Array]
"""`image` uint8 [B, H, W, 3], `label` int32 [B]; in evaluation also `mask` float32 [B]."""

_Gradients = tuple[Tree, tuple[Tree, Sums]]  # gradients, (new batch_stats, sums)
_Differentiate = Callable[[Tree, Batch, jax.Array | None], _Gradients]


def make_train_step(plan: Plan) -> Callable[[TrainState, Batch], tuple[TrainState, Sums]]:
    """One step of gradient descent.

    Only the trainable subtree is differentiated, so the backward pass ends where the frozen part
    begins, whatever stands around the optimizer. The returned sums are over all devices.
    """
    smoothing = plan.loss.label_smoothing

    def train_step(state: TrainState, batch: Batch) -> tuple[TrainState, Sums]:
        moving, frozen = trees.split(state.params, plan.moves)
        keys = _example_keys(state, len(batch["label"])) if plan.drops else None

        def differentiate(batch_stats: Tree, batch: Batch, keys: jax.Array | None) -> _Gradients:
            images = normalise(batch["image"], plan.preprocessing)

            def objective(moving: Tree) -> tuple[jax.Array, tuple[Tree, Sums]]:
                variables = {"params": trees.merge(moving, frozen), "batch_stats": batch_stats}
                outputs, moved = plan.model.apply(variables, images, plan.train_layers, keys)
                losses = cross_entropy(outputs["logits"], batch["label"], smoothing)
                sums = training_sums(losses, outputs["logits"], batch["label"])
                return jnp.mean(losses), (moved, sums)

            return jax.grad(objective, has_aux=True)(moving)

        whole = plan.accumulate == 1
        take = differentiate if whole else _by_parts(differentiate, plan, moving)
        gradients, (batch_stats, sums) = take(state.batch_stats, batch, keys)
        gradients = jax.lax.pmean(gradients, AXIS)
        updates, opt_state = plan.transform.update(gradients, state.opt_state, moving)
        moving = optax.apply_updates(moving, updates)
        # Stored averages are left out: a mean over devices could round them.
        moved, stored = trees.split(batch_stats, plan.adapts)
        new_state = TrainState(
            step=state.step + 1,
            params=trees.merge(moving, frozen),
            batch_stats=trees.merge(jax.lax.pmean(moved, AXIS), stored),
            opt_state=opt_state,
            seed=state.seed,
            ema=state.ema,
        )
        if plan.ema_decay is not None:
            values = plan.training_leaves(
                {"params": new_state.params, "batch_stats": new_state.batch_stats}
            )
            ema = optax.incremental_update(values, state.ema, 1 - plan.ema_decay)
            new_state = dataclasses.replace(new_state, ema=ema)
        return new_state, jax.lax.psum(sums, AXIS)

    return train_step


def _by_parts(differentiate: _Differentiate, plan: Plan, moving: Tree) -> _Differentiate:
    """`differentiate` of one micro-batch after another, in the memory of one.

    All parts are of one size, so the mean of their gradients is that of the whole batch. Statistics
    that move go from part to part.
    """

    def differentiate_parts(batch_stats: Tree, batch: Batch, keys: jax.Array | None) -> _Gradients:
        parts = jax.tree.map(
            lambda leaf: leaf.reshape(plan.accumulate, -1, *leaf.shape[1:]), (batch, keys)
        )
        adapting, stored = trees.split(batch_stats, plan.adapts)

        def add(carry: tuple[Tree, Tree], part: Any) -> tuple[tuple[Tree, Tree], Sums]:
            total, adapting = carry
            gradients, (moved, sums) = differentiate(trees.merge(adapting, stored), *part)
            adapting, _ = trees.split(moved, plan.adapts)
            return (jax.tree.map(jnp.add, total, gradients), adapting), sums

        zeros = jax.tree.map(jnp.zeros_like, moving)
        (total, adapting), sums = jax.lax.scan(add, (zeros, adapting), parts)
        gradients = jax.tree.map(lambda leaf: leaf / plan.accumulate, total)
        sums = jax.tree.map(lambda leaf: jnp.sum(leaf, 0), sums)
        return gradients, (trees.merge(adapting, stored), sums)

    return differentiate_parts


def _example_keys(state: TrainState, examples: int) -> jax.Array:
    """A key [B] for each of this device's examples: a function of seed, step and global index."""
    key = jax.random.fold_in(jax.random.key(state.seed), state.step)
    return jax.vmap(lambda index: jax.random.fold_in(key, index))(example_indices(examples))


def make_eval_step(model: Model, preprocessing: Preprocessing) -> Callable[[Tree, Batch], Sums]:
    """Sums over all devices of one evaluation batch; every norm runs on its stored averages."""
    predict = make_predict_step(model, preprocessing)

    def eval_step(variables: Tree, batch: Batch) -> Sums:
        logits = predict(variables, batch)
        losses = cross_entropy(logits, batch["label"])
        return jax.lax.psum(evaluation_sums(losses, logits, batch["label"], batch["mask"]), AXIS)

    return eval_step


def make_predict_step(
    model: Model, preprocessing: Preprocessing
) -> Callable[[Tree, Batch], jax.Array]:
    """Logits [B, K] of one batch."""

    def predict_step(variables: Tree, batch: Batch) -> jax.Array:
        outputs, _ = model.apply(variables, normalise(batch["image"], preprocessing))
        return outputs["logits"]

    return predict_step
