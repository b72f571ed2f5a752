"""Classes of images by an exported model: `python predict.py IMAGE... [--top 3] [--json]`.

Beside `model.jaxexport`, `weights.safetensors` and `card.json`. Needs jax, flatbuffers (which jax's
exporter reads with), numpy, safetensors and pillow, and nothing of jxfer.
"""

import argparse
import json
import pathlib

import jax
import jax.export
import numpy as np
from PIL import Image
from safetensors.numpy import load_file

HERE = pathlib.Path(__file__).resolve().parent
BATCH = 32  # images at a time; the model takes any number


def read_view(path: str, preprocessing: dict) -> np.ndarray:
    """An image as the model saw them in training: uint8 RGB [size, size, 3].

    The short side is resized to round(size / crop), the long side rounded down; then the centre.
    """
    with Image.open(path) as file:
        image: Image.Image = file
        if file.mode.startswith("I;16"):  # Pillow itself would clip at 255
            image = Image.fromarray((np.asarray(file) >> 8).astype(np.uint8))
        image = image.convert("RGB")
    size = preprocessing["size"]
    short = round(size / preprocessing["crop"])
    width, height = image.size
    if height <= width:
        resized = (int(short * width / height), short)
    else:
        resized = (short, int(short * height / width))
    if resized != image.size:
        image = image.resize(resized, Image.Resampling[preprocessing["interpolation"].upper()])
    left, top = (round((side - size) / 2) for side in image.size)
    return np.asarray(image.crop((left, top, left + size, top + size)))


def predict(images: list[str], card: dict) -> np.ndarray:
    """Probabilities [N, K] of image files, in the order of the card's classes."""
    exported = jax.export.deserialize(bytearray((HERE / "model.jaxexport").read_bytes()))
    model = jax.jit(exported.call)
    weights = jax.device_put(load_file(HERE / "weights.safetensors"))
    parts = []
    for start in range(0, len(images), BATCH):
        views = [read_view(path, card["preprocessing"]) for path in images[start : start + BATCH]]
        parts.append(np.asarray(model(weights, np.stack(views))))
    logits = np.concatenate(parts)
    exponentials = np.exp(logits - logits.max(-1, keepdims=True))
    return exponentials / exponentials.sum(-1, keepdims=True)


def main() -> None:
    parser = argparse.ArgumentParser(description="Predict the classes of images.")
    parser.add_argument("images", nargs="+", metavar="IMAGE")
    parser.add_argument("--top", type=int, default=3, help="classes shown for each image")
    parser.add_argument("--json", action="store_true", help="print all probabilities as JSON")
    options = parser.parse_args()
    card = json.loads((HERE / "card.json").read_text(encoding="utf-8"))
    names = card["class_names"]
    records = []
    for path, row in zip(options.images, predict(options.images, card), strict=True):
        best = np.argsort(-row)[: options.top]
        if not options.json:  # without what a terminal would act on
            shown = "\t".join((path, *(f"{names[k]} {row[k]:.1%}" for k in best)))
            print("".join(c if c.isprintable() or c == "\t" else repr(c)[1:-1] for c in shown))
        probabilities = {name: float(p) for name, p in zip(names, row, strict=True)}
        records.append({"image": path, "class": names[best[0]], "probabilities": probabilities})
    if options.json:
        print(json.dumps(records, indent=2))


if __name__ == "__main__":
    main()
