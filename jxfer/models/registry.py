"""Architecture names -> models. The seam: the rest of jxfer sees `init`, `apply` and pytrees.

After the families in the flow. A `Model` holds a Linen module; nobody outside this package touches
it. Variables are plain nested dicts `{"params": ..., "batch_stats": ...}`.
"""

import dataclasses
import difflib
import functools
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from jxfer import trees
from jxfer.data.transforms import CIFAR, IMAGENET, Preprocessing
from jxfer.errors import UserError
from jxfer.models import initialise
from jxfer.models.alexnet import AlexNet, AlexNetConfig
from jxfer.models.heads import HeadConfig
from jxfer.models.layers import NORM_INPUTS, TrainLayers
from jxfer.models.resnet import ResNet, ResNetConfig
from jxfer.models.vgg import VGG, VGGConfig
from jxfer.trees import Tree

_MODULES: dict[type, type[nn.Module]] = {
    ResNetConfig: ResNet,
    AlexNetConfig: AlexNet,
    VGGConfig: VGG,
}


@dataclasses.dataclass(frozen=True)
class Architecture:
    """One row of the registry."""

    name: str
    config: ResNetConfig | AlexNetConfig | VGGConfig
    """What its family's module is built from."""
    parameters: int
    """Parameters with `num_classes` classes: a published figure that the tests assert."""
    preprocessing: Preprocessing = IMAGENET
    num_classes: int = 1000
    """Classes of the original task: 10 for CIFAR, 1000 for ImageNet."""
    smallest: int = 1
    """Smallest side of an image, in pixels; below it, some map has no position left."""

    @property
    def stages(self) -> tuple[str, ...]:
        """Names from the input to the last stage, the head left out: stem, stage1, ..."""
        return self.config.stages

    def check_size(self, size: int) -> None:
        """Raises UserError if images of this side, in pixels, are too small."""
        if size < self.smallest:
            raise UserError(
                f"{self.name} needs images of at least {self.smallest} px, not {size}; "
                "set --model.image-size"
            )


def _cifar(depth: int, shortcut: Literal["A", "B"], parameters: int) -> Architecture:
    blocks = (depth - 2) // 6
    return Architecture(
        name=f"resnet{depth}" + ("_b" if shortcut == "B" else ""),
        config=ResNetConfig((blocks,) * 3, "basic", width=16, stem="cifar", shortcut=shortcut),
        preprocessing=CIFAR,
        num_classes=10,
        parameters=parameters,
    )


_DEPTHS = {
    18: (2, 2, 2, 2),
    34: (3, 4, 6, 3),
    50: (3, 4, 6, 3),
    101: (3, 4, 23, 3),
    152: (3, 8, 36, 3),
}


def _imagenet(name: str, depth: int, parameters: int, **options: Any) -> Architecture:
    config = ResNetConfig(_DEPTHS[depth], "basic" if depth < 50 else "bottleneck", **options)
    return Architecture(name, config, parameters)


def _resnet_d(depth: int, parameters: int) -> Architecture:
    row = _imagenet(f"resnet{depth}d", depth, parameters, stem="deep", shortcut="D")
    return dataclasses.replace(
        row, preprocessing=dataclasses.replace(IMAGENET, interpolation="bicubic")
    )


def _vgg(
    depth: int, depths: tuple[int, int, int, int, int], parameters: int, normed_parameters: int
) -> tuple[Architecture, Architecture]:
    """Without and with BatchNorm."""
    plain, normed = VGGConfig(depths), VGGConfig(depths, norm=True)
    return (
        Architecture(f"vgg{depth}", plain, parameters, smallest=32),
        Architecture(f"vgg{depth}_bn", normed, normed_parameters, smallest=32),
    )


