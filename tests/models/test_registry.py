"""The seam: names, stages, features, and which norms move."""

import jax
import numpy as np
import pytest

from jxfer import trees
from jxfer.errors import UserError
from jxfer.models import registry
from jxfer.models.architectures import ARCHITECTURES
from jxfer.models.heads import HeadConfig


@pytest.fixture(scope="module")
def model():
    return registry.create("resnet20", 5)


@pytest.fixture(scope="module")
def variables(model):
    return model.init(0)


def draw(*shape):
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


def changed(before, after):
    before, after = trees.flatten(before), trees.flatten(after)
    assert before.keys() == after.keys()
    return {path for path in before if not np.array_equal(before[path], after[path])}


@pytest.mark.parametrize(
    ("name", "near"),
    [("resnet21", "resnet20"), ("ResNet50", "resnet50"), ("resnet-18", "resnet18")],
)
def test_an_unknown_architecture_suggests_near_names(name, near):
    with pytest.raises(UserError, match=rf"\Aunknown architecture '{name}'.*\b{near}\b.*\Z"):
        registry.create(name, 2)


def test_a_name_near_nothing_lists_them_all():
    with pytest.raises(UserError) as error:
        registry.create("vit", 2)
    assert all(name in str(error.value) for name in ARCHITECTURES)


@pytest.mark.parametrize("through", ["stage4", "stem", "head", "3"])
def test_an_unknown_last_stage_is_named_beside_the_known_ones(through):
    with pytest.raises(UserError, match=rf"\Aresnet20 .*'{through}'.* stage1, stage2, stage3\Z"):
        registry.create("resnet20", 2, through=through)


def test_through_builds_only_up_to_that_stage():
    model = registry.create("resnet20", 5, through="stage2")
    shapes = model.shapes()
    assert model.stages == ("stem", "stage1", "stage2")
    assert set(shapes["params"]) == {"stem", "stage1", "stage2", "head"}
    assert set(shapes["batch_stats"]) == {"stem", "stage1", "stage2"}
    assert shapes["params"]["head"]["linear"]["kernel"].shape == (32, 5)


def test_a_truncated_backbone_gives_the_features_of_the_whole_one(model, variables):
    cut = registry.create("resnet20", None, through="stage2")
    head_and_above = {"stage3", "head"}
    kept = {
        kind: {name: tree for name, tree in stages.items() if name not in head_and_above}
        for kind, stages in variables.items()
    }
    images = draw(2, 32, 32, 3)
    found, _ = jax.jit(cut.apply)(kept, images)
    wanted, _ = jax.jit(model.apply)(variables, images)
    assert set(found) == {"stem", "stage1", "stage2", "pooled"}
    for name in ("stem", "stage1", "stage2"):
        np.testing.assert_allclose(found[name], wanted[name], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("arch", "size", "expected"),
    [
        (
            "resnet20",
            (32, 32),
            {"stem": (32, 32, 16), "stage1": (32, 32, 16), "stage2": (16, 16, 32)}
            | {"stage3": (8, 8, 64), "pooled": (64,), "logits": (5,)},
        ),
        (
            "resnet20",
            (33, 45),
            {"stem": (33, 45, 16), "stage1": (33, 45, 16), "stage2": (17, 23, 32)}
            | {"stage3": (9, 12, 64), "pooled": (64,), "logits": (5,)},
        ),
        (
            "resnet18",
            (97, 131),
            {"stem": (25, 33, 64), "stage1": (25, 33, 64), "stage2": (13, 17, 128)}
            | {"stage3": (7, 9, 256), "stage4": (4, 5, 512), "pooled": (512,), "logits": (5,)},
        ),
        (
            "resnet50",
            (224, 224),
            {"stem": (56, 56, 64), "stage1": (56, 56, 256), "stage2": (28, 28, 512)}
            | {"stage3": (14, 14, 1024), "stage4": (7, 7, 2048)}
            | {"pooled": (2048,), "logits": (5,)},
        ),
        (
            "resnet50d",
            (65, 224),
            {"stem": (17, 56, 64), "stage1": (17, 56, 256), "stage2": (9, 28, 512)}
            | {"stage3": (5, 14, 1024), "stage4": (3, 7, 2048)}
            | {"pooled": (2048,), "logits": (5,)},
        ),
        (
            "alexnet",
            (224, 63),
            {"stage1": (27, 7, 64), "stage2": (13, 3, 192), "stage3": (13, 3, 384)}
            | {"stage4": (13, 3, 256), "stage5": (6, 1, 256)}
            | {"fc6": (4096,), "fc7": (4096,), "pooled": (4096,), "logits": (5,)},
        ),
        (
            "vgg11_bn",
            (224, 75),
            {"stage1": (112, 37, 64), "stage2": (56, 18, 128), "stage3": (28, 9, 256)}
            | {"stage4": (14, 4, 512), "stage5": (7, 2, 512)}
            | {"fc6": (4096,), "fc7": (4096,), "pooled": (4096,), "logits": (5,)},
        ),
    ],
)
def test_one_pass_gives_every_stage_by_name_at_any_size(arch, size, expected):
    model = registry.create(arch, 5)
    images = jax.ShapeDtypeStruct((2, *size, 3), np.float32)
    outputs, _ = jax.eval_shape(model.apply, model.shapes(), images)
    assert {name: output.shape for name, output in outputs.items()} == {
        name: (2, *shape) for name, shape in expected.items()
    }


