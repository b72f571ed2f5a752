"""`jxfer predict --dense`: a classifier as a convolution, its scores drawn over each image."""

import dataclasses
import pathlib
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

from jxfer import text
from jxfer.commands import evaluate
from jxfer.data import transforms
from jxfer.data.sources import Source
from jxfer.errors import UserError
from jxfer.models import dense
from jxfer.trees import Tree
from jxfer.zoo.card import Card


@dataclasses.dataclass(frozen=True)
class ScoreMap:
    """What the classifier says at every place of one image."""

    name: str
    image: np.ndarray
    """uint8 [H, W, 3], as the network saw it"""
    probabilities: np.ndarray
    """float32 [h, w, K], softmax over the classes at each place"""
    centres: tuple[np.ndarray, np.ndarray]
    """rows [h] and columns [w] of the pixels in the middle of what each score sees"""
    stride: int
    """pixels between two scores"""

    @property
    def best_class(self) -> int:
        """The class of the highest mean probability."""
        return int(self.probabilities.mean((0, 1)).argmax())


def predict(
    card: Card,
    variables: Tree,
    source: Source,
    *,
    scale: float,
    class_name: str | None,
    out: pathlib.Path,
    json: bool,
) -> None:
    """Draws `OUT/NAME-scores.png` for each image and prints what was found.

    Args:
      card, variables: the entry.
      source: the images.
      scale: size of the images relative to what the model classifies whole.
      class_name: whose scores to draw; the class of the highest mean probability unless given.
      out: folder of the drawings.
      json: print a JSON list with the maps.

    Raises:
      UserError: an option out of range, no such class, two images of one name, an unreadable
        image, a folder that cannot be written, or a head that is no convolution.
    """
    if not 1 <= scale <= 100:  # NaN too
        raise UserError(f"--scale {scale:g}: it must be at least 1, what is classified, and <= 100")
    if class_name is not None and class_name not in card.class_names:
        raise UserError(f"--class-name {class_name}: {card.name} knows no such class")
    files = [out / f"{pathlib.Path(source.name(i)).stem}-scores.png" for i in range(len(source))]
    if twice := next((file for file in files if files.count(file) > 1), None):
        raise UserError(f"two images would be drawn to {twice}; give each an --out of its own")
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--out {out}: {error.strerror}") from None

    records: list[dict[str, Any]] = []
    for file, scores in zip(files, _score_maps(card, variables, source, scale), strict=True):
        index = scores.best_class if class_name is None else card.class_names.index(class_name)
        _draw(scores, index, card.class_names[index], file)
        shown = scores.probabilities[:, :, index]
        row, column = np.unravel_index(shown.argmax(), shown.shape)
        records.append(
            {
                "image": scores.name,
                "size": list(scores.image.shape[:2]),
                "class": card.class_names[index],
                "mean_probability": float(shown.mean()),
                "max_probability": float(shown.max()),
                "max_at": [int(scores.centres[0][row]), int(scores.centres[1][column])],
                "map": shown.tolist(),
                "drawing": str(file),
            }
        )
    if json:
        print(text.to_json(records))
        return
    rows = [("image", "class", "mean", "highest", "at (row, column)", "map", "drawing")]
    for record in records:
        height, width = len(record["map"]), len(record["map"][0])
        rows.append(
            (
                record["image"],
                record["class"],
                f"{record['mean_probability']:.1%}",
                f"{record['max_probability']:.1%}",
                "{}, {}".format(*record["max_at"]),
                f"{height} x {width}",
                record["drawing"],
            )
        )
    print(text.table(rows))


def _score_maps(card: Card, variables: Tree, source: Source, scale: float) -> Iterator[ScoreMap]:
    preprocessing = card.preprocessing
    model, variables = dense.convolutional(evaluate.model_of(card), variables, preprocessing.size)
    geometry = dense.score_geometry(model)

    @jax.jit
    def probabilities(variables: Tree, image: jax.Array) -> jax.Array:
        outputs, _ = model.apply(variables, transforms.normalise(image[None], preprocessing))
        return jax.nn.softmax(outputs["logits"][0])

    short = round(scale * preprocessing.size / preprocessing.crop)
    for i in range(len(source)):
        example = source[i]
        whole = transforms.decode(example.image, example.name)
        if max(whole.shape[:2]) > transforms.LONGEST * min(whole.shape[:2]):
            raise UserError(
                f"image {example.name}: a strip longer than {transforms.LONGEST} times its width "
                "has no map; cut it into parts"
            )
        image = transforms.resize_short_side(whole, short, preprocessing)
        scores = np.asarray(probabilities(variables, image))
        # The middle of a window of n pixels that starts at s is s + (n - 1) / 2.
        middle = (geometry.window - 1) / 2 - geometry.offset
        rows, columns = (np.rint(np.arange(n) * geometry.stride + middle) for n in scores.shape[:2])
        yield ScoreMap(example.name, image, scores, (rows, columns), geometry.stride)


def _draw(scores: ScoreMap, index: int, class_name: str, file: pathlib.Path) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    height, width = scores.image.shape[:2]
    figure = Figure(figsize=(6 * width / height + 1, 6), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.imshow(scores.image)
    rows, columns = scores.centres
    # Each score colours the stride's square around its centre; beyond the outermost ones the image
    # stays bare, since no window is centred there.
    reach = scores.stride / 2
    extent = (columns[0] - reach, columns[-1] + reach, rows[-1] + reach, rows[0] - reach)
    shown = axes.imshow(
        scores.probabilities[:, :, index], extent=extent, alpha=0.5, vmin=0, vmax=1, cmap="viridis"
    )
    axes.set(xlim=(-0.5, width - 0.5), ylim=(height - 0.5, -0.5), xticks=(), yticks=())
    axes.set_title(f"{pathlib.Path(scores.name).name}: {class_name}")
    figure.colorbar(shown, label="probability", shrink=0.8)
    try:
        figure.savefig(file, dpi=100, metadata={"Software": None})
    except OSError as error:
        raise UserError(f"{file}: cannot be written: {error.strerror}") from None
