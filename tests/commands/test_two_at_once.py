"""Two processes on one run folder, one zoo entry, one cache: nothing is mixed.

The second waits or is refused. A process that is stopped (SIGSTOP) holds what it holds for as long
as the test needs.
"""

import json
import shutil
import signal
import subprocess
import sys
import time

import pytest
import safetensors.numpy

from jxfer.commands.main import main
from jxfer.zoo import store
from tests.commands.runs import files, outcome, start, train

pytestmark = pytest.mark.slow


def finish(*processes):
    """[(exit code, last line of stderr)] of processes that end."""
    found = []
    for process in processes:
        _, err = process.communicate(timeout=1200)
        assert "Traceback" not in err, err
        found.append((process.returncode, (err.splitlines() or [""])[-1]))
    return found


def wait_for(process, done):
    while not done():
        assert process.poll() is None, process.communicate()
        time.sleep(0.002)


@pytest.fixture(scope="module")
def lone(images, tmp_path_factory):
    folder = tmp_path_factory.mktemp("lone") / "run"
    assert main([str(word) for word in train(folder, images)]) == 0
    return folder


@pytest.fixture
def stopped():
    """Stops a process until the test, or `release`, lets it go on."""
    held = []

    def release():
        while held:
            held.pop().send_signal(signal.SIGCONT)

    def stop(process):
        process.send_signal(signal.SIGSTOP)
        held.append(process)
        return release

    yield stop
    release()


def test_two_runs_that_start_together(images, lone, tmp_path):
    folder = tmp_path / "run"
    ends = finish(*[start(*train(folder, images)) for _ in range(2)])
    (code, _), (refused, line) = sorted(ends)
    assert code == 0
    # Unless it came when all was done.
    assert (refused, "another process is training here" in line) == (2, True) or refused == 0
    assert outcome(folder) == outcome(lone)


def test_a_second_run_is_refused_until_the_first_is_killed(images, lone, tmp_path, stopped):
    folder = tmp_path / "run"
    first = start(*train(folder, images))
    wait_for(first, (folder / "metrics.jsonl").exists)
    release = stopped(first)
    before = files(folder)
    ((code, line),) = finish(start(*train(folder, images)))
    assert code == 2
    assert line == f"jxfer: error: {folder}: another process is training here; wait for it"
    assert files(folder) == before
    first.kill()
    release()
    first.communicate()
    assert finish(start(*train(folder, images)))[0][0] == 0
    assert outcome(folder) == outcome(lone)


@pytest.mark.parametrize("overwrite", [False, True])
def test_two_imports_of_one_name(overwrite, weights, tmp_path, no_zoos):
    """Of different files."""
    tensors = safetensors.numpy.load_file(weights)
    other = tmp_path / "other.safetensors"
    safetensors.numpy.save_file({name: array + 1 for name, array in tensors.items()}, other)
    more = ["--arch", "resnet20", "--class-names", "a,b,c"]
    for file in (weights, other):
        alone = ["zoo", "import", file, *more, "--name", "net", "--zoo", tmp_path / file.stem]
        assert main([str(word) for word in alone]) == 0
    wanted = {store.read_card(tmp_path / f.stem / "net").tensors_sha256 for f in (weights, other)}
    assert len(wanted) == 2

    more += ["--name", "net", "--zoo", tmp_path / "zoo"] + ["--overwrite"] * overwrite
    ends = finish(*[start("zoo", "import", file, *more) for file in (weights, other)])
    codes = sorted(code for code, _ in ends)
    assert codes == ([0, 0] if overwrite else [0, 2])
    assert overwrite or any(f"{tmp_path}/zoo/net exists" in line for _, line in ends)
    assert store.verify(tmp_path / "zoo/net").tensors_sha256 in wanted
    assert [path.name for path in (tmp_path / "zoo").iterdir()] == ["net"]


REPLACE = """
import pathlib, sys
from jxfer.zoo.whole import replacing
target = pathlib.Path(sys.argv[1])
with replacing(target, overwrite=len(sys.argv) > 2, kind="x", is_one=lambda path: True) as new:
    new.mkdir()
    (new / "file").write_text("other")
"""


