"""Networks with 4096-d codes in PyTorch, written from the papers, with torchvision's names.

`TorchAlexNet` (Krizhevsky 2014) and `TorchVGG` (Simonyan & Zisserman 2014, table 1).
"""

import torch
from torch import Tensor, nn


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
