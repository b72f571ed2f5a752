"""FLOPs of a traced step by layer and by label, forward and backward. Nothing is compiled.

Before `summary` in the flow. The compiler's own count is a single number for a whole program; here
each convolution and matrix product is counted where it stands in the network, which the name stack
of its equation tells. The rest (norms, activations, the optimizer), a few per cent, is left out.
"""

import math
from collections.abc import Callable, Collection, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.interpreters import partial_eval

from jxfer import trees
from jxfer.train import parallel
from jxfer.train.state import Plan, TrainState

Work = dict[tuple[str, bool], int]
"""FLOPs by (layer or label, whether of the backward pass); those without any are left out."""


def by_label(
    step: Callable[..., Any], plan: Plan, state: TrainState, per_device_batch: int, *fixed: Any
) -> Work:
    """FLOPs under each label of one device's step on images, the target's too where it has any.

    Forward: of the convolutions and matrix products whose kernels have the label. Backward: of the
    gradients of these kernels and of their inputs; frozen kernels have some where what trains lies
    below them.

    Args:
      step: `step(state, batch, *fixed)`, for one device.
      plan: for its labels.
      state: that the step takes; it may hold shapes.
      per_device_batch: images, at the size of the plan's preprocessing.
      fixed: arrays or shapes.
    """
    size, devices = plan.preprocessing.size, jax.local_device_count()
    batch = {
        "image": jax.ShapeDtypeStruct((per_device_batch, size, size, 3), jnp.uint8),
        "label": jax.ShapeDtypeStruct((per_device_batch,), jnp.int32),
    }
    if plan.adaptation.acts:
        batch["target_image"] = batch["image"]
    arguments = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct((devices, *leaf.shape), leaf.dtype),
        (state, batch, *fixed),
    )
    kernels = {
        path.removesuffix("/kernel"): label
        for path, label in trees.flatten(plan.labels).items()
        if path.endswith("/kernel")
    }
    work: Work = {}
    for (layer, backward), flops in by_layer(
        parallel.compile_step(step), arguments, kernels
    ).items():
        key = (kernels[layer], backward)
        work[key] = work.get(key, 0) + flops
    return work


def by_layer(
    function: Callable[..., Any], arguments: tuple[Any, ...], layers: Collection[str]
) -> Work:
    """FLOPs of each layer, a multiplication and its addition counting as two.

    What no result needs is left out, as the compiler does. A loop counts as often as it runs.

    Args:
      function: what to trace; a mapped one counts a single device's work.
      arguments: its arguments; arrays or shapes.
      layers: paths of the layers that hold kernels, such as `stage1/block0/conv1`.
    """
    traced = jax.make_jaxpr(function)(*arguments).jaxpr
    needed, _ = partial_eval.dce_jaxpr(traced, [True] * len(traced.outvars))
    counts: Work = {}
    for stack, flops in _equations(needed, "", 1):
        for layer in layers:
            if f"/{layer}/" in f"/{stack}/":
                key = (layer, "transpose(" in stack)
                counts[key] = counts.get(key, 0) + flops
    return counts


def _equations(jaxpr: Any, stack: str, times: int) -> Iterator[tuple[str, int]]:
    """(name stack, FLOPs) of each convolution and matrix product, inner ones too."""
    for equation in jaxpr.eqns:
        name = f"{stack}/{equation.source_info.name_stack}"
        if equation.primitive.name == "conv_general_dilated":
            yield name, times * _convolution(equation)
        elif equation.primitive.name == "dot_general":
            yield name, times * _product(equation)
        repeats = equation.params["length"] if equation.primitive.name == "scan" else 1
        for value in equation.params.values():
            for inner in value if isinstance(value, tuple | list) else (value,):
                inner = getattr(inner, "jaxpr", inner)  # a closed one holds an open one
                if hasattr(inner, "eqns"):
                    yield from _equations(inner, name, times * repeats)


def _product(equation: Any) -> int:
    (contracted, _), _ = equation.params["dimension_numbers"]
    depth = math.prod(equation.invars[0].aval.shape[axis] for axis in contracted)
    return 2 * math.prod(equation.outvars[0].aval.shape) * depth


def _convolution(equation: Any) -> int:
    """Products with a padded zero, or with one between dilated pixels, do not count."""
    params = equation.params
    images, kernel = (operand.aval.shape for operand in equation.invars)
    output = equation.outvars[0].aval.shape
    numbers = params["dimension_numbers"]
    flops = 2 * output[numbers.out_spec[0]] * output[numbers.out_spec[1]]
    flops *= kernel[numbers.rhs_spec[1]]  # input channels, of one group
    for i, pads in enumerate(params["padding"]):
        starts = np.arange(output[numbers.out_spec[2 + i]]) * params["window_strides"][i] - pads[0]
        steps = np.arange(kernel[numbers.rhs_spec[2 + i]]) * params["rhs_dilation"][i]
        seen = starts[:, None] + steps
        dilation, size = params["lhs_dilation"][i], images[numbers.lhs_spec[2 + i]]
        real = (seen >= 0) & (seen <= (size - 1) * dilation) & (seen % dilation == 0)
        flops *= int(real.sum())
    return int(flops)
