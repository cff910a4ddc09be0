"""A data set of pixels as one of latents: encoded once, in shards that any number of processes
share."""

import fcntl
import functools
import pathlib
from collections.abc import Callable, Mapping, Sequence

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from nrdm_jax import build, frozen_autoencoders
from nrdm_jax.data import latent_shards, latents
from nrdm_jax.data.errors import DataError
from nrdm_jax.data.latent_shards import Writer
from nrdm_jax.data.latents import Statistics
from nrdm_jax.data.sources import CAPTIONS, SPLITS, Source, TfdsSource, fingerprint_of
from nrdm_jax.frozen_autoencoders import Frozen
from nrdm_jax.processes import distributed
from nrdm_jax.training.objectives import to_model_range

WHILE_OTHERS_WAIT = 2000  # records: a second each is within the hour that they wait


def pixels(config, split: str, data_dir: str, *, streamed: bool = False) -> Source:
    """The records whose latents are diffused, as the data set has them.

    Args:
      config: of a run in latents.
      split: train or heldout.
      data_dir: of prepared sets.
      streamed: nothing is decoded into memory.

    Raises:
      ValueError: as `Frozen.pixel_shape` and `build.source`.
    """
    shape = frozen_autoencoders.open_frozen(config).pixel_shape(tuple(config.data.shape))
    config = config.copy_and_resolve_references()
    # What a network is told of them is of the latents: these have the set's own labels.
    config.text.encoder, config.data.with_class = "none", True
    if streamed:
        config.data.in_memory_gib = 0.0
    return build.source(config, split, data_dir, shape)


