"""The classes of ImageNet-1k. Before `hub` and `torchvision`, whose weights know them."""

import functools
from pathlib import Path


@functools.cache
def class_names() -> tuple[str, ...]:
    """The 1,000 WordNet ids, `n01440764` to `n15075141`, in the order of the published logits.

    They are the folder names of ImageNet and the labels of TFDS, so that a classifier and either
    form of the data agree. Read from the installed tensorflow-datasets.
    """
    import tensorflow_datasets

    folder = Path(tensorflow_datasets.__file__).parent / "datasets" / "imagenet2012"
    names = tuple((folder / "labels.txt").read_text().split())
    if len(names) != 1000 or names != tuple(sorted(names)):
        raise ValueError(f"{folder / 'labels.txt'}: not the 1,000 ids in order")
    return names


@functools.cache
def words() -> tuple[str, ...]:
    """English names of the classes, from WordNet, in the same order; two may share one."""
    names = tuple((Path(__file__).parent / "imagenet_classes.txt").read_text().splitlines())
    assert len(names) == 1000
    return names
