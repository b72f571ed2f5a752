"""Makes the shifted sets of the experiments, of real images alone and the same on every machine.

Claim: none; other experiments read what this writes into `runs/images/shifts`:

| folder | images | for |
|---|---|---|
| `cifar10` | of CIFAR-10's test split, of each class 900 to train on, 100 to test on | a target |
| `jpeg` | the same images, re-encoded as lossy JPEG; the same parts | shifted input |
| `gaussian_noise` | the same images and parts, corrupted | shifted input |
| `flipped` | `cifar10` with class y under the name of class 9 - y | shifted output |
| `cifar100` | 270 of each class to train on and 30 to test on | a source |
| `superclasses/source`, `.../target` | 3 and 2 classes of each superclass, by its name | features |
| `halves/random-SEED/A`, `.../B` | 30 classes and 30 others, drawn from all 100 | AnB |
| `halves/natural-SEED/A`, `.../B` | 30 drawn of 70 natural classes; the 30 man-made ones | AnB |

An image that is tested on is trained on nowhere, under no shift: the JPEGs are split as their
originals. The noise is that of `corruptions.py`. Feature-level shift follows BREEDS (Santurkar et
al. 2021): new subclasses of the same classes; flipped labels follow Lee et al. 2023, "Surgical
Fine-Tuning", section 3. A natural class is an animal, a plant, a person or a scene without people's
work; CIFAR-100 has 70 of them and 30 man-made ones, so that every half has 30.

Command, from the repository's root, with `cifar10_test.zip`, `cifar10_jpeg_test.zip`,
`cifar10_jpeg_pairs.csv` (columns `jpeg` and `png`: paths in the two) and `cifar100_30k.zip` in the
folder ZIPS; they hold `cifar10/test`, `cifar10_jpeg/test` and `cifar100`, folders of class folders:

    python experiments/shifts.py ZIPS

Expected: the folders above, of links and 10,000 new PNGs.
Time: a minute.
"""

import os
import pathlib
import sys
from collections.abc import Sequence

import images
import numpy as np
import tyro
from corruptions import corrupted

from jxfer.commands.main import guard
from jxfer.data.sources import FolderSource

SEEDS = (0, 1, 2, 3, 4, 100)
"""Of the halves."""
CLASSES_OF_A_HALF = 30
SUPERCLASSES = {
    "aquatic_mammals": ("beaver", "dolphin", "otter", "seal", "whale"),
    "fish": ("aquarium_fish", "flatfish", "ray", "shark", "trout"),
    "flowers": ("orchid", "poppy", "rose", "sunflower", "tulip"),
    "food_containers": ("bottle", "bowl", "can", "cup", "plate"),
    "fruit_and_vegetables": ("apple", "mushroom", "orange", "pear", "sweet_pepper"),
    "household_electrical_devices": ("clock", "keyboard", "lamp", "telephone", "television"),
    "household_furniture": ("bed", "chair", "couch", "table", "wardrobe"),
    "insects": ("bee", "beetle", "butterfly", "caterpillar", "cockroach"),
    "large_carnivores": ("bear", "leopard", "lion", "tiger", "wolf"),
    "large_man_made_outdoor_things": ("bridge", "castle", "house", "road", "skyscraper"),
    "large_natural_outdoor_scenes": ("cloud", "forest", "mountain", "plain", "sea"),
    "large_omnivores_and_herbivores": ("camel", "cattle", "chimpanzee", "elephant", "kangaroo"),
    "medium_sized_mammals": ("fox", "porcupine", "possum", "raccoon", "skunk"),
    "non_insect_invertebrates": ("crab", "lobster", "snail", "spider", "worm"),
    "people": ("baby", "boy", "girl", "man", "woman"),
    "reptiles": ("crocodile", "dinosaur", "lizard", "snake", "turtle"),
    "small_mammals": ("hamster", "mouse", "rabbit", "shrew", "squirrel"),
    "trees": ("maple_tree", "oak_tree", "palm_tree", "pine_tree", "willow_tree"),
    "vehicles_1": ("bicycle", "bus", "motorcycle", "pickup_truck", "train"),
    "vehicles_2": ("lawn_mower", "rocket", "streetcar", "tank", "tractor"),
}
"""Of CIFAR-100 (Krizhevsky 2009, section 3)."""
MAN_MADE = (
    "food_containers",
    "household_electrical_devices",
    "household_furniture",
    "large_man_made_outdoor_things",
    "vehicles_1",
    "vehicles_2",
)


