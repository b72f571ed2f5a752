"""ResNets in PyTorch, written from the papers with torchvision's names: what jxfer is compared to.

`TorchResNet` has torchvision's layout (He et al. 2015, table 1; the bottleneck's stride in the
3x3 convolution), `TorchCifarResNet` that of the usual CIFAR-10 code (section 4.2, options A and B).
Their state dicts are what `jxfer.zoo.torch_names` takes.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional


class Basic(nn.Module):
    """Two 3x3 convolutions; `shortcut_name` is what the projection is called."""

    expansion = 1

    def __init__(self, inputs: int, width: int, stride: int, shortcut_name: str, option: str):
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, width, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.stride, self.extra, self.name = stride, width - inputs, ""
        if stride != 1 or inputs != width:
            self.name = "A" if option == "A" else shortcut_name
        if self.name == shortcut_name:
            self.add_module(shortcut_name, _projection(inputs, width, stride))

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
    """1x1, 3x3 with the stride, 1x1 to four times the width."""

    expansion = 4

    def __init__(self, inputs: int, width: int, stride: int, shortcut_name: str, option: str):
        super().__init__()
        out = width * 4
        self.conv1 = nn.Conv2d(inputs, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, out, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(out)
        if stride != 1 or inputs != out:
            self.downsample = _projection(inputs, out, stride)

    def forward(self, x: Tensor) -> Tensor:
        y = functional.relu(self.bn1(self.conv1(x)))
        y = functional.relu(self.bn2(self.conv2(y)))
        y = self.bn3(self.conv3(y))
        return functional.relu(y + (self.downsample(x) if hasattr(self, "downsample") else x))


def _projection(inputs: int, out: int, stride: int) -> nn.Sequential:
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
    ) -> int:
        inputs = width
        for i, depth in enumerate(depths):
            blocks = []
            for j in range(depth):
                stride = 2 if i > 0 and j == 0 else 1
                blocks.append(block(inputs, width * 2**i, stride, shortcut_name, option))
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
        self, block: type[Basic] | type[Bottle], depths: tuple[int, ...], num_classes: int
    ):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, 7, 2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        channels = self._add_stages(block, depths, 64, "downsample", "B")
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


def create(arch: str, num_classes: int) -> _ResNet:
    """The reference for a name of jxfer's registry, in evaluation mode, with random weights.

    Raises:
      KeyError: there is no reference for it.
    """
    depths = {
        "resnet18": (Basic, (2, 2, 2, 2)),
        "resnet34": (Basic, (3, 4, 6, 3)),
        "resnet50": (Bottle, (3, 4, 6, 3)),
        "resnet101": (Bottle, (3, 4, 23, 3)),
        "resnet152": (Bottle, (3, 8, 36, 3)),
    }
    if arch in depths:
        return TorchResNet(*depths[arch], num_classes).eval()
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
            elif isinstance(module, nn.BatchNorm2d):
                module.weight.copy_(uniform(0.2, 0.6, module.weight))
                module.bias.copy_(uniform(-0.3, 0.3, module.bias))
                module.running_mean.copy_(uniform(-0.3, 0.3, module.running_mean))
                module.running_var.copy_(uniform(0.5, 2.0, module.running_var))
            elif isinstance(module, nn.Linear):
                module.weight.copy_(torch.randn(module.weight.shape, generator=generator) * 0.1)
                module.bias.copy_(torch.randn(module.bias.shape, generator=generator))
