"""Each head beside the same layers in PyTorch; its parameters, and what it refuses."""

import dataclasses

import jax
import numpy as np
import pytest
import torch

from jxfer import trees
from jxfer.models import registry
from jxfer.models.heads import HeadConfig

HEADS = {
    "linear": HeadConfig(),
    "mlp": HeadConfig("mlp", (8, 6)),
    "conv": HeadConfig("conv", (8, 6)),
}
HEADS_GIVEN = pytest.mark.parametrize("head", HEADS.values(), ids=HEADS)
CHANNELS = 16


def create(head, through="stage1"):
    return registry.create("resnet20", 5, through=through, head=head)


def reference(head, params):
    """The head as torch layers on a map [B, C, H, W], filled from ours."""
    layers, inputs = [], CHANNELS
    if head.kind != "conv":
        layers += [torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten()]
    for i, width in enumerate(head.hidden, start=1):
        if head.kind == "conv":
            layer = torch.nn.Conv2d(inputs, width, 3, padding=1)
            kernel = params[f"conv{i}"]["kernel"].transpose(3, 2, 0, 1)
            bias = params[f"conv{i}"]["bias"]
        else:
            layer = torch.nn.Linear(inputs, width)
            kernel, bias = params[f"hidden{i}"]["kernel"].T, params[f"hidden{i}"]["bias"]
        fill(layer, kernel, bias)
        layers += [layer, torch.nn.ReLU()]
        inputs = width
    if head.kind == "conv":
        layers += [torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten()]
    layers.append(torch.nn.Linear(inputs, 5))
    fill(layers[-1], params["linear"]["kernel"].T, params["linear"]["bias"])
    return torch.nn.Sequential(*layers)


def fill(layer, kernel, bias):
    layer.weight.data = torch.from_numpy(np.ascontiguousarray(kernel))
    layer.bias.data = torch.from_numpy(np.array(bias))


@HEADS_GIVEN
def test_logits_are_those_of_the_same_layers_in_torch(head):
    model = create(head)
    rng = np.random.default_rng(0)
    variables = jax.tree.map(  # biases too
        lambda leaf: leaf + 0.1 * rng.random(leaf.shape, np.float32), model.init(0)
    )
    images = rng.standard_normal((2, 16, 12, 3), np.float32)
    outputs, _ = jax.jit(model.apply)(variables, images)
    maps = torch.from_numpy(np.array(outputs["stage1"]).transpose(0, 3, 1, 2).copy())
    with torch.inference_mode():
        wanted = reference(head, variables["params"]["head"])(maps).numpy()
    assert np.abs(outputs["logits"] - wanted).max() <= 1e-5 * np.abs(wanted).max()


def test_the_leaves_of_each_head():
    def leaves(head):
        return {
            p: s.shape for p, s in trees.flatten(create(head).shapes()["params"]["head"]).items()
        }

    assert leaves(HEADS["linear"]) == {"linear/kernel": (16, 5), "linear/bias": (5,)}
    assert leaves(HEADS["mlp"]) == {
        "hidden1/kernel": (16, 8),
        "hidden1/bias": (8,),
        "hidden2/kernel": (8, 6),
        "hidden2/bias": (6,),
        "linear/kernel": (6, 5),
        "linear/bias": (5,),
    }
    assert leaves(HEADS["conv"]) == {
        "conv1/kernel": (3, 3, 16, 8),
        "conv1/bias": (8,),
        "conv2/kernel": (3, 3, 8, 6),
        "conv2/bias": (6,),
        "linear/kernel": (6, 5),
        "linear/bias": (5,),
    }


@HEADS_GIVEN
def test_dropout_stands_before_the_last_layer_and_after_each_hidden_one(head):
    model = create(dataclasses.replace(head, dropout=0.5))
    expected = {"head/dropout"} | {f"head/dropout{i}" for i in range(2, len(head.hidden) + 1)}
    assert set(model.dropout_paths()) == expected
    assert create(head).dropout_paths() == ()


@HEADS_GIVEN
def test_dropout_acts_in_train_mode_alone(head):
    model = create(dataclasses.replace(head, dropout=0.5))
    variables = model.init(0)
    images = np.random.default_rng(0).standard_normal((4, 8, 8, 3), np.float32)
    keys = jax.random.split(jax.random.key(0), 4)

    def logits(model, *training):
        return np.asarray(model.apply(variables, images, *training)[0]["logits"])

    plain = logits(create(head))
    np.testing.assert_array_equal(logits(model), plain)
    np.testing.assert_array_equal(logits(model, frozenset(), keys), plain)
    dropped = logits(model, frozenset(model.dropout_paths()), keys)
    assert not np.allclose(dropped, plain)


@pytest.mark.parametrize("arch", ["alexnet", "vgg11"])
@pytest.mark.parametrize("through", [None, "fc6", "fc7"])
def test_the_conv_head_needs_a_map(arch, through, one_line):
    with one_line("conv head", through or "fc7", "--model.through stage5"):
        registry.create(arch, 5, through=through, head=HEADS["conv"])
    registry.create(arch, 5, through="stage5", head=HEADS["conv"]).shapes()


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"kind": "quadratic"}, ("kind", "quadratic")),
        ({"kind": "mlp"}, ("mlp", "hidden []")),
        ({"hidden": (8,)}, ("linear", "hidden [8]")),
        ({"kind": "mlp", "hidden": (0,)}, ("at least 1",)),
        ({"dropout": 1.0}, ("dropout", "1.0")),
    ],
)
def test_an_impossible_head_is_refused(fields, words, one_line):
    with one_line(*words):
        HeadConfig(**fields)
