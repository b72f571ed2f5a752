"""The table of architectures: what each is called, what it is built from, and for which images.

After the families, before `registry`, which builds a model from a row.
"""

import dataclasses
from typing import Any, Literal

from jxfer.data.transforms import CIFAR, IMAGENET, Preprocessing
from jxfer.errors import UserError
from jxfer.models.alexnet import AlexNetConfig
from jxfer.models.resnet import ResNetConfig
from jxfer.models.vgg import VGGConfig


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
