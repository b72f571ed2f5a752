"""Weights from the Hugging Face Hub, in timm's form: `config.json` and `model.safetensors`.

After `published`. The client is huggingface_hub, with its cache, its token and its settings
(HF_HOME, HF_ENDPOINT, HF_HUB_OFFLINE, proxies). It compares sizes; here the content is compared
with the hash that names it in the cache, too.
"""

import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Any

from jxfer.data.transforms import Preprocessing
from jxfer.errors import UserError
from jxfer.models import registry
from jxfer.zoo import imagenet
from jxfer.zoo.card import Card
from jxfer.zoo.published import Published

PREFIX = "hf:"
TIMM = "timm/"


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
    config = _download(repository, "config.json", revision or None)
    try:
        fields = json.loads(config.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{name}: config.json is not valid JSON: {error}") from None
    card, num_classes = _read_config(fields, f"{name}, config.json")
    weights = _download(repository, "model.safetensors", revision or None)
    # In the cache a file lies in snapshots/COMMIT/.
    commit = weights.parent.name
    url = f"https://huggingface.co/{repository}/tree/{commit}"
    card = dataclasses.replace(card, name=repository, source=url)
    return Published(weights, card, num_classes)


def _download(repository: str, file: str, revision: str | None) -> Path:
    import huggingface_hub
    from huggingface_hub import errors

    where = f"{PREFIX}{repository}" + (f"@{revision}" if revision else "")
    try:
        path = Path(huggingface_hub.hf_hub_download(repository, file, revision=revision))
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
        problem = str(error).splitlines()[0]
    # HTTPError is that of whichever HTTP library the client is built on.
    except (errors.HTTPError, OSError) as error:  # type: ignore[attr-defined]
        lines = str(error).splitlines() or [type(error).__name__]
        problem = f"{file}: {lines[0][:200]}; the same command resumes"
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
        labels = tuple(map(str, fields.get("label_names") or ()))
        asked = {
            "3 input channels": channels == 3,
            "square images": height == width,
            "a centre crop": cfg.get("crop_mode", "center") == "center",
            "average pooling": fields.get("global_pool", "avg") == "avg",
            "no other model arguments": not fields.get("model_args"),
        }
        preprocessing = Preprocessing(
            size=height,
            crop=cfg["crop_pct"],
            interpolation=cfg["interpolation"],
            mean=tuple(cfg["mean"]),
            std=tuple(cfg["std"]),
        )
        tag, licence = cfg.get("tag") or "", cfg.get("license") or "unknown"
    except KeyError as error:
        raise UserError(f"{where}: the field {error.args[0]} is missing") from None
    except (TypeError, ValueError, AttributeError) as error:
        raise UserError(f"{where}: not a config of timm's: {error}") from None
    except UserError as error:
        raise UserError(f"{where}: {error}") from None
    for what, holds in asked.items():
        if not holds:
            raise UserError(f"{where}: jxfer's networks take {what}, and this one does not")
    if not isinstance(arch, str) or not isinstance(num_classes, int | None):
        raise UserError(f"{where}: architecture must be a name, and num_classes a number")
    try:
        registry.architecture(arch)
    except UserError as error:
        raise UserError(f"{where}: {error}") from None
    trained_on_imagenet = num_classes == 1000 and "in1k" in str(tag)
    if not labels and trained_on_imagenet:
        labels = imagenet.class_names()
    dataset = "ImageNet-1k" if trained_on_imagenet else ""
    card = Card(
        name="",
        arch=arch,
        class_names=labels,
        preprocessing=preprocessing,
        dataset=dataset,
        licence=str(licence),
        notes=f"timm's tag: {tag}" if tag else "",
    )
    return card, num_classes
