"""Architecture names -> models. The seam: the rest of jxfer sees `init`, `apply` and pytrees.

After `resnet` and `heads` in the flow. A `Model` holds a Linen module; nobody outside this package
touches it. Variables are plain nested dicts `{"params": ..., "batch_stats": ...}`.
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
from jxfer.models.resnet import BasicBlock, Bottleneck, NormPaths, ResNet
from jxfer.trees import Tree


@dataclasses.dataclass(frozen=True)
class Architecture:
    """One row of the registry."""

    name: str
    family: Literal["cifar_resnet", "resnet"]
    depths: tuple[int, ...]
    block: type[BasicBlock] | type[Bottleneck]
    width: int
    shortcut: Literal["A", "B"]
    preprocessing: Preprocessing
    num_classes: int
    """Classes of the original task: 10 for CIFAR, 1000 for ImageNet."""
    parameters: int
    """Parameters with that many classes: a published figure that the tests assert."""

    @property
    def stages(self) -> tuple[str, ...]:
        """Names from the input to the last stage, the head left out: stem, stage1, ..."""
        return ("stem", *(f"stage{i + 1}" for i in range(len(self.depths))))


def _cifar(depth: int, shortcut: Literal["A", "B"], parameters: int) -> Architecture:
    blocks = (depth - 2) // 6
    return Architecture(
        name=f"resnet{depth}" + ("_b" if shortcut == "B" else ""),
        family="cifar_resnet",
        depths=(blocks,) * 3,
        block=BasicBlock,
        width=16,
        shortcut=shortcut,
        preprocessing=CIFAR,
        num_classes=10,
        parameters=parameters,
    )


def _imagenet(
    depth: int,
    depths: tuple[int, ...],
    block: type[BasicBlock] | type[Bottleneck],
    parameters: int,
) -> Architecture:
    return Architecture(
        name=f"resnet{depth}",
        family="resnet",
        depths=depths,
        block=block,
        width=64,
        shortcut="B",
        preprocessing=IMAGENET,
        num_classes=1000,
        parameters=parameters,
    )


_ROWS = (
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
    _imagenet(18, (2, 2, 2, 2), BasicBlock, 11_689_512),
    _imagenet(34, (3, 4, 6, 3), BasicBlock, 21_797_672),
    _imagenet(50, (3, 4, 6, 3), Bottleneck, 25_557_032),
    _imagenet(101, (3, 4, 23, 3), Bottleneck, 44_549_160),
    _imagenet(152, (3, 8, 36, 3), Bottleneck, 60_192_808),
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
    """The stages that are built, from the stem on."""
    num_classes: int | None
    """Classes of the head, or None for a backbone without one."""
    module: nn.Module

    def init(self, seed: int) -> Tree:
        """Random variables, NumPy float32: `{"params": ..., "batch_stats": ...}`."""
        shapes = trees.flatten(self.shapes())
        return trees.unflatten(
            {path: initialise.draw(path, leaf.shape, seed) for path, leaf in shapes.items()}
        )

    @functools.cache  # noqa: B019 - models are few and live as long as the process
    def shapes(self) -> Tree:
        """The same tree as `init`, of `jax.ShapeDtypeStruct`; nothing is computed."""
        # The shapes do not depend on the size of the image.
        image = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)
        return _plain(jax.eval_shape(self.module.init, jax.random.key(0), image))

    def apply(
        self, variables: Tree, images: jax.Array, train_norms: NormPaths = frozenset()
    ) -> tuple[dict[str, jax.Array], Tree]:
        """Runs the network.

        Args:
          variables: as from `init`.
          images: [B, H, W, 3] float32, normalised.
          train_norms: paths of norm layers that normalise by the batch and move their averages.

        Returns:
          ({stage: [B, h, w, C], "pooled": [B, C], "logits": [B, num_classes]}, new batch_stats).
        """
        outputs, changed = self.module.apply(
            variables, images, train_norms, mutable=["batch_stats"]
        )
        return outputs, _plain(changed["batch_stats"])

    def norm_paths(self) -> tuple[str, ...]:
        """Paths of all norm layers, such as `stage1/block0/norm1`."""
        flat = trees.flatten(self.shapes()["batch_stats"])
        return tuple(sorted({path.rpartition("/")[0] for path in flat}))


def create(
    arch: str,
    num_classes: int | None,
    *,
    through: str | None = None,
    sync_axis: str | None = None,
) -> Model:
    """Builds a model.

    Args:
      arch: a name in `ARCHITECTURES`.
      num_classes: classes of the head; None builds the backbone only.
      through: the last stage to build, such as "stage3"; None builds all.
      sync_axis: mesh axis over which BatchNorm shares the batch's moments; None: per device.

    Raises:
      UserError: unknown architecture or stage.
    """
    row = architecture(arch)
    last = through or row.stages[-1]
    if last not in row.stages[1:]:
        raise UserError(f"{arch} has no stage {last!r}; it has {', '.join(row.stages[1:])}")
    built = row.stages.index(last)
    module = ResNet(
        depths=row.depths[:built],
        block=row.block,
        width=row.width,
        stem="cifar" if row.family == "cifar_resnet" else "imagenet",
        shortcut=row.shortcut,
        num_classes=num_classes,
        axis_name=sync_axis,
    )
    return Model(row, row.stages[: built + 1], num_classes, module)


def _plain(tree: Any) -> Any:
    return {key: _plain(value) for key, value in tree.items()} if hasattr(tree, "items") else tree
