"""The pure train and eval steps, written for one device with collectives over `parallel.AXIS`."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax

from jxfer import trees
from jxfer.data.transforms import Preprocessing, normalise
from jxfer.losses.classification import cross_entropy, mixed_loss
from jxfer.models.layers import mean_pool
from jxfer.models.registry import Model
from jxfer.train.metrics import Sums, evaluation_sums, training_sums
from jxfer.train.parallel import AXIS, compile_step, example_indices
from jxfer.train.state import Plan, TrainState
from jxfer.trees import Tree

Batch = dict[str, jax.Array]
"""`image` uint8 [B, H, W, 3], or `features` [B, ...] for a step that begins `after` an output, and
`label` int32 [B]; in evaluation also `mask` float32 [B], in training with mixup or CutMix
`partner_label` int32 [B] and `own_weight` float32 [B], and where a method of adaptation acts
`target_image` or `target_features`, as many without labels."""

_Gradients = tuple[Tree, tuple[Tree, Sums]]  # gradients, (new batch_stats, sums)
_Differentiate = Callable[[Tree, Batch, jax.Array | None], _Gradients]


def make_train_step(
    plan: Plan, after: str | None = None
) -> Callable[[TrainState, Batch], tuple[TrainState, Sums]]:
    """One step of gradient descent.

    Only the trainable subtree is differentiated, so the backward pass ends where the frozen part
    begins, whatever stands around the optimizer. The returned sums are over all devices; of a mixed
    image they count `label`. The step takes `reference`, from `Plan.reference`, where a regulariser
    acts, and `rates`, from `Plan.rate_table`; without them the plan's are constants of it.

    Args:
      after: the output that the batch holds as `features`; None: it holds images.
    """
    regularisers, adaptation = plan.regularisers, plan.adaptation

    def train_step(
        state: TrainState,
        batch: Batch,
        reference: Tree | None = None,
        rates: dict[str, jax.Array] | None = None,
    ) -> tuple[TrainState, Sums]:
        moving, frozen = trees.split(state.params, plan.moves)
        keys = _example_keys(state, len(batch["label"])) if plan.drops else None
        mean_weight = _mean_weight(plan, batch)
        reference = reference or {}

        def differentiate(batch_stats: Tree, batch: Batch, keys: jax.Array | None) -> _Gradients:
            inputs = _inputs(batch, plan.preprocessing, after)
            variables = {"params": state.params, "batch_stats": batch_stats}
            features = regularisers.reference_features(variables, reference, inputs, after)
            labelled = len(inputs)
            if adaptation.acts:
                unlabelled = _inputs(batch, plan.preprocessing, after, "target_")
                inputs = jnp.concatenate([inputs, unlabelled])
                keys = None if keys is None else jnp.concatenate([keys, _other_keys(keys)])

            def objective(moving: Tree) -> tuple[jax.Array, tuple[Tree, Sums]]:
                params = trees.merge(moving, frozen)
                variables = {"params": params, "batch_stats": batch_stats}
                outputs, moved = plan.model.apply(variables, inputs, plan.train_layers, keys, after)
                target: dict[str, jax.Array] = {}
                if adaptation.acts:
                    target = {name: rows[labelled:] for name, rows in outputs.items()}
                    outputs = {name: rows[:labelled] for name, rows in outputs.items()}
                losses = _losses(plan, outputs["logits"], batch)
                if mean_weight is not None:
                    losses = losses / mean_weight
                terms = regularisers.terms(params, outputs, batch, reference, features)
                terms |= adaptation.terms(params, outputs, target, state.step, reference)
                sums = training_sums(losses, outputs["logits"], batch["label"], terms)
                return sum(terms.values(), start=jnp.mean(losses)), (moved, sums)

            return jax.grad(objective, has_aux=True)(moving)

        whole = plan.accumulate == 1
        take = differentiate if whole else _by_parts(differentiate, plan, moving)
        gradients, (batch_stats, sums) = take(state.batch_stats, batch, keys)
        gradients = jax.lax.pmean(gradients, AXIS)
        transform = plan.transform if rates is None else plan.transform_at(_schedules(rates))
        updates, opt_state = transform.update(gradients, state.opt_state, moving)
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


def _schedules(rates: dict[str, jax.Array]) -> dict[str, optax.Schedule]:
    return {label: lambda step, table=table: table[step] for label, table in rates.items()}


def _losses(plan: Plan, logits: jax.Array, batch: Batch) -> jax.Array:
    """Weighted cross-entropy [B] of a training batch."""

    def loss(labels: jax.Array) -> jax.Array:
        return cross_entropy(logits, labels, plan.loss.label_smoothing, plan.class_weights)

    return mixed_loss(batch, loss)


def _mean_weight(plan: Plan, batch: Batch) -> jax.Array | None:
    """Mean weight of the global batch's labels: a scalar, the same on all devices.

    The losses over it have as their mean that of PyTorch's weighted cross-entropy, sum_i w_i l_i /
    sum_i w_i, whatever the number of devices.
    """
    if plan.class_weights is None:
        return None
    weights = jnp.asarray(plan.class_weights, jnp.float32)
    return jax.lax.pmean(jnp.mean(mixed_loss(batch, lambda labels: weights[labels])), AXIS)


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


def _other_keys(keys: jax.Array) -> jax.Array:
    """Keys for the target's images, none of which drops with the example of its index."""
    return jax.vmap(lambda key: jax.random.fold_in(key, 1))(keys)


