"""TFDS datasets on disk: finds a prepared one, or prepares it where TensorFlow is installed.

After `copies`, before `sources`. Reading needs no TensorFlow. Preparing a stock TFDS dataset
does, so TensorFlow is an optional extra that is only asked for here.
"""

import contextlib
import importlib.util
import os
import re
import sys
from typing import Any

from jxfer.data import copies, remote
from jxfer.errors import UserError

_SPEC = re.compile(
    r"(?P<name>[a-zA-Z]\w*)(/(?P<config>[\w\-][\w.\-]*))?(:(?P<version>\d+\.\d+\.\d+))?", re.ASCII
)


def open_prepared(spec: str, data_dir: str | None) -> Any:
    """Returns the TFDS builder for `NAME[/CONFIG][:VERSION]`.

    Without a version the newest prepared one is taken; without a config the only one.

    Args:
      spec: what follows `tfds:` in a data spec.
      data_dir: folder that holds `NAME[/CONFIG]/VERSION`, local or `gs://`; None for TFDS's own
        (`$TFDS_DATA_DIR`, else `~/tensorflow_datasets`).

    Raises:
      UserError: the spec is malformed or ambiguous, or the dataset is neither prepared nor can be.
    """
    if not (match := _SPEC.fullmatch(spec)):
        raise UserError(f"data source tfds:{spec}: expected tfds:NAME[/CONFIG][:MAJOR.MINOR.PATCH]")
    name, config, version = match["name"], match["config"], match["version"]
    if data_dir is None:
        data_dir = os.environ.get("TFDS_DATA_DIR", "~/tensorflow_datasets")
    if address := remote.address(data_dir):
        return _open(_copied(address, name, config, version))
    import tensorflow_datasets as tfds

    root = tfds.core.Path(data_dir).expanduser()
    folder = _find(root, name, config, version)
    if folder is None:
        return _prepare(root, name, config, version)
    return _open(folder)


def _open(folder: Any) -> Any:
    """The builder of a version folder.

    Raises:
      UserError: what the folder says of itself cannot be read.
    """
    import tensorflow_datasets as tfds

    try:
        return tfds.builder_from_directory(folder)
    except Exception as error:  # TFDS raises many types for a damaged file
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"{folder}: dataset_info.json or features.json cannot be read: {reason}; "
            "prepare the dataset again"
        ) from error


def _copied(address: str, name: str, config: str | None, version: str | None) -> Any:
    """A copy of a version folder in a bucket: array_record finds no record in a `gs://` file.

    Raises:
      UserError: it is not there, cannot be read, or several configs are.
    """
    cards = [n for n in remote.listing(f"{address}/{name}") if n.endswith("/dataset_info.json")]
    if cards:
        root = copies.copy(f"{address}/{name}", lambda found: found in cards).parent
        if folder := _find(root, name, config, version):
            return copies.copy(f"{address}/{folder.relative_to(root).as_posix()}")
    spec = name + (f"/{config}" if config else "") + (f":{version}" if version else "")
    raise UserError(
        f"data source tfds:{spec} is not prepared in {address}: prepare it in a folder of a "
        "machine, and copy that folder to the bucket"
    )


def _find(root: Any, name: str, config: str | None, version: str | None) -> Any | None:
    """The prepared version folder, or None.

    Raises:
      UserError: no config was named and several are prepared.
    """
    base = root / name / config if config else root / name
    if not (versions := _versions(base)) and config is None:
        configs = {child.name: found for child in _folders(base) if (found := _versions(child))}
        if len(configs) > 1:
            raise UserError(
                f"data source tfds:{name}: {base} holds several configs; "
                f"name one of {', '.join(sorted(configs))}, as in tfds:{name}/{min(configs)}"
            )
        if configs:
            [versions] = configs.values()
    if version:
        return versions.get(version)
    newest = max(versions, key=lambda text: [int(part) for part in text.split(".")], default=None)
    return versions[newest] if newest else None


def _versions(folder: Any) -> dict[str, Any]:
    """`{version: folder}` of the complete datasets in `folder`."""
    return {
        child.name: child
        for child in _folders(folder)
        if re.fullmatch(r"\d+\.\d+\.\d+", child.name) and (child / "dataset_info.json").exists()
    }


def _folders(folder: Any) -> list[Any]:
    return [child for child in folder.iterdir() if child.is_dir()] if folder.is_dir() else []


def _prepare(root: Any, name: str, config: str | None, version: str | None) -> Any:
    """Downloads and writes a stock TFDS dataset below `root`.

    Raises:
      UserError: TensorFlow is absent, TFDS has no such dataset, or its download failed.
    """
    import tensorflow_datasets as tfds

    spec = name + (f"/{config}" if config else "")
    full = spec + (f":{version}" if version else "")
    try:
        tfds.builder_cls(name)
    except tfds.core.DatasetNotFoundError as error:
        raise UserError(
            f"data source tfds:{full} is not prepared in {root} and TFDS has no dataset {name}: "
            "check the name and --data.data-dir"
        ) from error
    if importlib.util.find_spec("tensorflow") is None:
        raise UserError(
            f"data source tfds:{full} is not prepared in {root} and preparing it needs TensorFlow: "
            "pip install 'jxfer[prepare]', or point --data.data-dir to where it is prepared"
        )
    try:
        builder = tfds.builder(full, data_dir=root, file_format="array_record")
        # TFDS announces its work on stdout, where `--json` output goes.
        with contextlib.redirect_stdout(sys.stderr):
            # A download folder of its own: in a shared one, files that two datasets give the same
            # name are taken for each other.
            builder.download_and_prepare(download_dir=root / "downloads" / spec)
    except Exception as error:  # TFDS raises what its many sources raise
        reason = " ".join(str(error).split())[:300]
        raise UserError(
            f"data source tfds:{full} could not be prepared in {root}: "
            f"{type(error).__name__}: {reason}"
        ) from error
    return builder
