"""Features: outputs of a frozen network on a source, block by block, in the source's order.

After `train.evaluate` in the flow. All outputs of a pass come from one compiled step. The block
that a row belongs to is fixed by its position, so a pass that starts at a later block gives the
same bits as one that starts at the first.
"""

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from jxfer.data import loader
from jxfer.data.readers import Source, Subset
from jxfer.data.transforms import Preprocessing
from jxfer.errors import UserError
from jxfer.models.registry import Model
from jxfer.train import parallel, step
from jxfer.train.evaluate import one_late
from jxfer.trees import Tree

Form = Literal["pooled", "flat", "spatial"]
"""What becomes of a map [h, w, C]: its mean over positions [C], what a linear head sees; a vector
[h * w * C]; or the map. A vector, such as `pooled` or `logits`, is the same in every form."""


def output_names(model: Model) -> tuple[str, ...]:
    """What a pass can give: every stage, `pooled`, and `logits` where there is a head."""
    return (*model.stages, "pooled", *(["logits"] if model.num_classes else []))


def row_shapes(
    model: Model, preprocessing: Preprocessing, outputs: Sequence[str], form: Form = "pooled"
) -> dict[str, tuple[int, ...]]:
    """Shape of one row of each output; nothing is computed.

    Raises:
      UserError: no output is named, the model has no such output, or its images are too small.
    """
    names = output_names(model)
    if not outputs:
        raise UserError(f"--outputs: name at least one of {', '.join(names)}")
    for output in outputs:
        if output not in names:
            raise UserError(
                f"{model.architecture.name} has no output {output!r}; it has {', '.join(names)}"
            )
    size = preprocessing.size
    image = {"image": jax.ShapeDtypeStruct((1, size, size, 3), jnp.uint8)}
    outputs_step = step.make_outputs_step(model, preprocessing, outputs, form)
    shapes = jax.eval_shape(outputs_step, model.shapes(), image)
    return {name: shapes[name].shape[1:] for name in outputs}


def rows_per_block(examples: int, batch_size: int) -> int:
    """Rows of each block but the last: `batch_size`, or the whole source where that is smaller,
    rounded up to a multiple of the number of devices.

    Raises:
      UserError: the batch size is below 1.
    """
    check_batch_size(batch_size)
    devices = jax.device_count()
    return -(-max(1, min(batch_size, examples)) // devices) * devices


def check_batch_size(batch_size: int) -> None:
    """Raises UserError where it is below 1."""
    if batch_size < 1:
        raise UserError(f"--batch-size {batch_size}: it must be at least 1")


def blocks(
    model: Model,
    preprocessing: Preprocessing,
    variables: Tree,
    source: Source,
    outputs: Sequence[str],
    *,
    form: Form = "pooled",
    batch_size: int = 128,
    start: int = 0,
) -> Iterator[dict[str, np.ndarray]]:
    """Consecutive rows of each output, in the source's order, every example once.

    Every norm runs on its stored averages and nothing is augmented.

    Args:
      variables: on the host.
      outputs: names among `output_names(model)`.
      form: of the rows of a map.
      batch_size: examples per step over all devices; see `rows_per_block`.
      start: the first row, where a block begins.

    Yields:
      float32 [n, ...] of each output, the same n for all.

    Raises:
      UserError: as `row_shapes`; there are several hosts; while iterating, an image cannot be read.
    """
    row_shapes(model, preprocessing, outputs, form)
    if jax.process_count() > 1:
        raise UserError("features are extracted on one host; start it on one alone")
    size = rows_per_block(len(source), batch_size)
    assert start == len(source) or start % size == 0, f"no block begins at row {start}"
    batches = loader.eval_batches(
        Subset(source, range(start, len(source))), preprocessing, batch_size=size
    )
    return _run(_compiled(model, preprocessing, tuple(outputs), form), variables, batches)


def extract(
    model: Model,
    preprocessing: Preprocessing,
    variables: Tree,
    source: Source,
    outputs: Sequence[str],
    *,
    form: Form = "pooled",
    batch_size: int = 128,
) -> dict[str, np.ndarray]:
    """All rows of each output, float32 [N, ...], in memory; otherwise as `blocks`."""
    shapes = row_shapes(model, preprocessing, outputs, form)
    arrays = {name: np.empty((len(source), *shape), np.float32) for name, shape in shapes.items()}
    filled = 0
    for block in blocks(
        model, preprocessing, variables, source, outputs, form=form, batch_size=batch_size
    ):
        rows = len(block[outputs[0]])
        for name, array in arrays.items():
            array[filled : filled + rows] = block[name]
        filled += rows
    assert filled == len(source)
    return arrays


@functools.lru_cache(maxsize=8)
def _compiled(
    model: Model, preprocessing: Preprocessing, outputs: tuple[str, ...], form: Form
) -> Callable[..., Any]:
    return parallel.compile_step(step.make_outputs_step(model, preprocessing, outputs, form))


def _run(
    outputs_step: Callable[..., Any], variables: Tree, batches: Iterator[dict[str, np.ndarray]]
) -> Iterator[dict[str, np.ndarray]]:
    replicated = parallel.replicate(variables)
    masked = ({"image": batch["image"], "mask": batch["mask"]} for batch in batches)
    under_way = (
        (outputs_step(replicated, batch), batch["mask"]) for batch in parallel.shard(masked)
    )
    for found, mask in one_late(under_way):
        real = parallel.gather(mask) > 0
        yield {name: parallel.gather(array)[real] for name, array in found.items()}
