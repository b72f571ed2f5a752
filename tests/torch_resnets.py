"""Residual networks in PyTorch, written from the papers.

`TorchResNet` has torchvision's names (He et al. 2015, table 1; the bottleneck's stride in the 3x3
convolution; Zagoruyko & Komodakis 2016 and Xie et al. 2016 change its widths and groups) and timm's
for ResNet-D (He et al. 2018, section 4.2); `TorchCifarResNet` has those of the usual CIFAR-10 code
(section 4.2, options A and B).
"""

from torch import Tensor, nn
from torch.nn import functional


class Basic(nn.Module):
    """Two 3x3 convolutions; `shortcut_name` is what the projection is called."""

    expansion = 1

    def __init__(
        self,
        inputs: int,
        width: int,
        stride: int,
        shortcut_name: str,
        option: str,
        groups: int = 1,
        group_width: int = 64,
    ):
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, width, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.stride, self.extra, self.name = stride, width - inputs, ""
        if stride != 1 or inputs != width:
            self.name = "A" if option == "A" else shortcut_name
        if self.name == shortcut_name:
            self.add_module(shortcut_name, _projection(inputs, width, stride, option))

    def forward(self, x: Tensor) -> Tensor:
        y = functional.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        if self.name == "A":
            half = self.extra // 2
            x = functional.pad(
                x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, half, self.extra - half)
            )
        elif self.name:
            x = self.get_submodule(self.name)(x)
        return functional.relu(x + y)


class Bottle(nn.Module):
    """1x1, 3x3 with the stride and the groups, 1x1 to four times the width."""

    expansion = 4

    def __init__(
        self,
        inputs: int,
        width: int,
        stride: int,
        shortcut_name: str,
        option: str,
        groups: int = 1,
        group_width: int = 64,
    ):
        super().__init__()
        inner, out = groups * (width * group_width // 64), width * 4
        self.conv1 = nn.Conv2d(inputs, inner, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(inner)
        self.conv2 = nn.Conv2d(inner, inner, 3, stride, padding=1, groups=groups, bias=False)
        self.bn2 = nn.BatchNorm2d(inner)
        self.conv3 = nn.Conv2d(inner, out, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(out)
        if stride != 1 or inputs != out:
            self.downsample = _projection(inputs, out, stride, option)

    def forward(self, x: Tensor) -> Tensor:
        y = functional.relu(self.bn1(self.conv1(x)))
        y = functional.relu(self.bn2(self.conv2(y)))
        y = self.bn3(self.conv3(y))
        return functional.relu(y + (self.downsample(x) if hasattr(self, "downsample") else x))


def _projection(inputs: int, out: int, stride: int, option: str) -> nn.Sequential:
    if option == "D":
        pool = nn.AvgPool2d(2, 2, ceil_mode=True, count_include_pad=False)
        return nn.Sequential(
            pool if stride == 2 else nn.Identity(),
            nn.Conv2d(inputs, out, 1, bias=False),
            nn.BatchNorm2d(out),
        )
    return nn.Sequential(nn.Conv2d(inputs, out, 1, stride, bias=False), nn.BatchNorm2d(out))


class _ResNet(nn.Module):
    """Stages and head; subclasses add the stem before them, so that the names come in order."""

    def _add_stages(
        self,
        block: type[Basic] | type[Bottle],
        depths: tuple[int, ...],
        width: int,
        shortcut_name: str,
        option: str,
        groups: int = 1,
        group_width: int = 64,
    ) -> int:
        inputs = width
        for i, depth in enumerate(depths):
            blocks = []
            for j in range(depth):
                stride = 2 if i > 0 and j == 0 else 1
                blocks.append(
                    block(inputs, width * 2**i, stride, shortcut_name, option, groups, group_width)
                )
                inputs = width * 2**i * block.expansion
            self.add_module(f"layer{i + 1}", nn.Sequential(*blocks))
        self.depths = depths
        return inputs

    def stem(self, x: Tensor) -> Tensor:
        return functional.relu(self.bn1(self.conv1(x)))

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """[B, 3, H, W] -> every stage [B, C, h, w] by jxfer's names, `pooled` and `logits`."""
        x = self.stem(images)
        outputs = {"stem": x}
        for i in range(1, len(self.depths) + 1):
            x = outputs[f"stage{i}"] = self.get_submodule(f"layer{i}")(x)
        outputs["pooled"] = x.mean((2, 3))
        outputs["logits"] = self.get_submodule(self.head)(outputs["pooled"])
        return outputs


class TorchResNet(_ResNet):
    """The ImageNet family in torchvision's layout."""

    head = "fc"

    def __init__(
        self,
        block: type[Basic] | type[Bottle],
        depths: tuple[int, ...],
        num_classes: int,
        groups: int = 1,
        group_width: int = 64,
        deep: bool = False,
    ):
        super().__init__()
        self.conv1: nn.Module = nn.Conv2d(3, 64, 7, 2, padding=3, bias=False)
        if deep:
            self.conv1 = nn.Sequential(
                nn.Conv2d(3, 32, 3, 2, padding=1, bias=False),
                nn.BatchNorm2d(32),
                nn.ReLU(),
                nn.Conv2d(32, 32, 3, padding=1, bias=False),
                nn.BatchNorm2d(32),
                nn.ReLU(),
                nn.Conv2d(32, 64, 3, padding=1, bias=False),
            )
        self.bn1 = nn.BatchNorm2d(64)
        option = "D" if deep else "B"
        channels = self._add_stages(block, depths, 64, "downsample", option, groups, group_width)
        self.fc = nn.Linear(channels, num_classes)

    def stem(self, x: Tensor) -> Tensor:
        return functional.max_pool2d(super().stem(x), 3, 2, padding=1)


class TorchCifarResNet(_ResNet):
    """The CIFAR family, `depth` = 6n + 2, with option A or B shortcuts."""

    head = "linear"

    def __init__(self, depth: int, option: str, num_classes: int):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        channels = self._add_stages(Basic, ((depth - 2) // 6,) * 3, 16, "shortcut", option)
        self.linear = nn.Linear(channels, num_classes)
