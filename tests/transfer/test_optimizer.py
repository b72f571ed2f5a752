"""The optimizer beside PyTorch's."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch

from jxfer.transfer.optimizer import OptimizerConfig, build, schedules

STEPS = 12
STEPS_PER_EPOCH = 2.0
LABELS = {"backbone": {"kernel": "low_lr", "bias": "low_lr"}, "head": {"kernel": "head"}}


@pytest.fixture(scope="module")
def problem():
    """Start parameters, and a gradient for each step that also depends on the parameters."""
    rng = np.random.default_rng(0)
    shapes = {"backbone/kernel": (4, 3), "backbone/bias": (3,), "head/kernel": (3, 2)}
    start = {path: rng.normal(size=shape) for path, shape in shapes.items()}
    slopes = [
        {path: rng.normal(size=shape) for path, shape in shapes.items()} for _ in range(STEPS)
    ]
    return start, slopes


def nested(flat):
    backbone = {"kernel": flat["backbone/kernel"], "bias": flat["backbone/bias"]}
    return {"backbone": backbone, "head": {"kernel": flat["head/kernel"]}}


def flat(tree):
    return {
        "backbone/kernel": tree["backbone"]["kernel"],
        "backbone/bias": tree["backbone"]["bias"],
        "head/kernel": tree["head"]["kernel"],
    }


def run_ours(config, problem):
    """Parameters after each step of gradient = 0.3 * parameter + slope, in float64 as torch's."""
    start, slopes = problem
    with jax.enable_x64(True):
        return list(our_path(config, start, slopes))


def our_path(config, start, slopes):
    transform = build(config, LABELS, schedules(config, STEPS, STEPS_PER_EPOCH))

    @jax.jit
    def step(params, state, slope):
        gradients = jax.tree.map(lambda p, s: 0.3 * p + s, params, slope)
        updates, state = transform.update(gradients, state, params)
        return optax.apply_updates(params, updates), state

    params = jax.tree.map(jnp.asarray, nested(start))
    state = transform.init(params)
    for slope in slopes:
        params, state = step(params, state, nested(slope))
        yield jax.device_get(flat(params))


def run_torch(make_optimizer, make_scheduler, problem):
    start, slopes = problem
    params = {path: torch.nn.Parameter(torch.tensor(array)) for path, array in start.items()}
    optimizer = make_optimizer(params)
    scheduler = make_scheduler(optimizer)
    path = []
    for slope in slopes:
        for name, param in params.items():
            param.grad = 0.3 * param.detach() + torch.tensor(slope[name])
        optimizer.step()
        scheduler.step()
        path.append({name: param.detach().numpy().copy() for name, param in params.items()})
    return path


def assert_same_path(ours, theirs):
    for found, wanted in zip(ours, theirs, strict=True):
        for name in wanted:
            np.testing.assert_allclose(found[name], wanted[name], rtol=1e-6)


def constant(optimizer):
    return torch.optim.lr_scheduler.ConstantLR(optimizer, factor=1.0)


def groups(params, weight_decay, decay_bias=False):
    """PyTorch's parameter groups: the backbone's smaller rate, no decay of the bias."""
    bias_decay = weight_decay if decay_bias else 0.0
    return [
        {"params": [params["backbone/kernel"]], "lr": 0.01, "weight_decay": weight_decay},
        {"params": [params["backbone/bias"]], "lr": 0.01, "weight_decay": bias_decay},
        {"params": [params["head/kernel"]], "lr": 0.1, "weight_decay": weight_decay},
    ]


@pytest.mark.parametrize("decay_bias", [False, True])
@pytest.mark.parametrize(
    ("momentum", "nesterov", "weight_decay"),
    [(0.0, False, 0.0), (0.9, False, 0.0), (0.9, True, 0.0), (0.9, False, 0.1), (0.8, True, 0.1)],
)
def test_sgd_is_torchs(momentum, nesterov, weight_decay, decay_bias, problem):
    config = OptimizerConfig(
        name="sgd",
        lr=0.1,
        momentum=momentum,
        nesterov=nesterov,
        weight_decay=weight_decay,
        decay_norm_and_bias=decay_bias,
        schedule="constant",
    )
    theirs = run_torch(
        lambda params: torch.optim.SGD(
            groups(params, weight_decay, decay_bias), momentum=momentum, nesterov=nesterov
        ),
        constant,
        problem,
    )
    assert_same_path(run_ours(config, problem), theirs)


