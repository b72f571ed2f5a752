import dataclasses

import jax
import jax.export
import numpy as np
import pytest
import safetensors
import safetensors.numpy
import torch

from jxfer import trees
from jxfer.data.transforms import Preprocessing, normalise
from jxfer.errors import UserError
from jxfer.models import registry
from jxfer.models.heads import HeadConfig
from jxfer.zoo import export, readers, store, torch_names
from jxfer.zoo.card import Card
from tests import torch_reference


def from_torch(arch, classes=3, seed=0):
    """PyTorch's network with random weights, and the same weights as ours with their card."""
    reference = torch_reference.create(arch, classes)
    torch_reference.randomise(reference, seed)
    tensors = {name: tensor.numpy() for name, tensor in reference.state_dict().items()}
    model = registry.create(arch, classes)
    card = Card(
        name="net",
        arch=arch,
        class_names=tuple("abcdefghij"[:classes]),
        preprocessing=model.architecture.preprocessing,
    )
    return reference, card, torch_names.import_torch(tensors, model).variables


def logits_of(card, variables, images):
    return jax.jit(store.build(card).apply)(variables, images)[0]["logits"]


@pytest.mark.parametrize(("arch", "size"), [("resnet20", 32), ("resnet20_b", 32), ("resnet18", 96)])
def test_torch_loads_it_strictly_and_gives_the_same_logits(tmp_path, arch, size):
    _, card, variables = from_torch(arch)
    export.to_torch(card, variables, tmp_path / "net.safetensors")
    tensors = safetensors.numpy.load_file(tmp_path / "net.safetensors")
    other = torch_reference.create(arch, 3)
    other.load_state_dict({k: torch.from_numpy(v) for k, v in tensors.items()}, strict=True)
    images = np.random.default_rng(0).normal(size=(4, size, size, 3)).astype(np.float32)
    with torch.no_grad():
        want = other(torch.from_numpy(images.transpose(0, 3, 1, 2).copy()))["logits"].numpy()
    got = np.asarray(logits_of(card, variables, images))
    assert np.abs(got - want).max() <= 1e-5 * np.abs(want).max()


def test_import_then_export_gives_every_bit_back(tmp_path):
    reference, card, variables = from_torch("resnet20")
    export.to_torch(card, variables, tmp_path / "net.safetensors")
    written = safetensors.numpy.load_file(tmp_path / "net.safetensors")
    state = {
        name: tensor.numpy()
        for name, tensor in reference.state_dict().items()
        if not name.endswith("num_batches_tracked")
    }
    assert written.keys() == state.keys()
    for name, tensor in state.items():
        assert written[name].dtype == tensor.dtype
        assert written[name].tobytes() == tensor.tobytes(), name


@pytest.mark.parametrize("through", [None, "stage2"])
@pytest.mark.parametrize("batchnorm", ["standard", "folded"])
def test_export_then_import_gives_the_entry_back(tmp_path, card, variables, through, batchnorm):
    """A part of a network too; `batchnorm` is the card's word, the tensors are what they are."""
    card = dataclasses.replace(card, batchnorm=batchnorm, through=through)
    if through:
        card = dataclasses.replace(card, class_names=())
        kept = ("stem", "stage1", "stage2")
        variables, _ = trees.split(variables, lambda path: path.split("/")[1] in kept)
    card = store.save(tmp_path / "small", card, variables)
    path = tmp_path / "out" / "small.safetensors"
    export.to_torch(card, variables, path)
    tensors, _ = readers.read_tensors(path)
    again = torch_names.import_torch(tensors, store.build(card))
    assert trees.sha256(again.variables) == card.tensors_sha256
    with safetensors.safe_open(path, "np") as file:
        metadata = file.metadata()
    assert metadata["format"] == "pt"
    assert Card.from_json(metadata["jxfer_card"]) == card
    assert [file.name for file in path.parent.iterdir()] == ["small.safetensors"]


def test_torch_export_refuses(one_line, tmp_path, card, variables):
    path = tmp_path / "net.safetensors"
    with one_line("net.pth", ".safetensors"):
        export.to_torch(card, variables, tmp_path / "net.pth")
    head = HeadConfig("mlp", (8,))
    model = registry.create("resnet20", 3, head=head)
    with one_line("one linear layer", "mlp", "--format stablehlo"):
        export.to_torch(dataclasses.replace(card, head=head), model.init(0), path)
    (tmp_path / "file").touch()
    with one_line(str(tmp_path / "file"), "no folder can be made"):
        export.to_torch(card, variables, tmp_path / "file" / "net.safetensors")
    assert [file.name for file in tmp_path.iterdir()] == ["file"]
    path.mkdir()
    with one_line(str(path), "is no export of jxfer"):
        export.to_torch(card, variables, path, overwrite=True)