def test_a_network_cut_after_a_fully_connected_stage_pools_nothing():
    model = registry.create("alexnet", 5, through="fc6")
    assert model.stages == ("stage1", "stage2", "stage3", "stage4", "stage5", "fc6")
    images = jax.ShapeDtypeStruct((2, 64, 64, 3), np.float32)
    outputs, _ = jax.eval_shape(model.apply, model.shapes(), images)
    assert outputs["pooled"].shape == outputs["fc6"].shape == (2, 4096)
    cut = registry.create("alexnet", 5, through="stage4")
    outputs, _ = jax.eval_shape(cut.apply, cut.shapes(), images)
    assert outputs["pooled"].shape == (2, 256)


@pytest.mark.parametrize("arch", ["alexnet", "vgg11"])
def test_an_image_on_which_a_map_vanishes_is_refused(arch, one_line):
    model = registry.create(arch, 5)
    smallest = model.architecture.smallest
    for side, refused in ((smallest, False), (smallest - 1, True)):
        images = jax.ShapeDtypeStruct((2, side, 300, 3), np.float32)
        if refused:
            with one_line(arch, f"at least {smallest} px, not {side}"):
                jax.eval_shape(model.apply, model.shapes(), images)
        else:
            outputs, _ = jax.eval_shape(model.apply, model.shapes(), images)
            assert min(outputs["stage5"].shape) == 1


def test_stages_of_a_network_without_a_stem(one_line):
    with one_line(
        "alexnet has no stage 'stem'", "stage1, stage2, stage3, stage4, stage5, fc6, fc7"
    ):
        registry.create("alexnet", 5, through="stem")


def test_a_network_without_norms_has_no_statistics():
    model = registry.create("alexnet", None, through="stage1")
    assert model.norm_paths() == ()
    assert model.shapes()["batch_stats"] == {} == model.init(0)["batch_stats"]
    variables = {"params": model.init(0)["params"]}  # as stored, where empty dicts vanish
    _, statistics = jax.eval_shape(model.apply, variables, draw(1, 63, 63, 3))
    assert statistics == {}


def test_dropout_paths_are_all_that_drop():
    assert registry.create("resnet20", 5).dropout_paths() == ()
    assert registry.create("vgg11", 5).dropout_paths() == ("fc6/dropout", "fc7/dropout")
    assert registry.create("vgg11", 5, through="stage5").dropout_paths() == ()


def test_pooled_features_are_the_mean_of_the_last_stage(model, variables):
    outputs, _ = jax.jit(model.apply)(variables, draw(2, 32, 32, 3))
    np.testing.assert_allclose(
        outputs["pooled"], np.mean(outputs["stage3"], (1, 2)), rtol=1e-5, atol=1e-6
    )
    assert np.asarray(outputs["stage3"]).min() == 0  # after the ReLU
    head = variables["params"]["head"]["linear"]
    np.testing.assert_allclose(
        outputs["logits"], outputs["pooled"] @ head["kernel"] + head["bias"][None], rtol=1e-4
    )


def test_variables_are_plain_dicts_of_float32_with_the_shapes_promised(model, variables):
    promised, found = trees.flatten(model.shapes()), trees.flatten(variables)
    assert type(variables["params"]["stage1"]["block0"]) is dict
    assert {p: (leaf.shape, leaf.dtype) for p, leaf in found.items()} == {
        p: (leaf.shape, leaf.dtype) for p, leaf in promised.items()
    }
    assert {leaf.dtype for leaf in found.values()} == {np.dtype(np.float32)}


