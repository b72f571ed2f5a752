"""A weight file to import, and a zoo to put it in."""

import numpy as np
import pytest
import safetensors.numpy

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
