"""What there is to say of a run's checkpoints, to whoever looks."""

import pathlib
from collections.abc import Iterator

from nrdm_jax import run_weights
from nrdm_jax.checkpointing.errors import DamagedCheckpoint
from nrdm_jax.checkpointing.stored import StoredCheckpoints

# (the directory, its steps' reader)
Opened = tuple[pathlib.Path, StoredCheckpoints]


def list_steps(place: str, step: int | None = None) -> dict:
    """Prints a line for each step: records seen, bytes. Returns {"steps": [...]}.

    Raises:
      ValueError: there are none at `place`.
    """
    steps = []
    for directory, checkpoints in _opened(place):
        for number in _chosen(checkpoints, directory, step):
            try:
                meta = checkpoints.meta(number)
                said = f"records seen {meta.get('records_seen', 'unknown')}"
            except DamagedCheckpoint as error:
                said = f"damaged: {error}"
            try:
                size = sum(f.stat().st_size for f in (directory / str(number)).rglob("*"))
            except FileNotFoundError:  # removed by a run that goes on
                continue
            print(f"{directory}/{number}  {size / 2**20:.1f} MiB  {said}", flush=True)
            steps.append(number)
    return {"steps": steps}


def verify_steps(place: str, step: int | None = None) -> dict:
    """Prints `whole`, or what is wrong, of each step; returns {"steps": ..., "bad": [...]}. Raises
    as `list_steps`."""
    steps, bad = [], []
    for directory, checkpoints in _opened(place):
        for number in _chosen(checkpoints, directory, step):
            faults = checkpoints.faults(number)
            if not (directory / str(number)).is_dir():
                print(f"{directory}/{number}  removed meanwhile, by a run that goes on", flush=True)
                continue
            steps.append(number)
            if faults:
                bad.append(f"{directory}/{number}")
            for line in faults or ["whole"]:
                print(f"{directory}/{number}  {line}", flush=True)
    return {"steps": steps, "bad": bad}


def show_steps(place: str, step: int | None = None) -> dict:
    """Prints the leaves of a step, by default the newest: path, type, shape, bytes; and what it
    says of itself, which is returned. Raises as `list_steps`, and DamagedCheckpoint."""
    directory, checkpoints = next(iter(_opened(place)))
    number = _chosen(checkpoints, directory, step)[-1]
    leaves = checkpoints.leaves(number)
    width = max(map(len, leaves), default=0)
    for path, (dtype, shape, size) in leaves.items():
        print(f"{path:{width}}  {dtype}{list(shape)}  {size:,} bytes")
    total = sum(size for _, _, size in leaves.values())
    print(f"{len(leaves)} leaves, {total:,} bytes", flush=True)
    return {"step": number, "leaves": len(leaves), "bytes": total, **checkpoints.meta(number)}


def _opened(place: str) -> Iterator[Opened]:
    """The checkpoints and snapshots of a run, or those of one directory."""
    home = pathlib.Path(place)
    kinds = [home / kind for kind in (run_weights.CHECKPOINTS, run_weights.SNAPSHOTS)]
    found = [kind for kind in kinds if kind.is_dir()] or [home]
    for directory in found:
        if not directory.is_dir():
            raise ValueError(f"{directory} is no directory; name that of a run")
        checkpoints = StoredCheckpoints(str(directory))
        try:
            yield directory, checkpoints
        finally:
            checkpoints.close()


def _chosen(checkpoints: StoredCheckpoints, directory: pathlib.Path, step: int | None) -> list[int]:
    steps = checkpoints.steps()
    if step is None:
        if not steps:
            raise ValueError(f"{directory} has no checkpoint; name the directory of a run")
        return steps
    if step not in steps:
        raise ValueError(
            f"--step={step}: {directory} has {run_weights.listed(steps) or 'none'}; choose one"
        )
    return [step]
