"""Every architecture beside PyTorch on the same random weights: writes docs/parity.md.

Command: `python -m scripts.parity_table` (needs the extra `dev`; about ten minutes on 2 cores)
The references are those of the tests, written from the papers. Both sides run in float32 on CPU at
the architecture's own input size. An error is the largest absolute difference over the largest
magnitude of PyTorch's output.
"""

import gc
import pathlib

import jax
import numpy as np
import torch
import tyro

from jxfer.models import registry
from jxfer.models.architectures import Architecture
from jxfer.zoo import torch_names
from tests import torch_reference

INTRODUCTION = """# Parity with PyTorch

Largest absolute difference over the largest magnitude of PyTorch's output, float32 on CPU, on the
same random weights and two images of noise at the architecture's own input size. "stages" is the
worst of all stages. Written by `python -m scripts.parity_table`; the tests hold every row, at
smaller sizes, to 1e-4.

"""


def main(out: pathlib.Path = pathlib.Path("docs/parity.md"), arch: tuple[str, ...] = ()) -> None:
    """Writes the table.

    Args:
      out: The file.
      arch: Architectures to compare; all of them unless given.
    """
    lines = [
        "| architecture | parameters | px | stem | stages | logits |",
        "|---|--:|--:|--:|--:|--:|",
    ]
    for name in arch or registry.list_architectures():
        row = registry.architecture(name)
        errors = compare(row)
        stages = max(errors[stage] for stage in row.stages)
        stem = f"{errors['stem']:.1e}" if "stem" in errors else "-"
        lines.append(
            f"| {name} | {row.parameters:,} | {row.preprocessing.size} | {stem} | {stages:.1e} "
            f"| {errors['logits']:.1e} |"
        )
        print(lines[-1], flush=True)
        jax.clear_caches()
        gc.collect()
    out.parent.mkdir(parents=True, exist_ok=True)
    versions = f"JAX {jax.__version__}, PyTorch {torch.__version__}, NumPy {np.__version__}."
    out.write_text(INTRODUCTION + "\n".join(lines) + f"\n\n{versions}\n", encoding="utf-8")


def compare(row: Architecture) -> dict[str, float]:
    """Relative error of each stage, `pooled` and `logits`."""
    reference = torch_reference.create(row.name, row.num_classes)
    torch_reference.randomise(reference, seed=0)
    side = row.preprocessing.size
    images = np.random.default_rng(1).standard_normal((2, side, side, 3), np.float32)
    with torch.inference_mode():
        expected = reference(torch.from_numpy(images.transpose(0, 3, 1, 2).copy()))
    tensors = {name: tensor.numpy() for name, tensor in reference.state_dict().items()}
    model = registry.create(row.name, row.num_classes)
    variables = torch_names.import_torch(tensors, model).variables
    outputs, _ = jax.jit(model.apply)(variables, images)
    errors = {}
    for name, output in outputs.items():
        want = expected[name].numpy()
        want = want.transpose(0, 2, 3, 1) if want.ndim == 4 else want
        errors[name] = float(np.abs(np.asarray(output) - want).max() / np.abs(want).max())
    return errors


if __name__ == "__main__":
    tyro.cli(main)