@pytest.mark.parametrize("write", [export.to_torch, export.to_stablehlo])
def test_a_failed_export_leaves_what_was_there(tmp_path, monkeypatch, card, variables, write):
    path = tmp_path / "net.safetensors"

    def written():
        return {
            file.relative_to(tmp_path): file.read_bytes()
            for file in tmp_path.rglob("*")
            if file.is_file()
        }

    def fail(*_):
        raise OSError("disk full")

    with monkeypatch.context() as patch:
        patch.setattr(export, "save", fail)
        with pytest.raises(UserError, match="disk full"):
            write(card, variables, path)
    assert list(tmp_path.iterdir()) == []
    write(card, variables, path)
    before = written()
    monkeypatch.setattr(export, "save", fail)
    with pytest.raises(UserError, match="disk full"):
        write(card, variables, path, overwrite=True)
    assert written() == before


@pytest.mark.parametrize("write", [export.to_torch, export.to_stablehlo])
def test_an_export_is_not_overwritten_unless_asked(one_line, tmp_path, card, variables, write):
    path = tmp_path / "net.safetensors"
    write(card, variables, path)
    with one_line("net.safetensors exists"):
        write(card, variables, path)
    write(card, variables, path, overwrite=True)
    assert list(tmp_path.iterdir()) == [path]


def read_program(folder):
    return jax.export.deserialize(bytearray((folder / export.PROGRAM).read_bytes()))


@pytest.mark.parametrize("arch", ["resnet20", "resnet20_b"])
def test_the_program_takes_any_number_of_pixels_and_gives_our_logits(tmp_path, arch):
    _, card, variables = from_torch(arch)
    preprocessing = Preprocessing(
        24, mean=(0.1, 0.4, 0.7), std=(0.2, 0.3, 0.4), channel_order="BGR"
    )
    card = dataclasses.replace(card, preprocessing=preprocessing)
    export.to_stablehlo(card, variables, tmp_path / "net")
    program = read_program(tmp_path / "net")
    weights = safetensors.numpy.load_file(tmp_path / "net" / "weights.safetensors")
    assert weights.keys() == trees.flatten(variables).keys()
    for n in (1, 5):
        shape = (n, 24, 24, 3)
        images = np.random.default_rng(n).integers(0, 256, shape).astype(np.uint8)
        want = logits_of(card, variables, normalise(images, preprocessing))
        got = program.call(weights, images)
        assert got.dtype == np.float32
        np.testing.assert_allclose(got, want, rtol=0, atol=1e-5 * np.abs(want).max())
    assert store.read_card(tmp_path / "net") == card


@pytest.mark.parametrize("arch", ["resnet20", "resnext50_32x4d", "vgg11", "alexnet"])
def test_one_program_for_all_platforms(tmp_path, arch):
    """Every family lowers with a free batch size; nothing in it is a CPU's alone."""
    model = registry.create(arch, 2)
    card = Card("net", arch, ("a", "b"), model.architecture.preprocessing)
    program = jax.export.deserialize(bytearray(export._program(card)))
    assert program.platforms == ("cpu", "cuda", "tpu")
    assert [str(dim) for dim in program.out_avals[0].shape] == ["batch", "2"]
    assert program.nr_devices == 1
    lines = [line for line in program.mlir_module().splitlines() if "custom_call" in line]
    assert all("@shape_assertion" in line for line in lines)


def test_stablehlo_export_refuses(one_line, tmp_path, card, variables):
    with one_line("small has no head"):
        export.to_stablehlo(dataclasses.replace(card, class_names=()), variables, tmp_path / "net")
    (tmp_path / "thesis").mkdir()
    with one_line("thesis", "no exported model"):
        export.to_stablehlo(card, variables, tmp_path / "thesis", overwrite=True)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis"]


def test_only_an_export_is_overwritten(one_line, tmp_path, card, variables):
    other = tmp_path / "other.safetensors"
    safetensors.numpy.save_file({"x": np.zeros(3, np.float32)}, other)
    with one_line("other.safetensors is no export of jxfer"):
        export.to_torch(card, variables, other, overwrite=True)
    folder = tmp_path / "folder"
    export.to_stablehlo(card, variables, folder)
    export.to_stablehlo(card, variables, folder, overwrite=True)
    (folder / "notes.txt").write_text("mine")
    with one_line("folder is no exported model and nothing else"):
        export.to_stablehlo(card, variables, folder, overwrite=True)
    assert (folder / "notes.txt").read_text() == "mine"
