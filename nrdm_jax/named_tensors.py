"""Tensors of a file by name: those that a network is made of, or what is wrong with them."""

from collections.abc import Mapping

import numpy as np

LISTED = 12  # tensors named in an error


def select(
    tensors: Mapping[str, np.ndarray], shapes: Mapping[str, tuple[int | None, ...]], of: str
) -> dict[str, np.ndarray]:
    """The tensors of these names, float32; others of the file are left.

    Args:
      tensors: a file's.
      shapes: by name; None fits any length of an axis.
      of: the network and its published file, for the error.

    Raises:
      ValueError: a tensor is missing or of another shape; each is named.
    """
    missing = [name for name in shapes if name not in tensors]
    other = [
        f"{name} is {np.shape(tensors[name])} and not {shape}".replace("None", "any")
        for name, shape in shapes.items()
        if name in tensors and not _fits(np.shape(tensors[name]), shape)
    ]
    if missing or other:
        said = [f"missing: {_listed(missing)}"] * bool(missing) + [_listed(other)] * bool(other)
        raise ValueError(f"these are not the weights of {of}: {'; '.join(said)}")
    return {name: np.asarray(tensors[name], np.float32) for name in shapes}


def _fits(found: tuple[int, ...], wanted: tuple[int | None, ...]) -> bool:
    return len(found) == len(wanted) and all(
        w in (None, f) for f, w in zip(found, wanted, strict=True)
    )


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - LISTED} more" if len(names) > LISTED else ""
    return ", ".join(names[:LISTED]) + more
