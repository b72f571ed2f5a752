"""What every experiment file must hold, in both presets, without its data and without a run."""

import importlib
import json
import math
import os
import pathlib
import subprocess
import sys
import zipfile
from dataclasses import asdict

import cv2
import numpy as np
import pytest

from jxfer.ablate import experiment
from jxfer.ablate.claims import ACCURACY
from jxfer.ablate.verdicts import judge
from jxfer.data.embedded import EMBEDDED

EXPERIMENTS = pathlib.Path(__file__).resolve().parent.parent / "experiments"
FILES = sorted(path for path in EXPERIMENTS.glob("*.py") if "\ndef experiment(" in path.read_text())
PRESETS = [
    pytest.param(path, small, id=f"{path.stem}{'-small' * small}")
    for path in FILES
    for small in (False, True)
]


@pytest.fixture
def images(monkeypatch):
    """The module that the files take their images from."""
    monkeypatch.syspath_prepend(str(EXPERIMENTS))
    return importlib.import_module("images")


@pytest.fixture
def load(images, monkeypatch, tmp_path):
    """Reads a file as if its images and weights were there."""
    monkeypatch.chdir(tmp_path)
    for name in ("resnet18-imagenet", *(f"resnet{n}-cifar10" for n in (20, 32, 44, 56))):
        (tmp_path / "runs/zoo" / name).mkdir(parents=True)
    monkeypatch.setattr(images, "folder", lambda name, command="": f"folder:{name}")
    return lambda path, small: experiment.load(path, small).experiment


def cells(found, seed):
    """{(setting, arm, number of the choice): cell} of those that there are."""
    made = {
        (setting.name, arm, index): found.make(setting, arm, choice, seed)
        for setting in found.settings
        for arm in found.arms
        for index, choice in enumerate(found.choices[arm])
    }
    return {key: cell for key, cell in made.items() if cell is not None}


@pytest.mark.parametrize(("path", "small"), PRESETS)
def test_every_cell_has_a_config_which_depends_on_choice_and_seed(load, path, small):
    found = load(path, small)
    first, second = (cells(found, seed) for seed in (*found.seeds, *found.tuning_seeds)[:2])
    assert first.keys() == second.keys()
    for setting in found.settings:
        assert any((setting.name, arm, 0) in first for arm in found.arms)
        for arm in found.arms:
            some = [first[key] for key in first if key[:2] == (setting.name, arm)]
            assert len({str(cell) for cell in some}) == len(some)
    assert all(first[key] != second[key] for key in first)


@pytest.mark.parametrize(("path", "small"), PRESETS)
def test_arms_are_paired_by_the_seed(load, path, small):
    found = load(path, small)
    for seed in found.seeds:
        for cell in cells(found, seed).values():
            assert cell.config.seed == seed
            assert cell.config.data.split_seed == seed


@pytest.mark.parametrize(("path", "small"), PRESETS)
def test_claims_are_of_arms_settings_and_measures_that_there_are(load, path, small):
    found = load(path, small)
    assert found.claims
    grid = {(setting, arm) for setting, arm, _ in cells(found, found.seeds[0])}
    values = {
        (setting, arm, measure): {}
        for setting, arm in grid
        for measure in (ACCURACY, *found.measures)
    }
    places = {setting.name: setting.x for setting in found.settings}
    verdicts = judge(found.claims, values, places)
    assert {verdict.claim for verdict in verdicts} == set(map(str, found.claims))


@pytest.mark.parametrize(("path", "small"), PRESETS)
def test_a_shared_search_is_that_of_a_setting_of_the_table(load, path, small):
    found = load(path, small)
    if found.tune_in is not None:
        names = {setting.name for setting in found.settings}
        for setting in found.settings:
            shared = found.tune_in(setting)
            assert shared.name in names
            assert found.tune_in(shared).name == shared.name


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_the_small_preset_needs_nothing_but_the_package(load, path):
    found = load(path, True)
    for cell in cells(found, found.seeds[0]).values():
        while cell is not None:
            assert cell.config.data.source in EMBEDDED
            assert cell.config.zoo is None
            cell = cell.after


# One device, as a user has it: some batches do not divide over the eight of the tests.
RUN_SOME = """
import dataclasses, json, pathlib, sys
from jxfer.ablate import experiment
from jxfer.ablate.cells import error_of, unique
from jxfer.ablate.sweep import Sweep
path, out = map(pathlib.Path, sys.argv[1:])
found = experiment.load(path, small=True).experiment
arms = found.arms[:1]
found = dataclasses.replace(
    found, settings=found.settings[:1], arms=arms, seeds=found.seeds[:1], tuning_seeds=(),
    choices={arm: found.choices[arm][:1] for arm in arms}, tune_in=None, claims=(),
)
sweep = Sweep(found, out)
records = [(job.role, sweep.run(job)) for job in unique(sweep.grid.jobs({}))]
print(json.dumps({
    "wanted": list(found.measures),
    "errors": [error_of(record) for _, record in records],
    "measures": [list(record.measures) for role, record in records if role == "table"],
}))
"""


