"""The pure train and eval steps, written for one device with collectives over `parallel.AXIS`."""

from collections.abc import Callable

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
"""`image` uint8 [B, H, W, 3], or `features` [B, ...] for a step that begins `after` an output, and
`label` int32 [B]; in evaluation also `mask` float32 [B]."""


def make_train_step(
    plan: Plan, after: str | None = None
) -> Callable[[TrainState, Batch], tuple[TrainState, Sums]]:
    """One step of gradient descent.

    Only the trainable subtree is differentiated, so the backward pass ends where the frozen part
    begins, whatever stands around the optimizer. The returned sums are over all devices.

    Args:
      after: the output that the batch holds as `features`; None: it holds images.
    """
    smoothing = plan.loss.label_smoothing

    def train_step(state: TrainState, batch: Batch) -> tuple[TrainState, Sums]:
        moving, frozen = trees.split(state.params, plan.moves)
        inputs = _inputs(batch, plan.preprocessing, after)
        keys = _example_keys(state, len(inputs)) if plan.drops else None

        def objective(moving: Tree) -> tuple[jax.Array, tuple[Tree, Sums]]:
            variables = {"params": trees.merge(moving, frozen), "batch_stats": state.batch_stats}
            outputs, batch_stats = plan.model.apply(
                variables, inputs, plan.train_layers, keys, after
            )
            losses = cross_entropy(outputs["logits"], batch["label"], smoothing)
            sums = training_sums(losses, outputs["logits"], batch["label"])
            return jnp.mean(losses), (batch_stats, sums)

        gradients, (batch_stats, sums) = jax.grad(objective, has_aux=True)(moving)
        gradients = jax.lax.pmean(gradients, AXIS)
        updates, opt_state = plan.transform.update(gradients, state.opt_state, moving)
        moving = optax.apply_updates(moving, updates)
        # Stored averages are left out: a mean over devices could round them.
        moved, _ = trees.split(batch_stats, plan.adapts)
        _, stored = trees.split(state.batch_stats, plan.adapts)
        new_state = TrainState(
            step=state.step + 1,
            params=trees.merge(moving, frozen),
            batch_stats=trees.merge(jax.lax.pmean(moved, AXIS), stored),
            opt_state=opt_state,
            seed=state.seed,
        )
        return new_state, jax.lax.psum(sums, AXIS)

    return train_step


def _example_keys(state: TrainState, examples: int) -> jax.Array:
    """A key [B] for each of this device's examples: a function of seed, step and global index."""
    key = jax.random.fold_in(jax.random.key(state.seed), state.step)
    return jax.vmap(lambda index: jax.random.fold_in(key, index))(example_indices(examples))


def _inputs(batch: Batch, preprocessing: Preprocessing, after: str | None) -> jax.Array:
    """What the network, or what comes after one of its outputs, takes: float32 [B, ...]."""
    if after is None:
        return normalise(batch["image"], preprocessing)
    return batch["features"].astype(jnp.float32)


def make_eval_step(
    model: Model, preprocessing: Preprocessing, after: str | None = None
) -> Callable[[Tree, Batch], Sums]:
    """Sums over all devices of one evaluation batch; every norm runs on its stored averages."""
    predict = make_predict_step(model, preprocessing, after=after)

    def eval_step(variables: Tree, batch: Batch) -> Sums:
        logits = predict(variables, batch)
        losses = cross_entropy(logits, batch["label"])
        return jax.lax.psum(evaluation_sums(losses, logits, batch["label"], batch["mask"]), AXIS)

    return eval_step


def make_predict_step(
    model: Model,
    preprocessing: Preprocessing,
    output: str = "logits",
    after: str | None = None,
) -> Callable[[Tree, Batch], jax.Array]:
    """One output of the network, [B, ...]; the logits unless another one is named."""

    def predict_step(variables: Tree, batch: Batch) -> jax.Array:
        inputs = _inputs(batch, preprocessing, after)
        outputs, _ = model.apply(variables, inputs, after=after)
        return outputs[output]

    return predict_step