_ROWS: tuple[Architecture, ...] = (
    _cifar(20, "A", 269_722),
    _cifar(32, "A", 464_154),
    _cifar(44, "A", 658_586),
    _cifar(56, "A", 853_018),
    _cifar(110, "A", 1_727_962),
    _cifar(20, "B", 272_474),
    _cifar(32, "B", 466_906),
    _cifar(44, "B", 661_338),
    _cifar(56, "B", 855_770),
    _cifar(110, "B", 1_730_714),
    _imagenet("resnet18", 18, 11_689_512),
    _imagenet("resnet34", 34, 21_797_672),
    _imagenet("resnet50", 50, 25_557_032),
    _imagenet("resnet101", 101, 44_549_160),
    _imagenet("resnet152", 152, 60_192_808),
    _imagenet("wide_resnet50_2", 50, 68_883_240, group_width=128),
    _imagenet("wide_resnet101_2", 101, 126_886_696, group_width=128),
    _imagenet("resnext50_32x4d", 50, 25_028_904, groups=32, group_width=4),
    _imagenet("resnext101_32x8d", 101, 88_791_336, groups=32, group_width=8),
    _imagenet("resnext101_64x4d", 101, 83_455_272, groups=64, group_width=4),
    _resnet_d(18, 11_708_744),
    _resnet_d(50, 25_576_264),
    Architecture("alexnet", AlexNetConfig(), 61_100_840, smallest=63),
    *_vgg(11, (1, 1, 2, 2, 2), 132_863_336, 132_868_840),
    *_vgg(13, (2, 2, 2, 2, 2), 133_047_848, 133_053_736),
    *_vgg(16, (2, 2, 3, 3, 3), 138_357_544, 138_365_992),
    *_vgg(19, (2, 2, 4, 4, 4), 143_667_240, 143_678_248),
)
ARCHITECTURES: dict[str, Architecture] = {row.name: row for row in _ROWS}


def list_architectures() -> list[str]:
    """Names that `create` takes."""
    return list(ARCHITECTURES)


def architecture(name: str) -> Architecture:
    """Looks a name up.

    Raises:
      UserError: no such architecture; the message offers the nearest names.
    """
    if name in ARCHITECTURES:
        return ARCHITECTURES[name]
    near = difflib.get_close_matches(name, ARCHITECTURES, n=3) or list(ARCHITECTURES)
    raise UserError(f"unknown architecture {name!r}; did you mean {', '.join(near)}?")