@pytest.mark.parametrize("decay_bias", [False, True])
@pytest.mark.parametrize("weight_decay", [0.0, 0.3])
def test_adamw_is_torchs(weight_decay, decay_bias, problem):
    config = OptimizerConfig(
        name="adamw",
        lr=0.1,
        weight_decay=weight_decay,
        decay_norm_and_bias=decay_bias,
        schedule="constant",
    )
    theirs = run_torch(
        lambda params: torch.optim.AdamW(groups(params, weight_decay, decay_bias)),
        constant,
        problem,
    )
    assert_same_path(run_ours(config, problem), theirs)


def test_the_step_schedule_is_torchs_step_lr(problem):
    config = OptimizerConfig(lr=0.1, weight_decay=0.0, schedule="step", step_epochs=2.5)
    theirs = run_torch(
        lambda params: torch.optim.SGD(groups(params, 0.0), momentum=0.9),
        lambda optimizer: torch.optim.lr_scheduler.StepLR(optimizer, step_size=5, gamma=0.1),
        problem,
    )
    assert_same_path(run_ours(config, problem), theirs)


def test_each_group_is_clipped_by_its_own_norm(problem):
    """A large gradient of the head leaves the backbone's step alone."""
    start, _ = problem
    config = OptimizerConfig(
        lr=0.1, momentum=0.0, weight_decay=0.0, schedule="constant", clip_norm=1.0
    )
    gradients = nested(
        {
            "backbone/kernel": np.full((4, 3), 0.1, np.float32),
            "backbone/bias": np.full(3, 0.2, np.float32),
            "head/kernel": np.full((3, 2), 50.0, np.float32),
        }
    )
    transform = build(config, LABELS, schedules(config, STEPS, STEPS_PER_EPOCH))
    params = nested(start)
    updates, _ = transform.update(gradients, transform.init(params), params)
    norm = np.sqrt(6 * 50.0**2)
    np.testing.assert_allclose(updates["head"]["kernel"], -0.1 * 50 / norm, rtol=1e-6)
    assert np.sqrt(12 * 0.1**2 + 3 * 0.2**2) < 1.0
    np.testing.assert_allclose(updates["backbone"]["kernel"], -0.01 * 0.1, rtol=1e-6)
    np.testing.assert_allclose(updates["backbone"]["bias"], -0.01 * 0.2, rtol=1e-6)


@pytest.mark.parametrize("name", ["sgd", "adamw"])
@pytest.mark.parametrize("decay_norm_and_bias", [False, True])
def test_without_a_gradient_only_decay_moves_a_parameter(name, decay_norm_and_bias):
    config = OptimizerConfig(
        name=name,
        lr=0.1,
        weight_decay=0.5,
        decay_norm_and_bias=decay_norm_and_bias,
        schedule="constant",
    )
    params = {"conv": {"kernel": np.ones((1, 1, 2, 2), np.float32)}}
    params["norm"] = {"scale": np.ones(2, np.float32), "bias": np.ones(2, np.float32)}
    labels = jax.tree.map(lambda _: "head", params)
    transform = build(config, labels, schedules(config, 10, 5.0))
    zeros = jax.tree.map(jnp.zeros_like, params)
    updates, _ = transform.update(zeros, transform.init(params), params)
    np.testing.assert_allclose(updates["conv"]["kernel"], -0.05, rtol=1e-6)
    wanted = -0.05 if decay_norm_and_bias else 0.0
    np.testing.assert_allclose(updates["norm"]["scale"], wanted, rtol=1e-6)
    np.testing.assert_allclose(updates["norm"]["bias"], wanted, rtol=1e-6)