@pytest.mark.slow
@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_run_of_the_small_preset_ends_with_all_its_measures(path, tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", RUN_SOME, str(path), str(tmp_path)],
        env=os.environ | {"XLA_FLAGS": "", "PYTHONPATH": str(EXPERIMENTS.parent)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["errors"] == [None] * len(told["errors"])
    (measures,) = told["measures"]
    assert set(measures) == {ACCURACY, *told["wanted"]}


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_what_is_missing_is_one_line_with_the_command_that_makes_it(
    path, monkeypatch, tmp_path, one_line
):
    monkeypatch.chdir(tmp_path)
    with one_line("does not exist", "make it: python experiments/"):
        experiment.load(path, small=False)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_the_docstring_has_claim_command_and_time(path):
    doc = path.read_text().split('"""')[1]
    for word in ("Claim", "Expected: ", f"Command: `python experiments/{path.name}", "Time: "):
        assert word in doc


def write_zip(folder, name, root, splits):
    """Images of two classes, each of a colour of its own."""
    with zipfile.ZipFile(folder / f"{name}.zip", "w") as archive:
        for split, count in splits.items():
            for index in range(2 * count):
                image = np.full((2, 2, 3), (index // 256, index % 256, 0), np.uint8)
                file = f"{root}/{split}/{'ab'[index % 2]}/{index}.png"
                archive.writestr(file, cv2.imencode(".png", image)[1].tobytes())


def files(folder):
    return {str(path.relative_to(folder)) for path in folder.rglob("*.png")}


def test_sets_are_drawn_disjoint_and_always_the_same(images, monkeypatch, tmp_path):
    write_zip(tmp_path, "cifar10_test", "cifar10", {"test": 520})
    write_zip(tmp_path, "mnist_20k", "mnist", {"train": 420, "test": 120})
    write_zip(tmp_path, "hymenoptera_data", "hymenoptera_data", {"train": 3, "val": 2})
    found = []
    for name in ("once", "again"):
        (tmp_path / name).mkdir()
        monkeypatch.chdir(tmp_path / name)
        images.prepare(tmp_path)
        found.append({name: files(images.ROOT / name) for name in ("cifar10", "mnist")})
        assert len(files(images.ROOT / "hymenoptera" / "test")) == 4
    assert found[0] == found[1]
    for some in found[0].values():
        assert len(some) == 2 * (images.TRAIN + images.TEST)
        assert sum(name.startswith("train/a/") for name in some) == images.TRAIN
    names = [pathlib.Path(name).name for name in found[0]["cifar10"]]
    assert len(set(names)) == len(names)


def test_a_zip_that_is_missing_is_one_line(images, tmp_path, monkeypatch, one_line):
    monkeypatch.chdir(tmp_path)
    with one_line("cifar10_test.zip", "does not exist"):
        images.prepare(tmp_path)


def test_a_set_whose_making_ended_early_is_made_again(images, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def half(target):
        (target / "half").touch()
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        images.build("some", half)
    assert files(images.build("some", lambda target: (target / "whole.png").touch())) == {
        "whole.png"
    }


@pytest.fixture(params=FILES, ids=lambda path: path.stem)
def committed(request, load):
    """`results.json` of a file, and the file as it is now."""
    file = EXPERIMENTS / "results" / request.param.stem / "results.json"
    if not file.exists():
        pytest.skip("not yet run in full")
    return json.loads(file.read_text()), load(request.param, False)


def test_a_committed_table_is_of_the_file_beside_it(committed):
    table, found = committed
    for name in ("title", "note", "axis"):
        assert table[name] == getattr(found, name), name
    assert table["doc"] == sys.modules[found.cell.__module__].__doc__
    assert table["measures"] == [ACCURACY, *found.measures]
    for name in ("seeds", "tuning_seeds", "arms"):
        assert table[name] == list(getattr(found, name)), name
    assert [setting["name"] for setting in table["settings"]] == [s.name for s in found.settings]
    for search in table["choices"]:
        tried = [one["choice"] for one in search["validation"]] or [search["chosen"]]
        assert tried == [dict(choice) for choice in found.choices[search["arm"]]], search["arm"]


def rounded(value):
    """Other versions of SciPy differ in the last digits."""
    return pytest.approx(value, rel=1e-9) if isinstance(value, float | list) else value


def test_committed_verdicts_follow_from_the_committed_runs(committed):
    table, found = committed
    values = {
        (cell["setting"], cell["arm"], measure): {}
        for cell in table["cells"]
        for measure in table["measures"]
    }
    for cell in table["cells"]:
        if cell["role"] == "table" and cell["status"] == "finished":
            for measure, value in cell["measures"].items():
                if value is not None and math.isfinite(value):
                    values[cell["setting"], cell["arm"], measure][cell["seed"]] = value
    places = {setting.name: setting.x for setting in found.settings}
    judged = json.loads(json.dumps([asdict(one) for one in judge(found.claims, values, places)]))
    assert len(judged) == len(table["claims"])
    for one, told in zip(judged, table["claims"], strict=True):
        assert told == {name: rounded(value) for name, value in one.items()}