@dataclasses.dataclass(frozen=True)
class Model:
    """An architecture built up to a stage, with or without a head. Hashable: a static argument."""

    architecture: Architecture
    stages: tuple[str, ...]
    """The stages that are built, from the first on."""
    num_classes: int | None
    """Classes of the head, or None for a backbone without one."""
    head: HeadConfig
    """Form of the head; without meaning where there is none."""
    module: nn.Module
    training_size: int | None = None
    """Of a convolutional model alone (`dense.convolutional`): the side of the images, in pixels,
    whose scores it repeats at each position."""
    compute_dtype: Literal["float32", "bfloat16"] = "float32"
    """Of the activations; variables and logits are float32 in any case."""

    def init(self, seed: int) -> Tree:
        """Random variables, NumPy float32: `{"params": ..., "batch_stats": ...}`."""
        shapes = self.shapes()
        return {
            kind: trees.unflatten(
                {
                    path: initialise.draw(f"{kind}/{path}", leaf.shape, seed)
                    for path, leaf in trees.flatten(shapes[kind]).items()
                }
            )
            for kind in shapes
        }

    def shapes(self) -> Tree:
        """The same tree as `init`, of `jax.ShapeDtypeStruct`; nothing is computed."""
        collections = self._collections()
        return {kind: collections.get(kind, {}) for kind in ("batch_stats", "params")}

    def apply(
        self,
        variables: Tree,
        images: jax.Array,
        train_layers: TrainLayers = frozenset(),
        keys: jax.Array | None = None,
        after: str | None = None,
    ) -> tuple[dict[str, jax.Array], Tree]:
        """Runs the network, or what comes after one of its outputs.

        Args:
          variables: as from `init`; no "batch_stats" is the same as empty ones.
          images: [B, H, W, 3] float32, normalised; with `after`, that output instead.
          train_layers: paths of the layers in train mode: norms normalise by the batch and move
            their averages, dropout drops.
          keys: [B] typed PRNG keys, one an example: all randomness of the dropout layers in
            `train_layers`. Not needed where there are none.
          after: a stage, or `pooled`, whose output `images` is: only what follows it is run.

        Returns:
          (outputs, new batch_stats). Outputs by name: each stage, [B, h, w, C] after its last
          ReLU, or [B, C] for a fully connected one after ReLU and its dropout; `pooled` [B, C],
          the mean over positions of the last stage; and with a head `logits` [B, num_classes],
          float32. A convolutional model has maps [B, h, w, C] for all of these. What the caller
          does not use, the compiler removes.

        Raises:
          UserError: the images are too small.
        """
        if after is None:
            self.architecture.check_size(min(images.shape[1:3]))
        outputs, changed = self.module.apply(
            variables,
            images.astype(self.compute_dtype),
            train_layers,
            keys,
            after,
            mutable=["batch_stats"],
        )
        return outputs, _plain(changed.get("batch_stats", {}))

    def norm_inputs(self, variables: Tree, images: jax.Array) -> dict[str, jax.Array]:
        """What each norm layer sees where all of them run on their stored averages.

        Args:
          variables: as from `init`.
          images: [B, H, W, 3] float32, normalised.

        Returns:
          [B, h, w, C] by the path of the layer, as in `norm_paths`; {} for a network without norms.
        """
        _, seen = self.module.apply(
            variables, images.astype(self.compute_dtype), mutable=[NORM_INPUTS]
        )
        layers = trees.flatten(_plain(seen.get(NORM_INPUTS, {})))
        return {path.rpartition("/")[0]: x for path, (x,) in layers.items()}

    def synchronised(self, axis: str) -> "Model":
        """The same with every norm's moments over the devices of a mesh axis."""
        return dataclasses.replace(self, module=self.module.clone(axis_name=axis))

    def rematerialised(self) -> "Model":
        """The same, with each stage computed again in the backward pass to save memory."""
        return dataclasses.replace(self, module=self.module.clone(remat=True))

    def norm_paths(self) -> tuple[str, ...]:
        """Paths of all norm layers, such as `stage1/block0/norm1`."""
        return _layers(self._collections().get("batch_stats", {}))

    def dropout_paths(self) -> tuple[str, ...]:
        """Paths of all dropout layers, such as `fc6/dropout`; those of rate 0 are left out."""
        return _layers(self._collections().get("dropout", {}))

    @functools.cache  # noqa: B019 - models are few and live as long as the process
    def _collections(self) -> Tree:
        size = self.training_size or self.architecture.preprocessing.size
        image = jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32)
        return _plain(jax.eval_shape(self.module.init, jax.random.key(0), image))


def create(
    arch: str,
    num_classes: int | None,
    *,
    through: str | None = None,
    head: HeadConfig = HeadConfig(),
    sync_axis: str | None = None,
) -> Model:
    """Builds a model.

    Args:
      arch: a name in `ARCHITECTURES`.
      num_classes: classes of the head; None builds the backbone only.
      through: the last stage to build, such as "stage3"; None builds all.
      head: form of the head.
      sync_axis: mesh axis over which BatchNorm shares the batch's moments; None: per device.

    Raises:
      UserError: unknown architecture or stage; a head that needs a map on a stage without one.
    """
    row = architecture(arch)
    choices = [stage for stage in row.stages if stage != "stem"]
    last = through or row.stages[-1]
    if last not in choices:
        raise UserError(f"{arch} has no stage {last!r}; it has {', '.join(choices)}")
    if num_classes is not None and head.kind == "conv" and last.startswith("fc"):
        raise UserError(
            f"the conv head needs a map, and {last} of {arch} is a vector: set --model.through "
            "stage5"
        )
    stages = row.stages[: row.stages.index(last) + 1]
    module = _MODULES[type(row.config)](row.config, stages, num_classes, head, sync_axis)
    return Model(row, stages, num_classes, head, module)


def _layers(collection: Tree) -> tuple[str, ...]:
    """Paths of the layers that own the leaves of a collection."""
    return tuple(sorted({path.rpartition("/")[0] for path in trees.flatten(collection)}))


def _plain(tree: Any) -> Any:
    return {key: _plain(value) for key, value in tree.items()} if hasattr(tree, "items") else tree
