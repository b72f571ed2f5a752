"""The networks in PyTorch, by their names in the registry: what jxfer is compared to.

Their state dicts are what `jxfer.zoo.torch_names` takes.
"""

import numpy as np
import torch
from torch import Tensor, nn

from tests.torch_codes import TorchAlexNet, TorchVGG
from tests.torch_resnets import Basic, Bottle, TorchCifarResNet, TorchResNet


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


def state(arch: str, num_classes: int) -> dict[str, np.ndarray]:
    """The state dict of a randomised reference."""
    model = create(arch, num_classes)
    randomise(model, seed=0)
    return {name: tensor.numpy() for name, tensor in model.state_dict().items()}


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
