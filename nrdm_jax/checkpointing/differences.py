"""What a checkpoint has, beside what is wanted of it."""

import re
from typing import Any

import jax

from nrdm_jax import trees

ABSENT = "absent"
MOST = 40  # lines of a table

# (path, stored, wanted)
Row = tuple[str, str, str]

# The table of classes, which has a row more than there are: (classes + 1, width).
_CLASSES = re.compile(r"/label/(.+/)?embedding$")


def rows(item: str, stored: Any, wanted: Any) -> list[Row]:
    """Each leaf that is not the same in shape and type: of trees of arrays, or of what says shapes
    and types."""
    # Stored containers come back as dicts and lists: compare by path alone.
    a, b = _described(item, stored), _described(item, wanted)
    return [
        (path, a.get(path, ABSENT), b.get(path, ABSENT))
        for path in sorted(a.keys() | b.keys())
        if a.get(path) != b.get(path)
    ]


def _described(item: str, tree: Any) -> dict[str, str]:
    leaves = trees.leaves_with_path(jax.tree.map(lambda x: x, tree))
    return {f"{item}/{path}": f"{leaf.dtype}{list(leaf.shape)}" for path, leaf in leaves}


def table(differing: list[Row]) -> str:
    """A line each, and before them what it means where the classes are others."""
    lines = [f"  {path}: stored {a}, wanted {b}" for path, a, b in differing[:MOST]]
    if len(differing) > MOST:
        lines.append(f"  and {len(differing) - MOST} more")
    for path, *sides in differing:
        first = [re.search(r"\[(\d+), ", side) for side in sides]
        if _CLASSES.search(path) and all(first):
            stored, wanted = (int(found[1]) - 1 for found in first if found)
            if stored != wanted:
                lines.insert(0, f"  data.num_classes: stored {stored}, wanted {wanted}")
                break
    return "\n".join(lines)