@pytest.mark.parametrize("was_there", [False, True])
def test_an_entry_that_appears_while_another_is_written(was_there, one_line, tmp_path):
    """The other process begins later and ends first."""
    from jxfer.zoo.whole import replacing

    target = tmp_path / "entry"
    if was_there:
        target.mkdir()
        (target / "file").write_text("old")
    options = ["--overwrite"] * was_there

    def write():
        with replacing(target, overwrite=was_there, kind="x", is_one=lambda path: True) as new:
            new.mkdir()
            (new / "file").write_text("mine")
            subprocess.run([sys.executable, "-c", REPLACE, target, *options], check=True)

    if was_there:
        write()
    else:
        with one_line(f"{target} exists by now"):
            write()
    assert (target / "file").read_text() == ("mine" if was_there else "other")
    assert [path.name for path in tmp_path.iterdir()] == ["entry"]


def test_two_that_write_features_to_one_folder(backbone, tmp_path, stopped):
    def features(name):
        out = ("--out", tmp_path / name, "--data.source", "digits", "--split", "test")
        return ["features", backbone, *out, "--batch-size", "16", "--outputs", "stem", "pooled"]

    assert main([str(word) for word in features("lone")]) == 0
    first, progress = start(*features("two")), tmp_path / "two/progress.json"
    wait_for(first, lambda: progress.exists() and json.loads(progress.read_text())["rows"] > 0)
    release = stopped(first)
    before = files(tmp_path / "two")
    ((code, line),) = finish(start(*features("two")))
    assert code == 2
    assert f"{tmp_path}/two: another process is writing features here" in line
    assert files(tmp_path / "two") == before
    release()
    assert finish(first) == [(0, "")]
    assert files(tmp_path / "two") == files(tmp_path / "lone")


def test_two_runs_that_fill_one_cache(images, backbone, tmp_path):
    """The second waits for the rows of the first, or finds them: they are there once."""

    def probe(folder, seed, mode="disk"):
        words = train(folder, images, "--strategy.name", "linear_probe", "--seed", seed)
        at = words.index("--model.arch")
        words[at : at + 4] = ["--model.weights", backbone]
        return [*words, "--epochs", "8", "--cache.mode", mode]

    for seed in (0, 1):
        assert main([str(w) for w in probe(tmp_path / f"lone{seed}", seed, "memory")]) == 0
    cache = tmp_path / "cache"
    two = [start(*probe(tmp_path / f"two{i}", i), JXFER_CACHE=cache) for i in (0, 1)]
    assert [code for code, _ in finish(*two)] == [0, 0]
    for seed in (0, 1):
        # The card holds the config, whose cache differs; the checksums are those of all leaves.
        assert outcome(tmp_path / f"two{seed}")[1:] == outcome(tmp_path / f"lone{seed}")[1:]
    entries = [path.name for path in (cache / "features").iterdir() if path.is_dir()]
    assert len(entries) == 2  # training and validation
    assert not list((cache / "features").glob("*/*.part"))


def test_two_sweeps_and_two_reports_on_one_folder(declare, tmp_path):
    """They share the cells: each is run once."""
    file = declare("seeds=(0, 1), arms=('short',), choices={'short': ({'lr': 0.05},)}, claims=()")
    assert main(["ablate", str(file), "--out", str(tmp_path / "lone")]) == 0
    out = tmp_path / "two"
    ends = finish(*[start("ablate", file, "--out", out) for _ in range(2)])
    assert [code for code, _ in ends] == [0, 0], ends

    def cells(folder):
        found = json.loads((folder / "results.json").read_text())["cells"]
        for cell in found:
            cell["seconds"] = cell["commit"] = None
        runs = {c["key"]: outcome(folder / "cells" / c["key"]) for c in found}
        return found, runs

    assert cells(out) == cells(tmp_path / "lone")
    for log in (out / "cells").glob("*.log"):
        assert log.read_text().count(": done\n") == 1

    wanted = files(out / "report")
    shutil.rmtree(out / "report")
    ends = finish(*[start("report", out) for _ in range(2)])
    assert [code for code, _ in ends] == [0, 0], ends
    assert files(out / "report") == wanted