def _inputs(
    batch: Batch, preprocessing: Preprocessing, after: str | None, domain: str = ""
) -> jax.Array:
    """What the network, or what comes after one of its outputs, takes: float32 [B, ...]."""
    if after is None:
        return normalise(batch[f"{domain}image"], preprocessing)
    return batch[f"{domain}features"].astype(jnp.float32)


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


def make_outputs_step(
    model: Model,
    preprocessing: Preprocessing,
    outputs: Sequence[str],
    form: Literal["pooled", "flat", "spatial"],
) -> Callable[[Tree, Batch], dict[str, jax.Array]]:
    """Several outputs of one forward pass by name, float32, each norm on its stored averages.

    A map [B, h, w, C] becomes its mean over positions [B, C] (pooled), a vector [B, h * w * C]
    (flat), or stays (spatial). A vector stays in any form.
    """

    def outputs_step(variables: Tree, batch: Batch) -> dict[str, jax.Array]:
        found, _ = model.apply(variables, normalise(batch["image"], preprocessing))
        return {name: shaped(found[name].astype(jnp.float32)) for name in outputs}

    def shaped(x: jax.Array) -> jax.Array:
        if x.ndim == 2 or form == "spatial":
            return x
        return mean_pool(x) if form == "pooled" else x.reshape(len(x), -1)

    return outputs_step


def compiled_train_step(plan: Plan, after: str | None = None) -> Callable[..., Any]:
    """`step(state, batch, reference, rates)` on every device; rates are `plan.rate_table`.

    It is compiled once for all plans that are equal but for their rates. The state is donated: its
    memory is re-used for the new one.
    """
    return _compiled(_without_rates(plan), after)


def traced_train_step(plan: Plan) -> Callable[..., Any]:
    """What `compiled_train_step` maps: Python runs it once, be its trace counted or compiled."""
    return _traced(_without_rates(plan), None)


def _without_rates(plan: Plan) -> Plan:
    return dataclasses.replace(plan, optimizer=plan.optimizer.without_rates())


@functools.lru_cache(maxsize=32)  # a sweep goes round some dozen arms
def _compiled(plan: Plan, after: str | None) -> Callable[..., Any]:
    return compile_step(_traced(plan, after), donate_state=True)


@functools.lru_cache(maxsize=32)
def _traced(plan: Plan, after: str | None) -> Callable[..., Any]:
    # Inlined it leaves no call in the program: the mapped step is the same with it and without.
    return jax.jit(make_train_step(plan, after), inline=True)
