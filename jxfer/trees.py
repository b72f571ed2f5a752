"""Nested dicts of arrays by `/`-joined path: flatten, split, merge, hash.

Second in the flow, below `errors`. Parameters, statistics and labels are plain nested dicts with
string keys; a leaf's path is its keys joined by `/`, such as `stage3/block1/conv2/kernel`.
"""

import hashlib
import zlib
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

Tree = dict[str, Any]  # nested dict; the leaves are arrays, shapes or labels


def flatten(tree: Mapping[str, Any]) -> dict[str, Any]:
    """Returns `{path: leaf}`, sorted by path. Empty sub-dicts vanish."""
    flat: dict[str, Any] = {}

    def visit(prefix: str, node: Any) -> None:
        if isinstance(node, Mapping):
            for key, child in node.items():
                visit(f"{prefix}/{key}" if prefix else key, child)
        else:
            flat[prefix] = node

    visit("", tree)
    return dict(sorted(flat.items()))


def unflatten(flat: Mapping[str, Any]) -> Tree:
    """Inverse of `flatten`."""
    tree: Tree = {}
    for path, leaf in flat.items():
        *parents, last = path.split("/")
        node = tree
        for key in parents:
            node = node.setdefault(key, {})
        node[last] = leaf
    return tree


def split(tree: Tree, belongs: Callable[[str], bool]) -> tuple[Tree, Tree]:
    """Splits by path into (leaves for which `belongs(path)`, the other leaves)."""
    flat = flatten(tree)
    chosen = {path: leaf for path, leaf in flat.items() if belongs(path)}
    others = {path: leaf for path, leaf in flat.items() if path not in chosen}
    return unflatten(chosen), unflatten(others)


def merge(*trees: Tree) -> Tree:
    """Joins trees whose leaves are disjoint.

    Raises:
      ValueError: two trees hold the same path.
    """
    flat: dict[str, Any] = {}
    for tree in trees:
        for path, leaf in flatten(tree).items():
            if path in flat:
                raise ValueError(f"two trees hold {path}")
            flat[path] = leaf
    return unflatten(dict(sorted(flat.items())))


def size(tree: Tree) -> int:
    """Number of array elements in all leaves."""
    return sum(int(np.prod(leaf.shape)) for leaf in flatten(tree).values())


def same_bits(a: Any, b: Any) -> bool:
    """Whether two arrays are equal bit for bit; 0.0 and -0.0 are not, equal NaNs are."""
    a, b = np.asarray(a), np.asarray(b)
    return (a.dtype, a.shape) == (b.dtype, b.shape) and a.tobytes() == b.tobytes()


def sha256(tree: Tree) -> str:
    """Hex digest over every leaf's path, dtype, shape and bytes, in path order."""
    digest = hashlib.sha256()
    for path, leaf in flatten(tree).items():
        array = np.asarray(leaf)
        digest.update(f"{path} {array.dtype.str} {array.shape}\n".encode())
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()


def crc32(array: Any) -> int:
    """Checksum of an array's dtype, shape and bytes: fast, against rot, not against malice."""
    array = np.asarray(array)
    seed = zlib.crc32(f"{array.dtype.str} {array.shape}".encode())
    return zlib.crc32(np.ascontiguousarray(array).data, seed)
