"""The main job on published weights and real photographs, through the command line."""

import json
import zipfile

import pytest

from jxfer.commands.main import main

pytestmark = [pytest.mark.realdata, pytest.mark.slow]

CIFAR10 = "airplane,automobile,bird,cat,deer,dog,frog,horse,ship,truck"


@pytest.fixture(scope="module")
def cifar10(test_data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("cifar10")
    with zipfile.ZipFile(test_data / "cifar10_test.zip") as archive:
        archive.extractall(folder)
    return folder / "cifar10"


@pytest.mark.parametrize(
    ("weights", "published_errors"),
    [
        ("resnet20-12fca82f.th", 827),
        ("resnet32-d509ac18.th", 737),
        ("resnet44-014dd654.th", 690),
        ("resnet56-4bfd9763.th", 661),
    ],
)
def test_published_cifar10_networks_make_their_published_errors(
    weights, published_errors, cifar10, test_data, tmp_path, capsys
):
    path = test_data / "weights" / "cifar10-resnets" / weights
    name = weights.partition("-")[0]
    zoo = ("--zoo", str(tmp_path / "zoo"))
    given = ("--name", name, "--arch", name, "--class-names", CIFAR10)
    assert main(["zoo", "import", str(path), *given, *zoo]) == 0
    capsys.readouterr()
    assert main(["evaluate", name, "--data.source", f"folder:{cifar10}", *zoo, "--json"]) == 0
    figures = json.loads(capsys.readouterr().out)
    assert figures["examples"] == 10_000
    assert abs(figures["errors"] - published_errors) <= 2


def test_a_linear_probe_of_imagenet_features_tells_ants_from_bees(
    hymenoptera, test_data, tmp_path, capsys
):
    weights = test_data / "weights" / "imagenet-resnet18-folded-partial"
    zoo = ("--zoo", str(tmp_path / "zoo"))
    run = tmp_path / "run"
    entry = ("--name", "resnet18", "--arch", "resnet18", "--through", "stage3")
    assert main(["zoo", "import", str(weights), *entry, *zoo]) == 0
    data = ("--data.source", f"folder:{hymenoptera}", "--model.weights", "resnet18", *zoo)
    # The rate was chosen by cross-validation on the training split; one evaluation, at the end.
    rate = ("--optimizer.lr", "1", "--epochs", "25", "--eval-every", "25")
    probe = ("--strategy.name", "linear_probe")
    capsys.readouterr()
    assert main(["train", "--run", str(run), *data, *probe, *rate, "--json"]) == 0
    summary = json.loads(capsys.readouterr().out)
    assert (summary["train_examples"], summary["val_examples"]) == (244, 153)
    assert summary["val_accuracy"] >= 0.86
    assert summary["frozen_unchanged"] is True

    assert main(["evaluate", str(run), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["correct"] == summary["val_correct"]

    assert main(["predict", str(run), str(hymenoptera / "val"), "--json"]) == 0
    records = json.loads(capsys.readouterr().out)
    named = sum(f"/{record['class']}/" in record["image"] for record in records)
    assert named == summary["val_correct"]
