"""Where zoo entries lie: the zoos in the order of search, and an entry by its name or path.

After `store`, which reads and writes an entry, before `weights`.
"""

import dataclasses
import difflib
import os
from pathlib import Path

from jxfer.data import copies, remote
from jxfer.errors import UserError
from jxfer.zoo.card import Card
from jxfer.zoo.report import raise_problems
from jxfer.zoo.store import CARD, read_card


@dataclasses.dataclass(frozen=True)
class Entry:
    """An entry that `list_zoo` found."""

    card: Card
    path: Path

    @property
    def name(self) -> str:
        """What `resolve` takes: the folder's name."""
        return self.path.name


def write_place(zoo: str | None = None) -> Path:
    """The zoo that new entries go to: `zoo`, else $JXFER_ZOO, else the user's own folder."""
    return Path(zoo or os.environ.get("JXFER_ZOO") or _user_zoo())


def search_path(zoo: str | None = None) -> list[Path]:
    """Zoos in the order of search: `zoo`, $JXFER_ZOO, the user's own, the one that ships.

    Folders that do not exist are left out; the first two may be `gs://` addresses.

    Raises:
      UserError: `zoo` is given and is no folder.
    """
    if zoo and not remote.address(zoo) and not Path(zoo).is_dir():
        raise UserError(f"--zoo {zoo}: no such folder; name one that is there, or leave it out")
    named = [Path(place) for place in (zoo, os.environ.get("JXFER_ZOO")) if place]
    places = [*named, _user_zoo(), _shipped_zoo()]
    return [place for place in dict.fromkeys(places) if remote.address(place) or place.is_dir()]


def resolve(name_or_path: str | Path, zoo: str | None = None) -> Path:
    """Finds an entry's folder.

    Args:
      name_or_path: an entry's folder, a run's folder (its `model/` is taken), the `gs://` address
        of either, or, where no such path exists, the name of an entry in `search_path(zoo)`.

    Returns:
      A folder of this machine; of an address, a copy.

    Raises:
      UserError: the path holds no entry, or no zoo knows the name; the message offers near names.
    """
    path = copies.local(name_or_path)
    if path.exists():
        for folder in (path, path / "model"):
            if (folder / CARD).is_file():
                return folder
        raise UserError(
            f"{remote.shown(name_or_path)}: holds neither {CARD} nor model/{CARD}; name the folder "
            "of a zoo entry or of a finished run"
        )
    found = _entry_folders(zoo)
    if str(name_or_path) in found:
        return copies.local(found[str(name_or_path)])
    near = difflib.get_close_matches(str(name_or_path), found, n=3) or sorted(found)[:10]
    searched = ", ".join(map(remote.shown, search_path(zoo))) or "no folder"
    hint = f"did you mean {', '.join(near)}?" if near else "they hold no entries"
    raise UserError(f"no path or zoo entry {str(name_or_path)!r} (searched {searched}); {hint}")


def list_zoo(zoo: str | None = None) -> list[Entry]:
    """All entries of the searched zoos by name; of equal names the first zoo's.

    Raises:
      UserError: cards are invalid; `read_all` gives the other entries all the same.
    """
    entries, problems = read_all(zoo)
    raise_problems("invalid cards", problems)
    return entries


def read_all(zoo: str | None = None) -> tuple[list[Entry], list[str]]:
    """(entries as `list_zoo` has them, a line for each whose card is invalid).

    Raises:
      StorageError: a bucket cannot be read.
    """
    entries, problems = [], []
    for _, path in sorted(_entry_folders(zoo).items()):
        try:
            entries.append(Entry(read_card(path), path))
        except remote.StorageError:  # no fault of the card
            raise
        except UserError as error:
            problems.append(str(error))
    return entries, problems


def _entry_folders(zoo: str | None) -> dict[str, Path]:
    folders: dict[str, Path] = {}
    for place in search_path(zoo):
        if address := remote.address(place):
            cards = [place / name for name in remote.listing(address) if name.count("/") == 1]
            cards = [path for path in cards if path.name == CARD and path.parent.name[0] != "."]
        else:
            cards = sorted(place.glob(f"[!.]*/{CARD}"))  # a dot: an unfinished save
        for card in cards:
            folders.setdefault(card.parent.name, card.parent)
    return folders


def _user_zoo() -> Path:
    data = os.environ.get("XDG_DATA_HOME")
    return (Path(data) if data else Path.home() / ".local" / "share") / "jxfer" / "zoo"


def _shipped_zoo() -> Path:
    package = Path(__file__).resolve().parent.parent
    packaged = package / "checkpoints"  # in a wheel; in a checkout it lies beside the package
    return packaged if packaged.is_dir() else package.parent / "checkpoints"
