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
"""`image` uint8 [B, H, W, 3], `label` int32 [B]; in evaluation also `mask` float32 [B]."""


def make_train_step(plan: Plan) -> Callable[[TrainState, Batch], tuple[TrainState, Sums]]:
    """One step of gradient descent.

    Only the trainable subtree is differentiated, so the backward pass ends where the frozen part
    begins, whatever stands around the optimizer. The returned sums are over all devices. The step
    takes `reference`, from `Plan.reference`, where a regulariser acts.
    """
    smoothing = plan.loss.label_smoothing
    regularisers = plan.regularisers

    def train_step(
        state: TrainState, batch: Batch, reference: Tree | None = None
    ) -> tuple[TrainState, Sums]:
        moving, frozen = trees.split(state.params, plan.moves)
        images = normalise(batch["image"], plan.preprocessing)
        keys = _example_keys(state, len(images)) if plan.drops else None
        reference = reference or {}
        features = regularisers.reference_features(state.variables, reference, images)

        def objective(moving: Tree) -> tuple[jax.Array, tuple[Tree, Sums]]:
            params = trees.merge(moving, frozen)
            variables = {"params": params, "batch_stats": state.batch_stats}
            outputs, batch_stats = plan.model.apply(variables, images, plan.train_layers, keys)
            losses = cross_entropy(outputs["logits"], batch["label"], smoothing)
            terms = regularisers.terms(params, outputs, batch["label"], reference, features)
            sums = training_sums(losses, outputs["logits"], batch["label"], terms)
            return sum(terms.values(), start=jnp.mean(losses)), (batch_stats, sums)

        gradients, (batch_stats, sums) = jax.grad(objective, has_aux=True)(moving)
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
        )
        return new_state, jax.lax.psum(sums, AXIS)

    return train_step


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


def make_class_sums_step(
    model: Model, preprocessing: Preprocessing, classes: int
) -> Callable[[Tree, Batch], Sums]:
    """Sums over all devices of the softmax probabilities [classes, K] and examples [classes]."""
    predict = make_predict_step(model, preprocessing)

    def class_sums_step(variables: Tree, batch: Batch) -> Sums:
        labels, mask = batch["label"], batch["mask"]
        probabilities = jax.nn.softmax(predict(variables, batch)) * mask[:, None]
        sums = {
            "probabilities": jax.ops.segment_sum(probabilities, labels, classes),
            "examples": jax.ops.segment_sum(mask.astype(jnp.int32), labels, classes),
        }
        return jax.lax.psum(sums, AXIS)

    return class_sums_step


def make_predict_step(
    model: Model, preprocessing: Preprocessing
) -> Callable[[Tree, Batch], jax.Array]:
    """Logits [B, K] of one batch."""

    def predict_step(variables: Tree, batch: Batch) -> jax.Array:
        outputs, _ = model.apply(variables, normalise(batch["image"], preprocessing))
        return outputs["logits"]

    return predict_step
