"""Reads a checkpoint's leaves on the host and compares them with their fingerprints."""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath

from nrdm_jax import trees
from nrdm_jax.checkpointing import fingerprints
from nrdm_jax.checkpointing.errors import PAUSES, first_line, is_of_machine, retried

READ = 2**28  # bytes of leaves that are read at a time, or one leaf


def faults(
    directory: epath.Path,
    stored: Mapping[str, Any],
    known: Mapping[str, int] | None,
    process: int = 0,
    processes: int = 1,
) -> list[str]:
    """What is wrong with a step, a line each; none of one that is whole. A few leaves are read at a
    time, whatever mesh they were saved on; of several processes each reads its share, alone: none
    waits for another.

    Args:
      directory: of the step.
      stored: the tree of each item, of what says shapes and types.
      known: the fingerprints; None: it is only seen whether the leaves can be read.
      process, processes: which this one is, of how many.

    Raises:
      OSError: the machine cannot read now, also after a while: it is known of no fault.
    """
    there = {
        f"{item}/{path}": leaf
        for item, tree in stored.items()
        for path, leaf in trees.leaves_with_path(tree)
    }
    found = []
    if known is not None and known.keys() != there.keys():
        odd = sorted(known.keys() ^ there.keys())
        found.append(f"{len(odd)} leaves are not those that were saved, such as {odd[0]}")
    mine = dict(itertools.islice(sorted(there.items()), process, None, processes))
    pauses = iter(PAUSES)
    for group in _groups(mine):
        for path, value in _each(directory, stored, group, process, pauses):
            if isinstance(value, Exception):
                found.append(f"{path}: cannot be read: {first_line(value)}")
            elif known is not None and fingerprints.of_array(value) != known.get(path):
                found.append(f"{path}: its contents have changed since they were saved")
    return found


def _each(
    directory: epath.Path,
    stored: Mapping[str, Any],
    paths: Sequence[str],
    process: int,
    pauses: Iterator[float],
) -> Iterator[tuple[str, np.ndarray | Exception]]:
    """(path, the leaf, or what went wrong with it alone)."""
    try:
        yield from retried(lambda: _read(directory, stored, paths, process), pauses).items()
    except Exception as error:  # whatever a library makes of damaged bytes
        if is_of_machine(error):
            raise OSError(f"{directory} cannot be read now: {first_line(error)}") from error
        if len(paths) == 1:
            yield paths[0], error
            return
        for path in paths:
            yield from _each(directory, stored, [path], process, pauses)


def _read(
    directory: epath.Path, stored: Mapping[str, Any], paths: Sequence[str], process: int
) -> dict[str, np.ndarray]:
    """Leaves as arrays of the host, by a reader of this process's own."""
    alone = ocp.options.MultiprocessingOptions(
        primary_host=process,
        active_processes={process},
        barrier_sync_key_prefix=f"reader_{process}",
    )
    found: dict[str, np.ndarray] = {}
    for item in sorted({path.split("/")[0] for path in paths}):
        wanted = trees.map_with_path(
            lambda path, leaf, item=item: leaf if f"{item}/{path}" in paths else ocp.PLACEHOLDER,
            stored[item],
        )
        on_host = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), stored[item])
        handler = ocp.PyTreeCheckpointHandler(multiprocessing_options=alone)
        with ocp.Checkpointer(handler, multiprocessing_options=alone) as checkpointer:
            tree = checkpointer.restore(
                directory / item, args=ocp.args.PyTreeRestore(wanted, restore_args=on_host)
            )
        read = ((f"{item}/{path}", leaf) for path, leaf in trees.leaves_with_path(tree))
        found |= {path: np.asarray(leaf) for path, leaf in read if path in paths}
    return found


def _groups(leaves: Mapping[str, Any]) -> Iterator[list[str]]:
    """Paths, so many that their leaves are of `READ` bytes, and at least one."""
    group: list[str] = []
    size = 0
    for path, leaf in leaves.items():
        more = fingerprints.bytes_of(leaf)
        if group and size + more > READ:
            yield group
            group, size = [], 0
        group.append(path)
        size += more
    if group:
        yield group
