"""What the advisor measures, on images of three colours and on digits."""

import cv2
import numpy as np
import pytest

from jxfer.advise import measure, mirror
from jxfer.data.readers import Example, FolderSource, Subset
from jxfer.data.sources import DataConfig, open_splits
from jxfer.data.transforms import decode


@pytest.fixture
def source(images):
    return FolderSource(images, "train")


def test_size_counts_every_class(source):
    some = Subset(source, np.arange(30))  # 12, 12 and 6
    assert measure.size(some) == measure.Size(3, 30, 6, 12)


def test_a_class_without_images_or_with_one_is_named(source, one_line):
    with one_line("cats", "0 training images", "at least 2"):
        measure.size(Subset(source, np.arange(24)))
    with one_line("cats", "1 training images", "at least 2"):
        measure.size(Subset(source, np.arange(25)))


def test_a_sample_takes_as_many_of_each_class_and_is_drawn_by_the_seed(source):
    assert measure.sample(source, 0) is source
    some = measure.sample(source, 0, most=12)
    assert np.bincount(some.labels).tolist() == [4, 4, 4]
    names = [[some.name(i) for i in range(12)] for some in (some, measure.sample(source, 0, 12))]
    assert names[0] == names[1]
    other = measure.sample(source, 1, most=12)
    assert names[0] != [other.name(i) for i in range(12)]


def test_a_small_class_gives_all_it_has(source):
    some = measure.sample(Subset(source, np.arange(27)), 0, most=15)  # 12, 12 and 3
    assert np.bincount(some.labels).tolist() == [5, 5, 3]


def test_a_mirrored_source_mirrors_and_keeps_the_rest(source):
    class OneColourPerColumn(FolderSource):
        def __getitem__(self, index):
            image = np.zeros((4, 5, 3), np.uint8)
            image[:, :, 0] = np.arange(5) * 50  # OpenCV's blue
            image[:, :, 2] = 7
            return Example(cv2.imencode(".png", image)[1].tobytes(), index, f"{index}")

    plain = OneColourPerColumn.__new__(OneColourPerColumn)
    plain.__dict__ = source.__dict__
    mirrored = mirror.mirrored(plain)
    assert len(mirrored) == len(source)
    assert mirrored.labels.tolist() == source.labels.tolist()
    assert mirrored.name(3) == source.name(3)
    example = mirrored[3]
    assert (example.label, example.name) == (3, "3")
    found = decode(example.image, "mirrored")
    np.testing.assert_array_equal(found, decode(plain[3].image, "plain")[:, ::-1])
    assert found[0, :, 2].tolist() == [200, 150, 100, 50, 0]


@pytest.mark.slow
def test_measurements_of_digits_say_what_is_known_of_them():
    from jxfer.zoo.pretrained import ModelConfig, create_model

    train = open_splits(DataConfig("digits", per_class=10)).train
    found = {}
    for name in ("resnet20-cifar100", "resnet20-glyphs"):
        pretrained = create_model(ModelConfig(weights=name), train.class_names)
        found[name] = measure.measure(name, pretrained, train, seed=0)
        again = measure.measure(name, pretrained, train, seed=0)
        assert again.depths == found[name].depths
        assert again.proxy_a_distance == found[name].proxy_a_distance
        assert [depth.stage for depth in again.depths] == ["stem", "stage1", "stage2", "stage3"]
        assert all(0.1 < depth.probe <= 1 for depth in again.depths)
        assert not again.missing
        assert not again.mirrors.harmless  # a mirrored 2 is none
        assert again.known_classes == {}
    near, far = found["resnet20-glyphs"], found["resnet20-cifar100"]
    assert near.frechet < far.frechet
    assert near.norm_shift["stage3"] < far.norm_shift["stage3"]
    assert near.proxy_a_distance < far.proxy_a_distance
    assert near.leep > far.leep