def encoded(config, data_dir: str, poll: Callable[[], None] = lambda: None) -> pathlib.Path:
    """The directory of the latents that `config` diffuses: `autoencoder.encoded`, or one of the
    prepared sets, which is made on first use.

    Args:
      config: of a run in latents.
      data_dir: of prepared sets.
      poll: called before each shard, by a process that is alone; may raise to stop.

    Raises:
      ValueError: `autoencoder.encoded` is of other weights or pixels; or there are more records
        than one of several processes should encode while the others wait.
    """
    if config.autoencoder.encoded:
        home = pathlib.Path(config.autoencoder.encoded) / latents.VERSION
        _check_given(config, home, data_dir)
        return home
    sources = {split: pixels(config, split, data_dir, streamed=True) for split in SPLITS}
    name = fingerprint(config, sources)
    home = pathlib.Path(data_dir) / latents.NAME / name / latents.VERSION
    if (home / latents.STATISTICS).exists():
        return home
    count = sum(map(len, sources.values()))
    if distributed.active() and count > WHILE_OTHERS_WAIT:
        raise ValueError(
            f"data.name={config.data.name} has {count:,} records, whose latents are not in {home}, "
            f"and one of several processes encodes at most {WHILE_OTHERS_WAIT:,} while the others "
            "wait; run `nrdm encode` first, on all of them, and set autoencoder.encoded"
        )
    home.mkdir(parents=True, exist_ok=True)
    with open(home.parent / ".lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (home / latents.STATISTICS).exists():
            print(f"encoding {config.data.name} into {home}", flush=True)
            bind(config, home, sources)
            # Polls of several processes are counted, and those that wait make none.
            alone = not distributed.active()
            write_shards(config, home, sources, poll=poll if alone else lambda: None)
            finish(config, home, sources)
    return home


def _check_given(config, home: pathlib.Path, data_dir: str) -> None:
    """Raises ValueError, unless a set that was given is of the weights and pixels of `config`;
    where these are not prepared, the name of their set must do."""
    given = f"autoencoder.encoded={config.autoencoder.encoded}"
    found = Statistics.read(home / latents.STATISTICS)
    weights = frozen_autoencoders.open_frozen(config).fingerprint
    if found.weights != weights:
        raise ValueError(
            f"{given} has latents of the weights {found.weights}, and autoencoder.weights are "
            f"{weights}; encode again, or give those"
        )
    name = config.data.name
    if _has_pixels(config, data_dir):
        sources = {split: pixels(config, split, data_dir, streamed=True) for split in SPLITS}
        wanted = fingerprint(config, sources)
        if found.fingerprint != wanted:
            raise ValueError(
                f"{given} has latents of other pixels than data.name={name} has: of "
                f"{found.fingerprint}, and not of {wanted}; encode these, or leave it out"
            )
        return
    noted = latent_shards.bound(home)
    if noted is None or noted["data"] != name:
        of = "does not note its set" if noted is None else f"is of data.name={noted['data']}"
        raise ValueError(
            f"{given} {of}, and data.name={name}, which is not prepared in {data_dir} for a "
            "comparison; give its latents, or prepare it"
        )


def _has_pixels(config, data_dir: str) -> bool:
    """Whether their set is prepared, without preparing it."""
    if config.data.name == "synthetic":
        return True
    from nrdm_jax.data.builders import table  # imports tensorflow_datasets, which takes a second

    shape = frozen_autoencoders.open_frozen(config).pixel_shape(tuple(config.data.shape))
    try:
        builder = table.opened(config.data.name, shape, data_dir, stride=config.data.frame_stride)
    except DataError:  # files that it would be made of are not there either
        return False
    return builder.is_prepared()


def fingerprint(config, sources: dict[str, Source]) -> str:
    """Of the pixels and the weights."""
    weights = frozen_autoencoders.open_frozen(config).fingerprint
    return fingerprint_of(weights, [sources[split].fingerprint for split in SPLITS])


def bind(config, directory: pathlib.Path, sources: dict[str, Source]) -> None:
    """Keeps a directory for the latents of these pixels by these weights: to be called by the
    writer first, before any shard. Raises as `latent_shards.bind`."""
    latent_shards.bind(directory, fingerprint(config, sources), config.data.name)


def write_shards(
    config,
    directory: pathlib.Path,
    sources: dict[str, Source],
    *,
    process: int = 0,
    processes: int = 1,
    poll: Callable[[], None] = lambda: None,
) -> int:
    """Writes this process's shards, every `processes`-th one, those that are not there; returns how
    many there are of them. `poll` is called before each, as often by all processes, and may raise
    to stop."""
    encode, writer = encoder(config), _writer(config, directory, sources)
    todo = [(s, n) for s, source in sources.items() for n in range(latent_shards.shards(source))]
    for first in range(0, len(todo), processes):
        poll()  # by all processes equally often
        for split, number in todo[first + process : first + process + 1]:
            source = sources[split]
            texts = functools.partial(_texts, source)
            writer.write(source, split, number, encode, texts)
            print(f"{split} shard {number + 1} of {latent_shards.shards(source)}", flush=True)
    return len(todo[process::processes])


def finish(config, directory: pathlib.Path, sources: dict[str, Source]) -> Statistics:
    """Makes a set of the shards, when all of them are there."""
    weights = frozen_autoencoders.open_frozen(config).fingerprint
    writer = _writer(config, directory, sources)
    return writer.finish(sources, fingerprint=fingerprint(config, sources), weights=weights)


def _writer(config, directory: pathlib.Path, sources: dict[str, Source]) -> Writer:
    train = sources["train"]
    return Writer(directory, tuple(config.data.shape), train, tuple(_texts(train, np.arange(1))))


def _texts(source: Source, indices: np.ndarray) -> Mapping[str, Sequence[str]]:
    """Of a prepared set all, of others the captions."""
    if isinstance(source, TfdsSource):
        return source.texts(indices)
    return {CAPTIONS[0]: source.captions(indices)}


def encoder(config) -> latent_shards.EncodeFn:
    """x (n, *S, C) of records -> mean and standard deviation of their latents, on this process's
    devices, a batch of `autoencoder.batch_size` at a time."""
    frozen: Frozen = frozen_autoencoders.open_frozen(config)
    devices = jax.local_devices()
    mesh = Mesh(np.asarray(devices), ("records",))
    size = -(-config.autoencoder.batch_size // len(devices)) * len(devices)
    divided = NamedSharding(mesh, PartitionSpec("records"))
    params = jax.device_put(frozen.params, NamedSharding(mesh, PartitionSpec()))

    @jax.jit
    def of_batch(params, x):
        return frozen.encode(params, to_model_range(x, frozen.scale, frozen.shift))

    def encode(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        parts = []
        for start in range(0, len(x), size):
            part = x[start : start + size]
            whole = np.resize(part, (size, *part.shape[1:]))  # one program: the rest is repeated
            found = of_batch(params, jax.device_put(whole, divided))
            parts.append([np.asarray(value)[: len(part)] for value in found])
        mean, std = (np.concatenate(values) for values in zip(*parts, strict=True))
        return mean, std

    return encode
