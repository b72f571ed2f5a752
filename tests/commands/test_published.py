"""Names of the Hub in every command that takes weights."""

import json
import os
import subprocess
import sys

import pytest

from jxfer.commands.main import main
from jxfer.zoo import store
from tests.zoo.server import COMMIT, CONFIG, NAME, publish

PETS = CONFIG | {"num_classes": 3, "label_names": ["ants", "bees", "cats"]}


@pytest.fixture
def repository(hub_server, weights, no_zoos):
    """The weights on the Hub, for the classes of `images`; the file that is served."""
    return publish(hub_server, weights.read_bytes(), PETS)


@pytest.mark.slow
def test_a_run_starts_from_the_hub_and_keeps_where_it_came_from(
    repository, images, tmp_path, capsys
):
    run = tmp_path / "run"
    assert main([
        "train", "--run", str(run), "--data.source", f"folder:{images}", "--json",
        "--model.weights", NAME, "--strategy.name", "linear_probe", "--epochs", "1",
    ]) == 0  # fmt: skip
    summary = json.loads((run / "summary.json").read_text())
    assert len(summary["loaded"]) == 95
    head = ["params/head/linear/bias", "params/head/linear/kernel"]
    assert summary["reinitialised"] == head
    assert set(head) < set(summary["dropped"])
    assert sum("num_batches_tracked" in name for name in summary["dropped"]) == 19
    card = store.verify(run / "model")
    (parent,) = card.parents
    assert (parent.name, parent.source_sha256) == (NAME, repository.etag)
    assert parent.source.endswith(COMMIT)
    assert card.preprocessing.size == 40


def test_evaluate_and_predict_take_the_name(repository, images, tmp_path, capsys):
    data = ("--data.source", f"folder:{images}", "--json")
    assert main(["zoo", "import", NAME, "--zoo", str(tmp_path / "zoo")]) == 0
    entry, file = (str(tmp_path / name) for name in ("zoo/resnet20.made_up", "out.safetensors"))
    assert main(["zoo", "export", entry, "--format", "torch", "--out", file]) == 0
    figures = []
    for name in (NAME, entry, file):
        capsys.readouterr()
        assert main(["evaluate", name, *data]) == 0
        figures.append(json.loads(capsys.readouterr().out))
    assert figures[0].pop("model") == NAME
    assert figures[1].pop("model") == entry
    assert figures[2].pop("model") == file
    assert figures[0] == figures[1] == figures[2]
    assert main(["predict", NAME, str(images / "test"), "--json"]) == 0
    records = json.loads(capsys.readouterr().out)
    assert sum(record["class"] in record["image"] for record in records) == figures[0]["correct"]


@pytest.mark.parametrize(
    "args", [("evaluate", NAME, "--data.source", "folder:IMAGES"), ("predict", NAME, "IMAGES")]
)
def test_a_head_without_names_is_said_plainly(args, hub_server, weights, images, no_zoos, fails):
    publish(hub_server, weights.read_bytes(), PETS | {"label_names": None})
    line = fails([arg.replace("IMAGES", str(images)) for arg in args])
    assert f"{NAME}: nothing names the 3 classes of its head" in line
    assert f"jxfer zoo import {NAME} --class-names" in line


def test_a_failed_download_leaves_no_run(repository, images, tmp_path, capsys):
    repository.damaged = True
    run = tmp_path / "run"
    assert main([
        "train", "--run", str(run), "--data.source", f"folder:{images}", "--model.weights", NAME,
    ]) == 2  # fmt: skip
    assert "is damaged" in capsys.readouterr().err.splitlines()[-1]
    assert not run.exists()


@pytest.mark.slow
def test_the_commands_follow_the_environment(hub_server, weights, tmp_path):
    """HF_ENDPOINT, HF_HOME, offline mode and a proxy, as a user sets them."""
    publish(hub_server, weights.read_bytes(), PETS)
    environment = os.environ | {
        "HF_HOME": str(tmp_path / "home"),
        "HF_ENDPOINT": hub_server.url,
        "JXFER_ZOO": str(tmp_path / "zoo"),
        "TQDM_POSITION": "-1",  # draws the bar where there is no terminal
    }

    def jxfer(*args, **more):
        return subprocess.run(
            [sys.executable, "-m", "jxfer", *args],
            env=environment | more,
            capture_output=True,
            text=True,
            check=False,
        )

    done = jxfer("zoo", "import", NAME)
    assert done.returncode == 0, done.stderr
    assert "model.safetensors" in done.stderr  # the progress bar
    assert (tmp_path / "zoo" / "resnet20.made_up" / "card.json").is_file()
    assert (tmp_path / "home" / "hub").is_dir()

    offline = jxfer("zoo", "import", NAME, "--name", "again", HF_HUB_OFFLINE="1")
    assert offline.returncode == 0, offline.stderr
    refused = jxfer("zoo", "import", "timm/other", HF_HUB_OFFLINE="1")
    assert refused.returncode == 2
    assert "not in the cache" in refused.stderr.splitlines()[-1]

    proxied = {
        "HF_ENDPOINT": "http://hub.invalid",
        "HTTP_PROXY": hub_server.url,
        "NO_PROXY": "127.0.0.1",
        "HF_HOME": str(tmp_path / "other"),
    }
    through = jxfer("zoo", "import", NAME, "--name", "proxied", **proxied)
    assert through.returncode == 0, through.stderr
    assert any(path.startswith("http://hub.invalid/timm/") for _, path, _ in hub_server.requests)