def source(name: str) -> str:
    """The data spec of a set; raises UserError where it is not there."""
    return images.folder(f"shifts/{name}", "python experiments/shifts.py ZIPS")


def halves(kind: str, seed: int) -> dict[str, tuple[str, ...]]:
    """The classes of A and B.

    Args:
      kind: random, or natural for natural against man-made ones.
      seed: of the draw.
    """
    man_made = [name for superclass in MAN_MADE for name in SUPERCLASSES[superclass]]
    everything = sorted(name for names in SUPERCLASSES.values() for name in names)
    rng = np.random.default_rng(seed)
    if kind == "random":
        drawn = rng.permutation(everything)[: 2 * CLASSES_OF_A_HALF]
        return {
            "A": tuple(map(str, drawn[:CLASSES_OF_A_HALF])),
            "B": tuple(map(str, drawn[CLASSES_OF_A_HALF:])),
        }
    natural = rng.permutation([name for name in everything if name not in man_made])
    return {"A": tuple(map(str, natural[:CLASSES_OF_A_HALF])), "B": tuple(man_made)}


def prepare(zips: tyro.conf.Positional[pathlib.Path]) -> None:
    """Makes the sets of the head of this file.

    Args:
      zips: the folder of the zip files.
    """
    cifar10 = images.unpack(zips, "cifar10_test")
    cifar100 = images.unpack(zips, "cifar100_30k")
    jpegs = images.jpegs(zips)

    def fill(out: pathlib.Path) -> None:
        _cifar10(cifar10 / "cifar10", jpegs, out)
        _cifar100(cifar100 / "cifar100", out)

    print(images.build("shifts", fill), file=sys.stderr)


def _cifar10(root: pathlib.Path, jpeg: dict[pathlib.Path, pathlib.Path], out: pathlib.Path) -> None:
    parts = _split(FolderSource(root, "test"), root, test=100)
    classes = tuple(parts["test"])
    for split, part in parts.items():
        for name, other in zip(classes, reversed(classes), strict=True):
            _link_files(out / "cifar10" / split / name, part[name])
            _link_files(out / "jpeg" / split / name, [jpeg[file] for file in part[name]])
            _link(out / "flipped" / split / other, out / "cifar10" / split / name)
    for split in parts:
        noisy = corrupted(FolderSource(out / "cifar10", split), "gaussian_noise")
        images.write_images(noisy, out / "gaussian_noise")


def _cifar100(root: pathlib.Path, out: pathlib.Path) -> None:
    parts = _split(FolderSource(root), root, test=30)
    for split, part in parts.items():
        where = out / "cifar100" / split
        for name, files in part.items():
            _link_files(where / name, files)
        for superclass, names in SUPERCLASSES.items():
            for role, some in (("source", names[:3]), ("target", names[3:])):
                for name in some:
                    _link(out / "superclasses" / role / split / superclass / name, where / name)
        for kind in ("random", "natural"):
            for seed in SEEDS:
                for half, classes in halves(kind, seed).items():
                    for name in classes:
                        _link(out / f"halves/{kind}-{seed}" / half / split / name, where / name)


def _split(
    source: FolderSource, root: pathlib.Path, test: int
) -> dict[str, dict[str, list[pathlib.Path]]]:
    """`train` and `test` images of each class, drawn at seed 0: {split: {class: files}}."""
    count = len(source) // len(source.class_names)
    drawn = images.draw_images(source, np.random.default_rng(0), count)
    parts: dict[str, dict[str, list[pathlib.Path]]] = {"train": {}, "test": {}}
    for name, positions in zip(source.class_names, drawn, strict=True):
        files = [root / source.name(int(position)) for position in positions]
        parts["test"][name], parts["train"][name] = files[:test], files[test:]
    return parts


def _link_files(folder: pathlib.Path, files: Sequence[pathlib.Path]) -> None:
    for file in files:
        _link(folder / file.name, file)


def _link(link: pathlib.Path, target: pathlib.Path) -> None:
    link.parent.mkdir(parents=True, exist_ok=True)
    # Relative, so that it still holds when the folder that is being filled gets its name.
    link.symlink_to(os.path.relpath(target, link.parent))


if __name__ == "__main__":
    sys.exit(guard(lambda: tyro.cli(prepare)))
