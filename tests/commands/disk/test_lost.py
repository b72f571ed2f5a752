"""A disk that is read-only, and a run folder that vanishes."""

import contextlib
import shutil
import threading
import time

import pytest

from tests.commands.runs import files, outcome, train
from tests.runs import checkpoints


@pytest.mark.slow
def test_a_read_only_disk(disk, run, refused, images, undisturbed, weights, backbone, no_zoos):
    unfinished = disk.place / "unfinished"
    shutil.copytree(undisturbed, unfinished)
    (unfinished / "summary.json").unlink()
    shutil.copytree(undisturbed, disk.place / "finished")
    disk.make_read_only()
    before = files(disk.place)
    image = next((images / "test").rglob("*.png"))
    new, data = disk.place / "new", ("--data.source", f"folder:{images}")
    entry = ("zoo", "import", weights, "--arch", "resnet20", "--class-names", "a,b,c")
    for command in (
        train(new, images),
        train(unfinished, images),
        (*entry, "--name", "new", "--zoo", disk.place),
        ("features", backbone, *data, "--out", new),
        ("report", disk.place / "finished"),
        ("zoo", "export", backbone, "--format", "torch", "--out", new.with_suffix(".safetensors")),
    ):
        line = refused(*command)
        assert str(disk.place) in line
        assert "ead-only" in line or "no folder that can be written" in line
    for command in (
        ("evaluate", disk.place / "finished", *data),
        ("predict", disk.place / "finished", image),
        ("zoo", "verify", disk.place / "finished"),
    ):
        code, _, err = run(*command)
        assert code == 0, err
    disk.make_writable()
    assert files(disk.place) == before
    assert run(*train(unfinished, images))[0] == 0
    assert outcome(unfinished) == outcome(undisturbed)


@pytest.mark.slow
@pytest.mark.parametrize("harm", ["moved", "removed", "replaced", "unmounted"])
def test_a_run_folder_that_vanishes(harm, disk, refused, images):
    """While steps are taken; nothing takes its place in silence."""
    folder, aside = disk.place / "run", disk.place / "aside"

    def vanish():
        lines = folder / "metrics.jsonl"
        while not lines.exists() or lines.read_text().count("\n") < 10:
            time.sleep(0.005)
        if harm == "unmounted":
            disk.unmount()
        elif harm == "removed":
            with contextlib.suppress(FileNotFoundError):  # a file that comes and goes
                shutil.rmtree(folder)
            shutil.rmtree(folder, ignore_errors=True)
        else:
            folder.rename(aside)
            if harm == "replaced":
                folder.mkdir()
                (folder / ".lock").touch()

    thread = threading.Thread(target=vanish)
    thread.start()
    more = ("--epochs", "2000", "--eval-every", "20", "--checkpoint-every", "9")
    line = refused(*train(folder, images, *more))
    thread.join()
    assert str(folder) in line
    assert "was moved, removed or unmounted" in line or "No such file or directory" in line
    left = {path.name for path in folder.glob("*")} if folder.exists() else set()
    assert left <= {".lock"}
    if harm in ("moved", "replaced"):
        assert checkpoints(aside)
