"""The config of a run, as its workdir has it."""

import pathlib

from nrdm_jax.bounded_files import read_object
from nrdm_jax.config import default, difference, from_dict, to_dict, validate


def changes(path: pathlib.Path, config: dict, allowed: bool) -> list[str]:
    """Lines `field: old -> new` between the config of the run at `path`, if there is one, and
    `config`.

    Raises:
      ValueError: there are any that change what is trained, and they are not allowed. The mesh does
        not: the state is restored bit for bit on any, and reads the same batches.
    """
    if not (path / "config.json").exists():
        return []
    lines = difference(read_whole_config(path), config)
    refused = [line for line in lines if not line.startswith("mesh.")]
    if refused and not allowed:
        listed = "\n".join("  " + line for line in refused)
        raise ValueError(
            f"--config differs from the one workdir {path} was made with:\n{listed}\n"
            "give --allow_config_change to go on with the new one, or another --workdir"
        )
    return lines


def _over(defaults: dict, stored: dict) -> dict:
    """The stored values, over the defaults of fields that are not there.

    Raises:
      ValueError: a value is of another kind than the field's default.
    """
    merged = dict(defaults)
    for key, value in stored.items():
        known = merged.get(key)
        kind = next((k for k in (dict, list, bool, float | int) if isinstance(known, k)), None)
        if kind is not None and not isinstance(value, kind):
            raise ValueError(f"{key} is {str(value)[:60]!r}, and its default {str(known)[:60]!r}")
        merged[key] = _over(known, value) if isinstance(known, dict) else value
    return merged


def read_config(path: pathlib.Path) -> dict:
    """The config.json of a run.

    Raises:
      ValueError: there is none, or it cannot be read.
    """
    file = pathlib.Path(path) / "config.json"
    try:
        config = read_object(file)
        # Before there was this field, the second half of the channels was not trained.
        if isinstance(group := config.get("diffusion", {}), dict):
            group.setdefault("variance_weight", 0.0)
        return config
    except FileNotFoundError:
        raise ValueError(f"workdir {path} is no run: it has no config.json") from None
    except (OSError, ValueError) as error:
        raise ValueError(f"{file} cannot be read: {error}") from error


def open_config(path: pathlib.Path):
    """The config of a run, validated.

    Raises:
      ValueError: as `read_config`, or it has unknown fields or values that are none, as that of
        another version; names the file.
    """
    stored = read_config(path)
    try:
        config = from_dict(stored)
        validate(config)
    except ValueError as error:
        raise ValueError(f"{pathlib.Path(path) / 'config.json'}: {error}") from error
    return config


def read_whole_config(path: pathlib.Path) -> dict:
    """The same; a field that is newer than the run has its default.

    Raises:
      ValueError: as `read_config`, or a value is of another kind than its field.
    """
    stored = read_config(path)
    try:
        return _over(to_dict(default()), stored)
    except ValueError as error:
        raise ValueError(f"{pathlib.Path(path) / 'config.json'}: {error}") from error
