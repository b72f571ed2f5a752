"""Room on the disk for entries of features: what is reserved, and which entries make way.

Before `feature_store` in the flow, which fills and reads them. An entry is a folder in one root.

Two locks: that of an entry is held by whoever fills or removes it; that of the root, never for
long, by whoever counts, removes, reserves or renames. Who holds the root's waits for no other.
"""

import pathlib
import shutil

import filelock

from jxfer.errors import UserError

_PATIENCE = 600  # seconds that another process may take to check an entry


class NoRoom(UserError):
    """The store is full of what other processes are computing."""


def lock(folder: pathlib.Path) -> filelock.BaseFileLock:
    """Of an entry or of the root; not yet held."""
    # Beside the folder, which goes when the entry is removed.
    return filelock.FileLock(folder.with_suffix(".lock"))


def reserve(folder: pathlib.Path, needed: int, max_bytes: float) -> None:
    """Makes `features.part`, at its whole size; what it held stays.

    Removes other entries, those not used for longest first, until it fits.

    Args:
      folder: of the entry; its lock is held.
      needed: bytes of its rows.
      max_bytes: of all entries together, those that are being filled at their whole size.

    Raises:
      NoRoom: with the entries that other processes are filling they are more than `max_bytes`.
      UserError: the rows alone are.
      OSError: the folder cannot be written.
    """
    root = folder.parent
    if needed > max_bytes:
        raise UserError(
            f"the features take {needed / 1e9:.3g} GB, more than --cache.max-gb "
            f"{max_bytes / 1e9:g}: raise it, or use --cache.mode off"
        )
    while True:
        with lock(root):
            sizes, locked = _make_room(root, folder, max_bytes - needed)
            if sizes <= max_bytes - needed:
                folder.mkdir(exist_ok=True)
                (folder / "features.bin").unlink(missing_ok=True)
                with (folder / "features.part").open("ab") as file:
                    file.truncate(needed)
                return
        # Whole entries are locked for as long as they are checked: then they can go.
        checked = [entry for entry in locked if not (entry / "features.part").exists()]
        if not checked:
            raise NoRoom(
                f"{root}: other processes are filling {sizes / 1e9:.3g} GB; raise "
                "--cache.max-gb, or wait for them"
            )
        with lock(checked[0]).acquire(timeout=_PATIENCE):
            pass


def _make_room(
    root: pathlib.Path, own: pathlib.Path, room: float
) -> tuple[int, list[pathlib.Path]]:
    """Removes entries but `own`, those not used for longest first, until `room` holds the rest.

    Returns:
      (bytes of the rest; entries that another process locks).
    """
    sizes = {entry: _size(entry) for entry in root.iterdir() if entry.is_dir() and entry != own}
    locked = []
    for entry in sorted(sizes, key=_last_use):
        if sum(sizes.values()) <= room:
            break
        try:
            with lock(entry).acquire(timeout=0):
                shutil.rmtree(entry)
                del sizes[entry]
        except filelock.Timeout:
            locked.append(entry)
    return sum(sizes.values()), locked


def _size(entry: pathlib.Path) -> int:
    """Bytes of the rows. The other files are small, and come and go while an entry is filled."""
    return sum(
        (entry / name).stat().st_size
        for name in ("features.bin", "features.part")
        if (entry / name).exists()
    )


def _last_use(folder: pathlib.Path) -> float:
    entry = folder / "entry.json"
    return (entry if entry.exists() else folder).stat().st_mtime
