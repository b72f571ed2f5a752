"""The report of real, tiny runs: one on digits, one on classes whose names mean harm."""

import csv
import dataclasses
import html.parser
import json
import pathlib
import shutil
import xml.etree.ElementTree

import cv2
import numpy as np
import pytest

from jxfer import sealed
from jxfer.data.sources import DataConfig
from jxfer.data.transforms import decode, evaluation_view
from jxfer.report import run, run_charts, run_drawings, run_results, run_tables
from jxfer.train import loop
from jxfer.train.config import TrainConfig
from jxfer.transfer.strategy import StrategyConfig
from jxfer.zoo.pretrained import ModelConfig

HOSTILE = ("<script>alert(1)", "$x_1 & 50% \\{", "a\nb \x1b[31m", "개")
PICTURES = ("accuracy", "calibration", "confusion", "learning-rates", "loss", "mistake-images")

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def small_config():
    """ResNet-20 through stage 1, from random weights, for 5 steps or so."""

    def make(data, **fields):
        small = {
            "model": ModelConfig(arch="resnet20", through="stage1"),
            "strategy": StrategyConfig("scratch"),
            "batch_size": 16,
            "epochs": 2.0,
            "log_every": 1,
        }
        return TrainConfig(**{**small, "data": data, **fields})

    return make


@pytest.fixture(scope="module")
def digits_run(small_config, tmp_path_factory, cache):
    folder = tmp_path_factory.mktemp("runs") / "digits"
    loop.run_config(small_config(DataConfig("digits", per_class=4)), folder, quiet=True)
    return folder


@pytest.fixture(scope="module")
def digits(digits_run):
    """What the report sees of that run."""
    return run_results.read(digits_run)


@pytest.fixture(scope="module")
def report(digits_run):
    return run.write(digits_run)


@pytest.fixture(scope="module")
def hostile_run(small_config, digits_run, tmp_path_factory):
    """Two phases from the other run's model; no test split, and 20 of 40 images for validation."""
    images = tmp_path_factory.mktemp("hostile")
    rng = np.random.default_rng(0)
    for name in HOSTILE:
        (images / name).mkdir()
        for i in range(10):
            image = rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)
            cv2.imwrite(str(images / name / f"{i}.png"), image)
    data = DataConfig(f"folder:{images}", val_fraction=0.5)
    folder = tmp_path_factory.mktemp("runs") / "hostile"
    config = small_config(
        data,
        model=ModelConfig(weights=str(digits_run)),
        strategy=StrategyConfig("lp_ft"),
        epochs=4.0,
    )
    loop.run_config(config, folder, quiet=True)
    return folder


@pytest.fixture(scope="module")
def hostile_report(hostile_run):
    return run.write(hostile_run)


def rows(file: pathlib.Path) -> list[dict[str, str]]:
    with file.open(newline="") as stream:
        return list(csv.DictReader(stream))


def summary_of(folder: pathlib.Path) -> dict:
    return json.loads((folder / "summary.json").read_text())


def test_the_figures_of_the_report_are_those_of_the_summary(digits_run, report):
    summary = summary_of(digits_run)
    text = (report / "report.md").read_text()
    assert summary["test_examples"] == 500
    assert f"| test accuracy | {summary['test_correct'] / 500:.1%} (" in text
    assert f"), {summary['test_correct']} of 500 |" in text
    assert f"| test macro-F1 | {summary['test_macro_f1']:.4f} |" in text
    assert "Evaluated again" not in text


def test_the_confusion_matrix_holds_every_test_image_once(digits_run, digits, report):
    summary = summary_of(digits_run)
    counts = [list(row.values())[1:] for row in rows(report / "tables/confusion.csv")]
    matrix = np.array(counts, int)
    assert np.sum(matrix) == summary["test_examples"]
    assert np.trace(matrix) == summary["test_correct"]
    assert np.sum(matrix, 1).tolist() == np.bincount(digits.source.labels).tolist()


def test_the_classes_add_up_to_the_whole(digits_run, report):
    classes = rows(report / "tables/classes.csv")
    assert [one["class"] for one in classes] == list("0123456789")
    right = sum(float(one["accuracy"]) * int(one["accuracy_n"]) for one in classes)
    assert right == pytest.approx(summary_of(digits_run)["test_correct"])
    mean_f1 = np.mean([float(one["f1"]) for one in classes])
    assert mean_f1 == pytest.approx(summary_of(digits_run)["test_macro_f1"])