@pytest.mark.parametrize(("name", "slots"), [("sgd", 1), ("adamw", 2)])
def test_a_frozen_leaf_has_no_state_and_does_not_move(name, slots, problem):
    start, slopes = problem
    params, gradients = jax.tree.map(np.float32, (nested(start), nested(slopes[0])))
    config = OptimizerConfig(name=name, weight_decay=0.5, decay_norm_and_bias=True, clip_norm=1.0)
    labels = {"backbone": {"kernel": "frozen", "bias": "frozen"}, "head": {"kernel": "head"}}
    transform = build(config, labels, schedules(config, STEPS, STEPS_PER_EPOCH))
    state = transform.init(params)
    arrays = [leaf.shape for leaf in jax.tree.leaves(state) if leaf.ndim]
    assert arrays == [params["head"]["kernel"].shape] * slots
    updates, _ = transform.update(gradients, state, params)
    assert not np.any(updates["backbone"]["kernel"])
    assert not np.any(updates["backbone"]["bias"])
    assert np.all(updates["head"]["kernel"] != 0)


def test_the_backbone_takes_a_tenth_of_the_rate_unless_told():
    assert OptimizerConfig(lr=0.5).peaks() == {"low_lr": 0.05, "head": 0.5}
    assert OptimizerConfig(lr=0.5, backbone_lr=0.2).peaks() == {"low_lr": 0.2, "head": 0.5}
    assert OptimizerConfig(lr=0.5, backbone_lr=0.0).peaks() == {"low_lr": 0.0, "head": 0.5}


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("lr", -1.0),
        ("momentum", 1.0),
        ("weight_decay", -1e-4),
        ("clip_norm", 0.0),
        ("warmup_epochs", -1.0),
    ],
)
def test_an_option_out_of_range_is_an_error_of_one_line(field, value, one_line):
    with one_line(f"--optimizer.{field.replace('_', '-')}", str(value)):
        OptimizerConfig(**{field: value})


@pytest.mark.parametrize(
    ("fields", "where"),
    [
        ({"name": "adamw", "momentum": 0.8}, "--optimizer.name adamw"),
        ({"name": "adamw", "nesterov": True}, "--optimizer.name adamw"),
        ({"nesterov": True, "momentum": 0.0}, "--optimizer.momentum 0"),
        ({"step_epochs": 3.0}, "--optimizer.schedule cosine"),
        ({"schedule": "constant", "step_factor": 0.5}, "--optimizer.schedule constant"),
    ],
)
def test_an_option_with_nothing_to_act_on_is_an_error(fields, where, one_line):
    with one_line("does nothing under", where):
        OptimizerConfig(**fields)


def test_layer_decay_shrinks_the_rate_stage_by_stage_from_the_top():
    peaks = OptimizerConfig(lr=1.0, backbone_lr=0.5, layer_decay=0.1).peaks(("stem", "s1", "s2"))
    assert peaks == pytest.approx(
        {"low_lr": 0.5, "low_lr/stem": 0.005, "low_lr/s1": 0.05, "low_lr/s2": 0.5, "head": 1.0}
    )


def test_a_stage_may_have_a_rate_of_its_own():
    config = OptimizerConfig(lr=1.0, stage_lrs=("stem=1e-5", "s2=0"))
    assert config.per_stage
    assert config.peaks(("stem", "s1", "s2")) == pytest.approx(
        {"low_lr": 0.1, "low_lr/stem": 1e-5, "low_lr/s1": 0.1, "low_lr/s2": 0.0, "head": 1.0}
    )


@pytest.mark.parametrize("item", ["stem", "stem=", "=1", "stem=-1", "stem=nan", "stem=inf", "a=b"])
def test_a_stages_rate_must_be_one(item, one_line):
    with one_line(f"--optimizer.stage-lrs {item}", "STAGE=RATE"):
        OptimizerConfig(stage_lrs=(item,))


def test_a_stage_has_one_rate(one_line):
    with one_line("stem comes twice"):
        OptimizerConfig(stage_lrs=("stem=1", "stem=2"))


def test_two_ways_to_set_the_stages_rates_are_refused(one_line):
    with one_line("--optimizer.layer-decay", "--optimizer.stage-lrs", "leave one out"):
        OptimizerConfig(layer_decay=0.5, stage_lrs=("stem=1",))
