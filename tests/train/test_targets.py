"""Class weights and mixed labels in the compiled step, beside NumPy and PyTorch."""

import jax
import numpy as np
import pytest
import torch

from jxfer import trees
from jxfer.data.readers import FolderSource, Subset
from jxfer.data.transforms import CIFAR
from jxfer.losses.classification import LossConfig
from jxfer.models import registry
from jxfer.train import parallel
from jxfer.train.plans import set_up
from jxfer.train.step import make_train_step
from jxfer.transfer.optimizer import OptimizerConfig
from tests.train.steps import make_plan

WEIGHTS = (0.5, 4.0, 1.5)
RATE = 0.1


@pytest.fixture(scope="module")
def batch():
    """Sixteen images. Each of the eight devices gets other classes, some only the lightest one."""
    rng = np.random.default_rng(0)
    return {
        "image": rng.integers(0, 256, (16, 32, 32, 3), np.uint8),
        "label": np.sort(rng.choice(3, 16, p=[0.6, 0.1, 0.3])).astype(np.int32),
        "partner_label": rng.integers(0, 3, 16).astype(np.int32),
        "own_weight": rng.uniform(0.1, 1.0, 16).astype(np.float32),
    }


@pytest.fixture(scope="module")
def model():
    return registry.create("resnet20", 3, through="stage1")


@pytest.fixture(scope="module")
def variables(model):
    return model.init(3)


@pytest.fixture(scope="module")
def step_once(variables, batch):
    """One step of the head, on eight devices: (gradient of its bias, sums)."""

    def take(smoothing, class_weights, mixed):
        plan = make_plan(
            "linear_probe",
            optimizer=OptimizerConfig(lr=RATE, schedule="constant", weight_decay=0.0),
            loss=LossConfig(smoothing, "balanced" if class_weights else "none"),
            class_weights=class_weights,
        )
        names = batch if mixed else ("image", "label")
        [sharded] = parallel.shard([{name: batch[name] for name in names}])
        state = parallel.replicate(plan.initial_state(variables))
        state, sums = parallel.compile_step(make_train_step(plan))(state, sharded)
        before, after = variables["params"]["head"], parallel.fetch(state).params["head"]
        [(path, bias)] = [(p, v) for p, v in trees.flatten(before).items() if p.endswith("bias")]
        gradient = (np.asarray(bias) - trees.flatten(after)[path]) / RATE
        sums = parallel.fetch(sums)
        return gradient, sums

    return take


@pytest.fixture(scope="module")
def logits(model, variables, batch):
    mean, std = np.float32(CIFAR.mean), np.float32(CIFAR.std)
    pixels = (batch["image"] / np.float32(255) - mean) / std
    outputs, _ = jax.jit(lambda pixels: model.apply(variables, pixels))(pixels)
    return np.asarray(outputs["logits"], np.float64)


def expected(logits, batch, smoothing, class_weights, mixed):
    """(gradient of the bias, loss): each label of a mixed image counts as a part of an example."""
    weights = np.array(class_weights or (1.0, 1.0, 1.0))
    own = batch["own_weight"].astype(np.float64) if mixed else np.ones(16)
    parts = [(batch["label"], own), (batch["partner_label"], 1 - own)]
    log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    targets = np.zeros_like(logits)
    total = 0.0
    for labels, part in parts:
        one_hot = np.eye(3)[labels]
        targets += part[:, None] * weights * ((1 - smoothing) * one_hot + smoothing / 3)
        total += (part * weights[labels]).sum()
    loss = -(targets * log_p).sum() / total
    gradient = (targets.sum(-1, keepdims=True) * np.exp(log_p) - targets).sum(0) / total
    return gradient, loss


@pytest.mark.parametrize(
    ("smoothing", "class_weights", "mixed"),
    [(0.0, WEIGHTS, False), (0.1, WEIGHTS, False), (0.1, None, True), (0.1, WEIGHTS, True)],
)
def test_the_step_minimises_the_loss_of_numpy(
    smoothing, class_weights, mixed, step_once, logits, batch
):
    gradient, sums = step_once(smoothing, class_weights, mixed)
    wanted_gradient, wanted_loss = expected(logits, batch, smoothing, class_weights, mixed)
    assert sums["examples"] == 16
    np.testing.assert_allclose(sums["loss"] / 16, wanted_loss, rtol=1e-5)
    np.testing.assert_allclose(gradient, wanted_gradient, rtol=0, atol=1e-5)
    assert sums["correct"] == (logits.argmax(-1) == batch["label"]).sum()


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_without_mixing_that_is_torchs_weighted_mean(smoothing, logits, batch):
    theirs = torch.nn.functional.cross_entropy(
        torch.tensor(logits),
        torch.tensor(batch["label"], dtype=torch.int64),
        weight=torch.tensor(WEIGHTS, dtype=torch.float64),
        label_smoothing=smoothing,
    )
    _, ours = expected(logits, batch, smoothing, WEIGHTS, mixed=False)
    assert ours == pytest.approx(float(theirs), rel=1e-12)


def test_a_plan_weighs_by_the_labels_of_the_training_split(small_config, images):
    weighted = small_config(loss=LossConfig(class_weights="balanced"))
    train = FolderSource(images, "train")
    few = Subset(train, [0, 1, 2, 3, 12, 13, 14, 24])  # 4 ants, 3 bees, 1 cat
    _, (plan,) = set_up(weighted, few.class_names, 5, 2.25, few)
    assert plan.class_weights == (8 / 12, 8 / 9, 8 / 3)
    _, (plan,) = set_up(small_config(), few.class_names, 5, 2.25, few)
    assert plan.class_weights is None
    with pytest.raises(ValueError, match="need the training split"):
        set_up(weighted, few.class_names, 5, 2.25)
