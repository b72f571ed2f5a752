"""The networks in PyTorch, written from the papers: what jxfer is compared to.

`TorchResNet` has torchvision's names (He et al. 2015, table 1; the bottleneck's stride in the 3x3
convolution; Zagoruyko & Komodakis 2016 and Xie et al. 2016 change its widths and groups) and timm's
for ResNet-D (He et al. 2018, section 4.2); `TorchCifarResNet` has those of the usual CIFAR-10 code
(section 4.2, options A and B); `TorchAlexNet` (Krizhevsky 2014) and `TorchVGG` (Simonyan &
Zisserman 2014, table 1) have torchvision's. Their state dicts are what `jxfer.zoo.torch_names`
takes.
"""

import torch
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


class _Codes(nn.Module):
    """`features` in five stages, each closed by the layer of `ends`; then fc6, fc7 and scores."""

    features: nn.Sequential
    ends: tuple[int, ...]
    codes: tuple[int, int]
    """Positions in `classifier` of what follows the ReLUs of fc6 and fc7."""

    def __init__(self, layers: list[nn.Module], classifier: list[nn.Module], side: int):
        super().__init__()
        self.features = nn.Sequential(*layers)
        self.avgpool = nn.AdaptiveAvgPool2d((side, side))
        self.classifier = nn.Sequential(*classifier)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """[B, 3, H, W] -> stages [B, C, h, w], fc6 and fc7 [B, 4096], `pooled`, `logits`."""
        outputs, x = {}, images
        for i, layer in enumerate(self.features, start=1):
            x = layer(x)
            if i in self.ends:
                outputs[f"stage{self.ends.index(i) + 1}"] = x
        x = torch.flatten(self.avgpool(x), 1)
        for i, layer in enumerate(self.classifier, start=1):
            x = layer(x)
            if i in self.codes:
                outputs[f"fc{6 + self.codes.index(i)}"] = x
        return outputs | {"pooled": outputs["fc7"], "logits": x}


class TorchAlexNet(_Codes):
    """AlexNet in one tower."""

    ends = (3, 6, 8, 10, 13)
    codes = (3, 6)

    def __init__(self, num_classes: int):
        layers = [
            nn.Conv2d(3, 64, 11, 4, padding=2),
            nn.ReLU(),
            nn.MaxPool2d(3, 2),
            nn.Conv2d(64, 192, 5, padding=2),
            nn.ReLU(),
            nn.MaxPool2d(3, 2),
            nn.Conv2d(192, 384, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(384, 256, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(256, 256, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(3, 2),
        ]
        classifier = [
            nn.Dropout(),
            nn.Linear(256 * 6 * 6, 4096),
            nn.ReLU(),
            nn.Dropout(),
            nn.Linear(4096, 4096),
            nn.ReLU(),
            nn.Linear(4096, num_classes),
        ]
        super().__init__(layers, classifier, side=6)


class TorchVGG(_Codes):
    """`depths` 3x3 convolutions in each of five stages, with BatchNorm or without."""

    codes = (2, 5)

    def __init__(self, depths: tuple[int, ...], norm: bool, num_classes: int):
        layers: list[nn.Module] = []
        ends, inputs = [], 3
        for depth, width in zip(depths, (64, 128, 256, 512, 512), strict=True):
            for _ in range(depth):
                layers.append(nn.Conv2d(inputs, width, 3, padding=1))
                layers.extend([nn.BatchNorm2d(width)] if norm else [])
                layers.append(nn.ReLU())
                inputs = width
            layers.append(nn.MaxPool2d(2, 2))
            ends.append(len(layers))
        classifier = [
            nn.Linear(512 * 7 * 7, 4096),
            nn.ReLU(),
            nn.Dropout(),
            nn.Linear(4096, 4096),
            nn.ReLU(),
            nn.Dropout(),
            nn.Linear(4096, num_classes),
        ]
        super().__init__(layers, classifier, side=7)
        self.ends = tuple(ends)


def create(arch: str, num_classes: int) -> nn.Module:
    """The reference for a name of jxfer's registry, in evaluation mode, with random weights.

    Raises:
      KeyError: there is no reference for it.
    """
    if arch == "alexnet":
        return TorchAlexNet(num_classes).eval()
    vgg = {"11": (1, 1, 2, 2, 2), "13": (2,) * 5, "16": (2, 2, 3, 3, 3), "19": (2, 2, 4, 4, 4)}
    if arch.startswith("vgg"):
        depth = arch.removeprefix("vgg").removesuffix("_bn")
        return TorchVGG(vgg[depth], arch.endswith("_bn"), num_classes).eval()
    two, three = (2, 2, 2, 2), (3, 4, 6, 3)
    imagenet = {
        "resnet18": (Basic, two, {}),
        "resnet34": (Basic, three, {}),
        "resnet50": (Bottle, three, {}),
        "resnet101": (Bottle, (3, 4, 23, 3), {}),
        "resnet152": (Bottle, (3, 8, 36, 3), {}),
        "wide_resnet50_2": (Bottle, three, {"group_width": 128}),
        "wide_resnet101_2": (Bottle, (3, 4, 23, 3), {"group_width": 128}),
        "resnext50_32x4d": (Bottle, three, {"groups": 32, "group_width": 4}),
        "resnext101_32x8d": (Bottle, (3, 4, 23, 3), {"groups": 32, "group_width": 8}),
        "resnext101_64x4d": (Bottle, (3, 4, 23, 3), {"groups": 64, "group_width": 4}),
        "resnet18d": (Basic, two, {"deep": True}),
        "resnet50d": (Bottle, three, {"deep": True}),
    }
    if arch in imagenet:
        block, depths, options = imagenet[arch]
        return TorchResNet(block, depths, num_classes, **options).eval()
    cifar = {f"resnet{depth}": (depth, "A") for depth in (20, 32, 44, 56, 110)}
    cifar |= {f"{name}_b": (depth, "B") for name, (depth, _) in cifar.items()}
    return TorchCifarResNet(*cifar[arch], num_classes).eval()


def randomise(model: nn.Module, seed: int) -> None:
    """He-normal convolutions and BatchNorms that neither are trivial nor let activations explode.

    The residual branch's scale is kept small, or 50 blocks would double the variance 50 times.
    """
    generator = torch.Generator().manual_seed(seed)

    def uniform(low: float, high: float, like: Tensor) -> Tensor:
        return torch.rand(like.shape, generator=generator) * (high - low) + low

    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.Conv2d):
                fan_in = module.weight[0].numel()
                noise = torch.randn(module.weight.shape, generator=generator)
                module.weight.copy_(noise * (2 / fan_in) ** 0.5)
                if module.bias is not None:
                    module.bias.copy_(uniform(-0.3, 0.3, module.bias))
            elif isinstance(module, nn.BatchNorm2d):
                module.weight.copy_(uniform(0.2, 0.6, module.weight))
                module.bias.copy_(uniform(-0.3, 0.3, module.bias))
                module.running_mean.copy_(uniform(-0.3, 0.3, module.running_mean))
                module.running_var.copy_(uniform(0.5, 2.0, module.running_var))
            elif isinstance(module, nn.Linear):
                scale = min(0.1, (2 / module.in_features) ** 0.5)
                noise = torch.randn(module.weight.shape, generator=generator)
                module.weight.copy_(noise * scale)
                module.bias.copy_(torch.randn(module.bias.shape, generator=generator))
