"""A weight file to import, a zoo to put it in, a backbone, and a command that must fail."""

import numpy as np
import pytest
import safetensors.numpy

from jxfer.commands.main import main
from jxfer.data.transforms import CIFAR
from jxfer.models import registry
from jxfer.zoo import store
from jxfer.zoo.card import Card
from tests import torch_reference


@pytest.fixture(scope="session")
def weights(tmp_path_factory):
    """A safetensors file of a CIFAR ResNet-20 with three classes."""
    reference = torch_reference.create("resnet20", 3)
    torch_reference.randomise(reference, seed=0)
    path = tmp_path_factory.mktemp("weights") / "net.safetensors"
    tensors = {name: np.ascontiguousarray(t.numpy()) for name, t in reference.state_dict().items()}
    safetensors.numpy.save_file(tensors, path)
    return path


@pytest.fixture
def zoo(tmp_path, no_zoos):
    return tmp_path / "zoo"


@pytest.fixture
def run_import(weights, zoo):
    """Imports the file, with more options."""
    from jxfer.commands.zoo import main

    def run(*more, file=weights):
        return main(["import", str(file), "--arch", "resnet20", "--zoo", str(zoo), *more])

    return run


@pytest.fixture(scope="session")
def backbone(tmp_path_factory):
    """An entry without a head: ResNet-20 through stage 1, random."""
    folder = tmp_path_factory.mktemp("backbones") / "backbone"
    model = registry.create("resnet20", None, through="stage1")
    store.save(folder, Card("backbone", "resnet20", (), CIFAR, through="stage1"), model.init(0))
    return folder


@pytest.fixture
def fails(capsys):
    """Runs a command that must fail; returns its one line of stderr."""

    def run(args):
        capsys.readouterr()
        assert main(args) == 2
        captured = capsys.readouterr()
        assert captured.out == ""
        (line,) = captured.err.strip().splitlines()
        return line

    return run