def test_a_seed_gives_the_same_bits_and_another_seed_other_ones(model, variables):
    assert changed(variables, model.init(0)) == set()
    moved = changed(variables, model.init(1))
    assert moved == {path for path in trees.flatten(variables) if path.endswith("kernel")}


def test_without_train_norms_no_statistic_moves(model, variables):
    _, statistics = jax.jit(model.apply)(variables, draw(4, 32, 32, 3))
    assert changed(variables["batch_stats"], statistics) == set()


def test_train_norms_moves_the_named_norms_alone(model, variables):
    names = frozenset({"stem/norm", "stage2/block0/norm2"})
    _, statistics = jax.jit(lambda v, x: model.apply(v, x, names))(variables, draw(4, 32, 32, 3))
    assert changed(variables["batch_stats"], statistics) == {
        f"{name}/{leaf}" for name in names for leaf in ("mean", "var")
    }


def test_a_training_norm_keeps_nine_tenths_of_its_average(model, variables):
    """The stem's statistics after a step, from the convolution's output computed by hand."""
    images = draw(4, 32, 32, 3)
    names = frozenset({"stem/norm"})
    _, statistics = jax.jit(lambda v, x: model.apply(v, x, names))(variables, images)
    kernel = variables["params"]["stem"]["conv"]["kernel"]
    before = jax.lax.conv_general_dilated(
        images, kernel, (1, 1), ((1, 1), (1, 1)), dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    stem = statistics["stem"]["norm"]
    np.testing.assert_allclose(stem["mean"], 0.1 * np.mean(before, (0, 1, 2)), atol=1e-6)
    wanted = 0.9 + 0.1 * np.var(before, (0, 1, 2))
    np.testing.assert_allclose(stem["var"], wanted, rtol=1e-5)


def test_norm_paths_are_all_norms_and_nothing_else(model, variables):
    paths = model.norm_paths()
    assert len(paths) == 1 + 2 * 9
    scales = {p for p in trees.flatten(variables["params"]) if p.endswith("/scale")}
    assert scales == {f"{path}/scale" for path in paths}


def test_norm_inputs_are_what_each_norm_normalises(model, variables):
    images = draw(2, 32, 32, 3)
    seen = jax.jit(model.norm_inputs)(variables, images)
    assert set(seen) == set(model.norm_paths())
    kernel = variables["params"]["stem"]["conv"]["kernel"]
    wanted = jax.lax.conv_general_dilated(
        images, kernel, (1, 1), ((1, 1), (1, 1)), dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    np.testing.assert_allclose(seen["stem/norm"], wanted, atol=1e-5)
    # A norm in train mode moves its average towards the mean of the same input.
    path = "stage2/block0/norm2"
    _, moved = jax.jit(lambda v, x: model.apply(v, x, frozenset({path})))(variables, images)
    mean = trees.flatten(moved)[f"{path}/mean"]
    np.testing.assert_allclose(mean, 0.1 * np.mean(seen[path], (0, 1, 2)), rtol=1e-4, atol=1e-6)
    plain = registry.create("vgg11", None)
    image = jax.ShapeDtypeStruct((1, 32, 32, 3), np.float32)
    assert jax.eval_shape(plain.norm_inputs, plain.shapes(), image) == {}


@pytest.mark.parametrize("sync_axis", ["batch", None])
def test_a_synchronised_norm_sees_the_whole_batch(sync_axis):
    """Over an axis of 4 shares, the logits are those of the one batch; without it they are not."""
    whole = registry.create("resnet20", 5, through="stage1")
    shared = registry.create("resnet20", 5, through="stage1", sync_axis=sync_axis)
    variables, norms = whole.init(0), frozenset(whole.norm_paths())
    images = draw(8, 16, 16, 3) * np.arange(1, 9, dtype=np.float32).reshape(8, 1, 1, 1)

    def run(model):
        return lambda images: model.apply(variables, images, norms)[0]["logits"]

    wanted = jax.jit(run(whole))(images)
    found = jax.jit(jax.vmap(run(shared), axis_name="batch"))(images.reshape(4, 2, 16, 16, 3))
    same = np.allclose(found.reshape(8, 5), wanted, rtol=1e-3, atol=1e-3)
    assert same == (sync_axis is not None)


def test_equal_models_are_one_static_argument():
    assert registry.create("resnet20", 5) == registry.create("resnet20", 5)
    assert hash(registry.create("resnet20", 5)) == hash(registry.create("resnet20", 5))
    assert registry.create("resnet20", 5) != registry.create("resnet20", 6)
    head = HeadConfig(dropout=0.5)
    assert registry.create("resnet20", 5) != registry.create("resnet20", 5, head=head)
