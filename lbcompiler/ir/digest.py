"""What tells one model from another, wherever it came from: its graph and its numbers."""

import hashlib

import numpy as np

from lbcompiler.ir.model import Model


def digest_of(model: Model) -> str:
    """sha256 of the graph with its constants, and of every weight, by name. Each weight is loaded
    once and let go."""
    digest = hashlib.sha256(model.module.script(show_meta=True).encode())
    for name, weight in sorted(model.weights.items()):
        array = np.ascontiguousarray(weight.load())
        digest.update(f"{name} {array.dtype} {array.shape}".encode())
        digest.update(array.reshape(-1).view(np.uint8).data)
    return digest.hexdigest()