def test_the_report_is_complete_and_a_second_one_has_the_same_bytes(digits_run, report, tmp_path):
    def contents(folder):
        files = (path for path in folder.rglob("*") if path.is_file())
        return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}

    first = contents(report)
    assert report == digits_run / "report"
    assert {"report.md", "index.html", "tables/classes.tex"} <= first.keys()
    kinds = ("svg", "png", "pdf")
    assert {name for name in first if name.startswith("figures/")} == {
        f"figures/{stem}.{kind}" for stem in PICTURES for kind in kinds
    }
    moved = tmp_path / "moved" / "digits"  # two folders down, so that links change
    shutil.copytree(digits_run, moved, ignore=shutil.ignore_patterns("report"))
    assert contents(run.write(moved)) == first


def test_every_link_of_the_page_leads_to_a_file(report, digits_run, tmp_path):
    class Links(html.parser.HTMLParser):
        def __init__(self):
            super().__init__()
            self.found = []

        def handle_starttag(self, tag, attrs):
            if tag == "a":
                self.found.append(dict(attrs)["href"])

    for folder in (report, run.write(digits_run, tmp_path / "else where")):
        links = Links()
        links.feed((folder / "index.html").read_text())
        assert "tables/classes.csv" in links.found
        assert all((folder / link).resolve().is_file() for link in links.found)


def test_an_unfinished_run_is_one_line(digits_run, tmp_path, one_line):
    unfinished = tmp_path / "unfinished"
    shutil.copytree(digits_run, unfinished)
    (unfinished / "summary.json").unlink()
    with one_line(str(unfinished), "not finished"):
        run.write(unfinished)
    with one_line(str(tmp_path), "no run folder"):
        run.write(tmp_path)


@pytest.mark.parametrize("name", ["metrics.jsonl", "timing.json"])
def test_a_damaged_run_is_one_line(name, digits_run, tmp_path, one_line):
    damaged = tmp_path / "damaged"
    shutil.copytree(digits_run, damaged)
    (damaged / name).write_text('{"step": ')
    with one_line(name, "damaged"):
        run.write(damaged)
    (damaged / name).unlink()
    with one_line(name, "cannot be read"):
        run.write(damaged)


def test_images_that_were_added_since_the_run_are_one_line(hostile_run, tmp_path, one_line):
    config = sealed.bare(json.loads((hostile_run / "config.json").read_text()))
    copy, images = tmp_path / "run", tmp_path / "images"
    shutil.copytree(config["data"]["source"].removeprefix("folder:"), images)
    shutil.copytree(hostile_run, copy)
    config["data"]["source"] = f"folder:{images}"
    (copy / "config.json").write_text(json.dumps(config))
    for i in range(4):
        shutil.copy(images / HOSTILE[0] / "0.png", images / HOSTILE[0] / f"more{i}.png")
    with one_line("22 val images", "had 20"):
        run.write(copy)
    shutil.copytree(images / HOSTILE[0], images / "new")
    with one_line("only in the data: new"):
        run.write(copy)


def test_without_a_test_split_the_report_is_of_validation_and_says_so(hostile_run, hostile_report):
    summary = summary_of(hostile_run)
    text = (hostile_report / "report.md").read_text()
    assert summary["test_accuracy"] is None
    assert f"), {summary['val_correct']} of 20 |" in text
    assert "The data has no test split." in text
    counts = [int(one["accuracy_n"]) for one in rows(hostile_report / "tables/classes.csv")]
    assert counts == [5, 5, 5, 5]


def test_names_of_classes_are_text_wherever_they_stand(hostile_report):
    page = (hostile_report / "index.html").read_text()
    assert page.count("<script>") == 1  # the page's own
    assert "&lt;script&gt;alert(1)" in page
    for file in [*hostile_report.rglob("*.md"), *hostile_report.rglob("*.tex")]:
        assert "\x1b" not in file.read_text()
    assert r"| \<script\>alert(1) | 5 |" in (hostile_report / "report.md").read_text()
    assert r"\$x\_1 \& 50\% " in (hostile_report / "tables/classes.tex").read_text()
    assert [one["class"] for one in rows(hostile_report / "tables/classes.csv")] == sorted(HOSTILE)
    for file in (hostile_report / "figures").glob("*.svg"):
        elements = xml.etree.ElementTree.parse(file).iter()
        assert not any(element.tag.endswith("script") for element in elements)


def test_a_figure_names_classes_that_its_font_cannot_write_by_their_number():
    assert run_drawings.class_labels(["cat", "개", "x" * 50]) == ["cat", "class 1", "x" * 19 + "…"]


