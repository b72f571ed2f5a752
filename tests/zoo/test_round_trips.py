"""Import, export, import is the identity, to the last bit, for networks drawn by Hypothesis."""

import functools

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from jxfer import trees
from jxfer.models import registry
from jxfer.zoo import export, readers, torch_names
from jxfer.zoo.card import Card
from tests import torch_reference
from tests.hypotheses import examples

ARCHITECTURES = (
    *("resnet20", "resnet20_b", "resnet32", "resnet44_b", "resnet18", "resnet18d", "resnet50"),
    *("resnext50_32x4d", "vgg11", "vgg13_bn", "alexnet"),
)
LARGEST = 1_000_000
"""Parameters of a network that is drawn; the fully connected stages have more."""
FOLDED = {"weight": 1, "running_mean": 0, "running_var": 1 - 1e-5}
"""What a norm that was folded is written as, beside its bias."""


@functools.cache
def cuts(arch):
    """The last stage of each part of an architecture that is small."""
    stages = registry.architecture(arch).stages[1:]
    sizes = [trees.size(registry.create(arch, None, through=s).shapes()) for s in stages]
    return [stage for stage, size in zip(stages, sizes, strict=True) if size <= LARGEST]


@functools.cache
def named_shapes(arch):
    """Of PyTorch's own network, in its order; the head's two come last."""
    with torch.device("meta"):
        state = torch_reference.create(arch, 3).state_dict()
    return {name: tuple(t.shape) for name, t in state.items() if t.is_floating_point()}


parts = st.sampled_from(ARCHITECTURES).flatmap(
    lambda arch: st.tuples(st.just(arch), st.sampled_from(cuts(arch)))
)


def draw_file(model, seed, folded):
    """Tensors of a file that a network is read from, and the same with no norm folded."""
    arch, rng = model.architecture.name, np.random.default_rng(seed)

    def bits(shape):
        """Any finite float32: of either sign, subnormal too."""
        drawn = rng.integers(0, 2**32, shape, np.uint32).view(np.float32)
        return np.where(np.isfinite(drawn), drawn, np.float32(-0.0))

    shapes = dict(named_shapes(arch))
    *_, (weight, _), (bias, _) = shapes.items()
    if model.num_classes:
        features, classes = model.shapes()["params"]["head"]["linear"]["kernel"].shape
        shapes |= {weight: (classes, features), bias: (classes,)}
    # The large ones are beyond the cut.
    whole = {n: bits(s) if np.prod(s) <= LARGEST else np.zeros(s) for n, s in shapes.items()}
    tensors = dict(whole)
    names = list(shapes)
    for norm in [name.removesuffix(".running_var") for name in names if "running_var" in name]:
        before = names[names.index(f"{norm}.weight") - 1]
        # The convolutions of VGG have biases of their own: none can be folded.
        if before.endswith(".weight") and rng.random() < folded:
            tensors[f"{before.removesuffix('.weight')}.bias"] = tensors.pop(f"{norm}.bias")
            for leaf, value in FOLDED.items():
                whole[f"{norm}.{leaf}"] = np.full_like(tensors.pop(f"{norm}.{leaf}"), value)
    return tensors, whole


@pytest.mark.slow
@examples(50)
@given(
    parts,
    st.none() | st.integers(1, 12),
    st.integers(0, 2**31),
    st.sampled_from([0.0, 0.3, 1.0]),
)
def test_import_export_import_is_the_identity(tmp_path_factory, part, classes, seed, folded):
    arch, through = part
    model = registry.create(arch, classes, through=through)
    tensors, whole = draw_file(model, seed, folded)
    first = torch_names.import_torch(tensors, model)
    exported = torch_names.export_torch(first.variables, model)
    assert len(exported) == len(trees.flatten(model.shapes()))
    assert_same(exported, {name: whole[name] for name in exported})

    names = tuple(map(str, range(classes or 0)))
    card = Card("drawn", arch, names, model.architecture.preprocessing, through=through)
    path = tmp_path_factory.mktemp("drawn") / "net.safetensors"
    export.to_torch(card, first.variables, path)
    written, _ = readers.read_tensors(path)
    assert_same(written, exported)
    again = torch_names.import_torch(written, model)
    assert_same(trees.flatten(again.variables), trees.flatten(first.variables))


def assert_same(found, wanted):
    assert found.keys() == wanted.keys()
    assert [name for name in wanted if not trees.same_bits(found[name], wanted[name])] == []
