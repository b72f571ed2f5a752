"""A classifier as a convolution: one pass over a larger image gives a map of scores.

After `registry` in the flow. A fully connected layer over the last map is a convolution whose
window is that map (Sermanet et al. 2013, "OverFeat", section 3.5; Long et al. 2015, "Fully
Convolutional Networks", section 3.1), and the mean over a map of k x k positions is a k x k average
window. On images of the training size there is one score, the classifier's own; on larger ones
there is one for every place of the window.
"""

import dataclasses

import jax
import jax.numpy as jnp

from jxfer import trees
from jxfer.errors import UserError
from jxfer.models.layers import Window
from jxfer.models.registry import Model
from jxfer.models.resnet import ResNetConfig
from jxfer.trees import Tree


@dataclasses.dataclass(frozen=True)
class ScoreGeometry:
    """Which pixels a score sees, the same in both directions.

    Score (i, j) depends on the pixels of rows [i * stride - offset, i * stride - offset + window),
    of columns the same with j, and on nothing else. Where that square lies inside the image, no
    padding reaches the score. So let a crop start at (a * stride, b * stride) of an image: score
    (i, j) of the crop is score (i + a, j + b) of the image, up to rounding, wherever its square
    lies inside the crop. Where the square sticks out, the crop sees zeros in its place and the
    image sees pixels, so the two differ: above all, the one score of an image of the training size
    is that of no place in a larger image, since the padding is part of it.
    """

    window: int
    """Side of the square, in pixels."""
    stride: int
    """Pixels between two scores."""
    offset: int
    """Pixels by which the first square starts above and left of the image."""


def convolutional(
    model: Model, variables: Tree, image_size: int | None = None
) -> tuple[Model, Tree]:
    """Turns every fully connected layer, and the mean over positions, into a convolution.

    The weights are the same: fc6 and fc7 are stored as kernels [k, k, C, K], and the head's
    [C, K] become [1, 1, C, K].

    Args:
      model: as from `registry.create`; without a head its features become maps.
      variables: of `model`.
      image_size: the size that it was trained on, the architecture's own unless given. It fixes
        the window: with a last map of k x k, means are taken over k x k positions.

    Returns:
      (model, variables). `apply` gives `logits` as a map [B, h, w, num_classes]: [B, 1, 1,
      num_classes], equal to the classifier's, on images of `image_size`; larger on larger images,
      of any height and width; a UserError on smaller ones. `pooled`, fc6 and fc7 are maps too.
      `score_geometry` says what a score sees.

    Raises:
      UserError: the images are too small for the architecture; fc6 was trained on another map than
        its own, which no convolution repeats; the model is convolutional already.
    """
    name = model.architecture.name
    if model.training_size is not None:
        raise UserError(f"this {name} is convolutional already")
    size = image_size or model.architecture.preprocessing.size
    window = _window(model, size)
    module = model.module.clone(window=window)
    converted = dataclasses.replace(model, module=module, training_size=size)
    flat = trees.flatten(variables)
    for path, leaf in flat.items():
        if path.startswith("params/head/") and leaf.ndim == 2:
            flat[path] = leaf.reshape(1, 1, *leaf.shape)
    return converted, trees.unflatten(flat)


def score_geometry(model: Model, image_size: int | None = None) -> ScoreGeometry:
    """What a score of `convolutional(model, variables, image_size)` sees.

    Args:
      model: before or after the conversion.
      image_size: as for `convolutional`; a converted model knows its own.

    Raises:
      UserError: as `convolutional`.
    """
    size = image_size or model.training_size or model.architecture.preprocessing.size
    config = model.architecture.config
    windows = [
        window
        for stage in model.stages
        if not stage.startswith("fc")
        for window in config.windows(stage)
    ]
    if model.num_classes is not None and model.head.kind == "conv":
        windows += [Window(3, 1, 1)] * len(model.head.hidden)
    windows.append(Window(_window(model, size), 1, 0))  # the mean, or fc6
    seen, stride, offset = 1, 1, 0
    for window in windows:  # Dumoulin & Visin 2016, "A guide to convolution arithmetic", section 5
        seen += (window.size - 1) * stride
        offset += window.padding * stride
        stride *= window.stride
    return ScoreGeometry(seen, stride, offset)


def _window(model: Model, image_size: int) -> int:
    """Side of the last map before the classifier, for images of the training size."""
    arch = model.architecture
    arch.check_size(image_size)
    last = [stage for stage in model.stages if not stage.startswith("fc")][-1]
    backbone = model.module.clone(
        stages=arch.stages[: arch.stages.index(last) + 1], num_classes=None, window=None
    )
    image = jax.ShapeDtypeStruct((1, image_size, image_size, 3), jnp.float32)
    outputs, _ = jax.eval_shape(backbone.init_with_output, jax.random.key(0), image)
    side = outputs[last].shape[1]
    if isinstance(arch.config, ResNetConfig) or last == model.stages[-1]:
        return side
    if side != arch.config.side:
        raise UserError(
            f"{arch.name} at {image_size} px has a last map of {side}x{side}, which it averages to "
            f"{arch.config.side}x{arch.config.side} before fc6, with windows that depend on the "
            "image's size: no convolution repeats that; train it at "
            f"{arch.preprocessing.size} px, or cut it with --model.through {last}"
        )
    return side
