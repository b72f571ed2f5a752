"""The weights that torchvision publishes, by its own names.

After `download` and `published`. File names, resize sizes and accuracies (ImageNet-1k validation,
top-1, 224 px) are those that torchvision's source states beside each network; the eight hex digits
in a file name start its sha256.
"""

import dataclasses
import importlib.util

from jxfer import disk
from jxfer.data.transforms import IMAGENET
from jxfer.errors import UserError
from jxfer.zoo import imagenet
from jxfer.zoo.card import Card
from jxfer.zoo.published import Published

PREFIX = "torchvision:"
BASE_URL = "https://download.pytorch.org/models"
WEIGHTS: dict[str, dict[str, tuple[str, int, float]]] = {
    "resnet18": {
        "IMAGENET1K_V1": ("resnet18-f37072fd.pth", 256, 69.758),
    },
    "resnet34": {
        "IMAGENET1K_V1": ("resnet34-b627a593.pth", 256, 73.314),
    },
    "resnet50": {
        "IMAGENET1K_V1": ("resnet50-0676ba61.pth", 256, 76.13),
        "IMAGENET1K_V2": ("resnet50-11ad3fa6.pth", 232, 80.858),
    },
    "resnet101": {
        "IMAGENET1K_V1": ("resnet101-63fe2227.pth", 256, 77.374),
        "IMAGENET1K_V2": ("resnet101-cd907fc2.pth", 232, 81.886),
    },
    "resnet152": {
        "IMAGENET1K_V1": ("resnet152-394f9c45.pth", 256, 78.312),
        "IMAGENET1K_V2": ("resnet152-f82ba261.pth", 232, 82.284),
    },
    "wide_resnet50_2": {
        "IMAGENET1K_V1": ("wide_resnet50_2-95faca4d.pth", 256, 78.468),
        "IMAGENET1K_V2": ("wide_resnet50_2-9ba9bcbe.pth", 232, 81.602),
    },
    "wide_resnet101_2": {
        "IMAGENET1K_V1": ("wide_resnet101_2-32ee1156.pth", 256, 78.848),
        "IMAGENET1K_V2": ("wide_resnet101_2-d733dc28.pth", 232, 82.51),
    },
    "resnext50_32x4d": {
        "IMAGENET1K_V1": ("resnext50_32x4d-7cdf4587.pth", 256, 77.618),
        "IMAGENET1K_V2": ("resnext50_32x4d-1a0047aa.pth", 232, 81.198),
    },
    "resnext101_32x8d": {
        "IMAGENET1K_V1": ("resnext101_32x8d-8ba56ff5.pth", 256, 79.312),
        "IMAGENET1K_V2": ("resnext101_32x8d-110c445d.pth", 232, 82.834),
    },
    "resnext101_64x4d": {
        "IMAGENET1K_V1": ("resnext101_64x4d-173b62eb.pth", 232, 83.246),
    },
    "alexnet": {
        "IMAGENET1K_V1": ("alexnet-owt-7be5be79.pth", 256, 56.522),
    },
    "vgg11": {
        "IMAGENET1K_V1": ("vgg11-8a719046.pth", 256, 69.02),
    },
    "vgg11_bn": {
        "IMAGENET1K_V1": ("vgg11_bn-6002323d.pth", 256, 70.37),
    },
    "vgg13": {
        "IMAGENET1K_V1": ("vgg13-19584684.pth", 256, 69.928),
    },
    "vgg13_bn": {
        "IMAGENET1K_V1": ("vgg13_bn-abd245e5.pth", 256, 71.586),
    },
    "vgg16": {
        "IMAGENET1K_V1": ("vgg16-397923af.pth", 256, 71.592),
    },
    "vgg16_bn": {
        "IMAGENET1K_V1": ("vgg16_bn-6c64b313.pth", 256, 73.36),
    },
    "vgg19": {
        "IMAGENET1K_V1": ("vgg19-dcbb9e9d.pth", 256, 72.376),
    },
    "vgg19_bn": {
        "IMAGENET1K_V1": ("vgg19_bn-c79401a0.pth", 256, 74.218),
    },
}
"""Architecture -> torchvision's name of the weights -> (file, resize, accuracy in %); the last of
an architecture is torchvision's default."""


def fetch(name: str) -> Published:
    """Finds the file, downloads it once into `cache_dir()/torchvision`, and says what it is.

    Args:
      name: `torchvision:ARCH`, for torchvision's default, or `torchvision:ARCH.WEIGHTS`.

    Raises:
      UserError: no such weights, PyTorch is not installed, or the download fails.
    """
    from jxfer.zoo import download  # with `requests`, which is slow to import and rarely needed

    arch, _, version = name.removeprefix(PREFIX).partition(".")
    if arch not in WEIGHTS:
        raise UserError(f"{name}: torchvision has no such weights; there are {', '.join(WEIGHTS)}")
    versions = WEIGHTS[arch]
    version = version or list(versions)[-1]
    if version not in versions:
        raise UserError(f"{name}: torchvision has only {', '.join(versions)} of {arch}")
    if importlib.util.find_spec("torch") is None:
        raise UserError(f"{name}: reading .pth files needs torch: pip install 'jxfer[torch]'")
    file, resize, accuracy = versions[version]
    url = f"{BASE_URL}/{file}"
    digits = file.removesuffix(".pth").rpartition("-")[2]
    path = download.fetch(url, disk.cache_dir() / "torchvision" / file, digits)
    card = Card(
        name=f"{PREFIX}{arch}.{version}",
        arch=arch,
        class_names=imagenet.class_names(),
        preprocessing=dataclasses.replace(IMAGENET, crop=IMAGENET.size / resize),
        dataset="ImageNet-1k",
        licence="not stated for the weights; torchvision's code is BSD-3-Clause",
        source=url,
        reported_accuracy=accuracy / 100,
    )
    return Published(path, card, num_classes=1000)
