"""Weights from the Hugging Face Hub, in timm's form: `config.json` and `model.safetensors`.

After `published`. The client is huggingface_hub, with its cache, its token and its settings
(HF_HOME, HF_ENDPOINT, HF_HUB_OFFLINE, proxies). It compares sizes; here the content is compared
with the hash that names it in the cache, too.
"""

import dataclasses
import hashlib
import logging
import math
from pathlib import Path
from typing import Any

from jxfer.data.transforms import Preprocessing
from jxfer.errors import UserError, first_line
from jxfer.json_fields import decode, parse
from jxfer.models import registry
from jxfer.zoo import imagenet
from jxfer.zoo.card import Card
from jxfer.zoo.published import Published

PREFIX = "hf:"
TIMM = "timm/"
_log = logging.getLogger("jxfer")


def fetch(name: str) -> Published:
    """Downloads a repository's config and weights once, and says what they are.

    Args:
      name: `hf:OWNER/NAME` or `timm/NAME`, each with `@REVISION` if need be.

    Raises:
      UserError: no such repository, revision or file; no network and nothing in the cache; damaged
        files; a config that asks for what jxfer does not have.
    """
    repository, _, revision = name.removeprefix(PREFIX).partition("@")
    if repository.count("/") != 1:
        raise UserError(f"{name}: the Hub names repositories OWNER/NAME, such as hf:timm/resnet18")
    where = f"{PREFIX}{repository}" + (f"@{revision}" if revision else "")
    config = _download(where, repository, "config.json", revision or None)
    try:
        fields = parse(config.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{where}, config.json: not valid JSON: {error}") from None
    card, num_classes = _read_config(fields, f"{where}, config.json")
    # In the cache a file lies in snapshots/COMMIT/. The branch may move between two downloads.
    commit = config.parent.name
    weights = _download(where, repository, "model.safetensors", commit)
    url = f"https://huggingface.co/{repository}/tree/{commit}"
    card = dataclasses.replace(card, name=repository, source=url)
    return Published(weights, card, num_classes)


def _download(where: str, repository: str, file: str, revision: str | None) -> Path:
    """Path of a file in the cache, its content verified; `where` is for messages."""
    import huggingface_hub
    from huggingface_hub import errors, utils

    class Bounded(utils.tqdm):  # type: ignore[name-defined]
        """A progress bar that ends a download of more than was announced."""

        received = 0

        def update(self, n: float | None = 1) -> bool | None:
            self.received += int(n or 0)
            if self.total is not None and self.received > self.total:
                raise OSError(f"the server sends more than the {self.total} bytes it announced")
            shown: bool | None = super().update(n)
            return shown

    try:
        path = Path(
            huggingface_hub.hf_hub_download(repository, file, revision=revision, tqdm_class=Bounded)
        )
    except errors.GatedRepoError:
        problem = "its owner asks you to accept terms on its page, then to log in: hf auth login"
    except errors.RepositoryNotFoundError:
        problem = "no such repository, or a private one: check the name, or hf auth login"
    except errors.RevisionNotFoundError:
        problem = f"it has no revision {revision}"
    except errors.LocalEntryNotFoundError:
        problem = (
            f"{file} is not in the cache, and the Hub cannot be reached (offline mode, network, "
            "proxy or HF_ENDPOINT)"
        )
    except errors.EntryNotFoundError:
        problem = f"it holds no {file}: only repositories in timm's form are read"
    except errors.HFValidationError as error:
        problem = first_line(error)
    # HTTPError is that of whichever HTTP library the client is built on; RuntimeError is hf_xet's.
    except (errors.HTTPError, OSError, RuntimeError, ValueError) as error:  # type: ignore[attr-defined]
        problem = f"{file}: {first_line(error)[:200]}; try again"
    else:
        _verify(path, where)
        return path
    raise UserError(f"{where}: {problem}")


def _verify(path: Path, where: str) -> None:
    """Compares a cached file with its hash: the name of the blob that it links to.

    For large files that is the sha256, for others git's hash of a blob. A damaged blob is removed,
    so that the next call downloads it again.

    Raises:
      UserError: the content is another.
    """
    blob = path.resolve()
    expected = blob.name
    if len(expected) == 64:
        digest = hashlib.sha256()
    elif len(expected) == 40:
        digest = hashlib.sha1(f"blob {blob.stat().st_size}\0".encode())
    else:  # a server that is not the Hub: it promises no hash
        return
    with blob.open("rb") as file:
        while piece := file.read(1 << 20):
            digest.update(piece)
    if digest.hexdigest() != expected:
        path.unlink()
        blob.unlink(missing_ok=True)
        raise UserError(
            f"{where}: {path.name} is damaged: its hash is {digest.hexdigest()[:8]}..., not "
            f"{expected[:8]}...; it was removed from the cache, try again"
        )


def _read_config(fields: Any, where: str) -> tuple[Card, int | None]:
    """timm's config.json -> the card so far, and the number of classes.

    Raises:
      UserError: a field is missing or of the wrong type, or asks for what jxfer does not have:
        nothing is ignored that would change the logits.
    """
    try:
        arch, num_classes = fields["architecture"], fields.get("num_classes")
        cfg = fields["pretrained_cfg"]
        channels, height, width = cfg["input_size"]
        asked = {
            "3 input channels": channels == 3,
            "square images": height == width,
            "a centre crop": cfg.get("crop_mode", "center") == "center",
            "average pooling": fields.get("global_pool", "avg") == "avg",
            "no other model arguments": not fields.get("model_args"),
            "no offset of the labels": not cfg.get("label_offset"),
        }
        pixels = {name: cfg[name] for name in ("interpolation", "mean", "std")}
        pixels |= {"size": height, "crop": cfg["crop_pct"], "channel_order": "RGB"}
        labels = fields.get("label_names") or cfg.get("label_names")
        tag, licence = cfg.get("tag") or "", cfg.get("license") or "unknown"
        notes = _notes(tag, cfg)
    except KeyError as error:
        raise UserError(f"{where}: the field {error.args[0]} is missing") from None
    except (TypeError, ValueError, AttributeError) as error:
        raise UserError(f"{where}: not a config of timm's: {error}") from None
    found = decode(Preprocessing, pixels, where)
    # timm rounds the resized short side down, where `transforms.evaluation_view` takes the nearest.
    short = math.floor(found.size / found.crop)
    preprocessing = dataclasses.replace(found, crop=found.size / short)
    for what, holds in asked.items():
        if not holds:
            raise UserError(f"{where}: jxfer's networks take {what}, and this one does not")
    if not isinstance(arch, str) or not isinstance(num_classes, int | None):
        raise UserError(f"{where}: architecture must be a name, and num_classes a number")
    try:
        registry.architecture(arch)
    except UserError as error:
        raise UserError(f"{where}: {error}") from None
    class_names = _class_names(labels, where)
    trained_on_imagenet = num_classes == 1000 and "in1k" in str(tag)
    if not labels and trained_on_imagenet:
        class_names = imagenet.class_names()
    card = Card(
        name="",
        arch=arch,
        class_names=class_names,
        preprocessing=preprocessing,
        dataset="ImageNet-1k" if trained_on_imagenet else "",
        licence=", ".join(map(str, licence)) if isinstance(licence, list) else str(licence),
        notes=notes,
    )
    return card, num_classes


def _class_names(labels: Any, where: str) -> tuple[str, ...]:
    """timm's label_names, a list or an object {index: name}, in the order of the logits.

    Raises:
      UserError: they are of another form, or skip an index.
    """
    labels = labels or []
    if isinstance(labels, dict) and labels.keys() == {str(i) for i in range(len(labels))}:
        labels = [labels[str(i)] for i in range(len(labels))]
    if not isinstance(labels, list) or not all(isinstance(name, str) for name in labels):
        raise UserError(f"{where}: label_names must be a list of names, or give one to every index")
    if len(set(labels)) < len(labels):
        _log.warning("%s: label_names tells not all classes apart; it is left out", where)
        return ()
    return tuple(labels)


def _notes(tag: str, cfg: Any) -> str:
    """What a user of the weights should know and no other field of the card holds."""
    notes = [f"timm's tag: {tag}"] if tag else []
    if size := cfg.get("test_input_size"):
        notes.append(f"timm evaluates at {size[-1]} px with crop {cfg.get('test_crop_pct')}")
    return "; ".join(notes)