def test_curves_hold_the_metrics_and_mark_the_phases(hostile_run):
    found = run_results.read(hostile_run)
    lines = (hostile_run / "metrics.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in lines]
    charts = run_charts.learning_curves(found)
    training, validation = charts["loss"].lines
    wanted = [(r["step"], r["train_loss"]) for r in records if "train_loss" in r]
    assert list(zip(training.x, training.y, strict=True)) == wanted
    wanted = [(r["step"], 100 * r["val_accuracy"]) for r in records if "val_accuracy" in r]
    (_, validation) = charts["accuracy"].lines
    assert list(zip(validation.x, validation.y, strict=True)) == wanted
    head, all_ = found.summary["phases"]
    assert charts["loss"].marks == [(0, head["name"]), (head["steps"], all_["name"])]
    assert len(charts["learning-rates"].lines[0].x) == len(training.x)


def test_a_long_curve_shows_means_of_neighbours(digits):
    records = [{"step": i + 1, "train_loss": float(i % 3)} for i in range(1200)]
    (line,) = run_charts.learning_curves(dataclasses.replace(digits, metrics=records))["loss"].lines
    assert list(line.x) == list(range(3, 1201, 3))
    assert set(line.y) == {1.0}


def test_a_loss_that_is_not_finite_leaves_a_gap(digits):
    records = [{"step": i, "val_loss": loss} for i, loss in enumerate((1.0, float("inf"), 2.0))]
    (line,) = run_charts.learning_curves(dataclasses.replace(digits, metrics=records))["loss"].lines
    assert (list(line.x), list(line.y)) == ([0, 2], [1.0, 2.0])


def test_a_model_that_counts_otherwise_when_evaluated_again_is_told(digits):
    rounded = dataclasses.replace(digits, correct=digits.correct + 1)
    caption = run_tables.key_figures(rounded, 0.0).caption
    assert f"classifies {digits.correct} images rightly, not {digits.correct + 1}" in caption
    assert "again" not in run_tables.key_figures(digits, 0.0).caption


def test_more_classes_than_a_heat_map_holds_are_told_by_their_worst_pairs(digits):
    names = tuple(f"class {i}" for i in range(31))
    probabilities = np.eye(31, dtype=np.float32)[(digits.source.labels + 21) % 31]
    wide = dataclasses.replace(
        digits,
        card=dataclasses.replace(digits.card, class_names=names),
        probabilities=probabilities,
    )
    parts, raw = run._parts(wide, "..")
    assert "confusion" not in parts
    assert len(raw["confusion"]) == 32
    first = parts["confused"].rows[0]
    largest = int(np.bincount(digits.source.labels).argmax())
    assert first[:2] == (f"class {largest}", f"class {largest + 21}")


def test_a_model_without_mistakes_has_a_report(digits, report):
    right = np.eye(10, dtype=np.float32)[digits.source.labels]
    parts, raw = run._parts(dataclasses.replace(digits, probabilities=right), "..")
    assert not {"confused", "mistakes", "mistake-images"} & parts.keys()
    assert raw["mistakes"] == [["index", "image", "actual class", "predicted class", "confidence"]]


def test_thumbnails_show_what_the_model_saw_of_its_most_confident_mistakes(digits, report):
    told = rows(report / "tables/mistakes.csv")
    confidence = [float(one["confidence"]) for one in told]
    assert confidence == sorted(confidence, reverse=True)
    assert len(told) == 24
    index = int(told[0]["index"])
    assert digits.source.name(index) == told[0]["image"]
    file = run_drawings.png(run_drawings.thumbnail(digits, index))
    example = digits.source[index]
    view = evaluation_view(decode(example.image, example.name), digits.card.preprocessing)
    np.testing.assert_array_equal(decode(file, "thumbnail"), view)


def test_the_page_in_a_browser(hostile_report, browser):
    page = browser.new_page(viewport={"width": 390, "height": 800})
    troubles = []
    page.on("console", lambda message: troubles.append(message.text))
    page.on("pageerror", lambda error: troubles.append(str(error)))
    page.on("dialog", lambda dialog: troubles.append(dialog.message))
    page.goto((hostile_report / "index.html").as_uri())

    sizes = page.locator(".gallery img").evaluate_all("all => all.map(i => i.naturalWidth)")
    assert set(sizes) == {32}
    assert page.locator("figure img").first.evaluate("image => image.naturalWidth") > 300
    told = [
        f"{one['actual class']}, taken for {one['predicted class']}\n"
        f"confidence {float(one['confidence']):.1%}".replace("\x1b", "␛")
        for one in rows(hostile_report / "tables/mistakes.csv")
    ]
    assert page.locator(".gallery figcaption").all_text_contents() == told

    loss = page.get_by_role("img", name="Loss").first
    loss.hover()
    tip = page.locator(".chart").first.locator(".tip")
    assert tip.is_visible()
    assert "training: " in tip.inner_text()

    classes = page.locator("table", has_text="accuracy (recall)")
    for _ in range(2):  # the second click sorts downwards
        classes.locator("th button").nth(2).click()
    best = max(float(one["accuracy"]) for one in rows(hostile_report / "tables/classes.csv"))
    assert classes.locator("tbody td").nth(2).inner_text().startswith(f"{100 * best:.1f} (")
    assert "<script>alert(1)" in classes.locator("tbody td:first-child").all_text_contents()
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    assert troubles == []
    page.close()
