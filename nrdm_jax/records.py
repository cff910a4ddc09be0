"""The records of a run, pixels or an autoencoder's latents, and how what it draws becomes pixels:
what everything that opens data or shows samples calls."""

import contextlib
import pathlib
from collections.abc import Callable, Iterator, Mapping

import numpy as np
from jax.sharding import Mesh

from nrdm_jax import autoencoding, build, encoding, frozen_autoencoders, texts
from nrdm_jax.data import listings
from nrdm_jax.data.latents import Encoded, LatentSource, Statistics
from nrdm_jax.data.sources import Source, decoded
from nrdm_jax.processes import distributed
from nrdm_jax.sampling import generate
from nrdm_jax.sampling.generate import Generator
from nrdm_jax.signatures import Array, Shape
from nrdm_jax.tasks import Task
from nrdm_jax.training.objectives import to_model_range

STATISTICS = "latents.json"  # in a workdir: those of the run's latents


@contextlib.contextmanager
def writer_first(config, name: str) -> Iterator[None]:
    """As `distributed.writer_first`, of what opens records: a folder of files is listed by the
    writer alone, once. The weights of an autoencoder are read before, by all processes at once:
    those of a run are restored by a collective.

    Raises:
      ValueError: as `frozen_autoencoders.open_frozen`.
    """
    if autoencoding.in_latents(config):
        frozen_autoencoders.open_frozen(config)
    with distributed.writer_first(name) as found, listings.remembered(found):
        yield


def source(config, split: str, data_dir: str, poll: Callable[[], None] = lambda: None) -> Source:
    """The records that the network of `config` sees; latents are encoded on first use, with `poll`
    as `encoding.encoded` has it.

    Raises:
      ValueError: the set has no records of this shape, or with so many classes.
      DataError: the data are absent or damaged.
    """
    if not autoencoding.in_latents(config):
        return build.source(config, split, data_dir)
    data_dir = config.data.dir or data_dir
    return latents(config, encoding.encoded(config, data_dir, poll), split, data_dir)


def latents(config, home: pathlib.Path, split: str, data_dir: str) -> LatentSource:
    """Those of a split of the set in `home`, in memory where `data.in_memory_gib` lets them, and
    what is given of their captions, which is kept under `data_dir`.

    Raises:
      ValueError: the set has no latents of this shape, or with so many classes.
      DataError: it is damaged.
    """
    stored: Source = Encoded(home, split)
    for field, wanted, found in (
        ("data.shape", tuple(config.data.shape), stored.shape),
        ("data.num_classes", config.data.num_classes, stored.num_classes),
    ):
        if found != wanted:
            raise ValueError(f"{field} is {wanted}, and the latents in {home} have {found}")
    statistics = Statistics.read(home / "statistics.json")
    if len(stored) * 4 * np.prod(stored.shape) <= config.data.in_memory_gib * 2**30:
        stored = decoded(stored, pathlib.Path(data_dir) / "decoded")
    return LatentSource(texts.source(config, stored, data_dir), statistics)


def training_sources(
    config, data_dir: str, poll: Callable[[], None] = lambda: None
) -> dict[Shape, Source]:
    """The records to train on, of each shape; see `source`. Raises as it and
    `build.training_sources`."""
    if autoencoding.in_latents(config):
        return {tuple(config.data.shape): source(config, "train", data_dir, poll)}
    return build.training_sources(config, data_dir)


def pictures(config, split: str, data_dir: str, records: Source) -> Source:
    """What the samples are to be like: the records, or the pixels that they are latents of."""
    if not autoencoding.in_latents(config):
        return records
    return encoding.pixels(config, split, data_dir)


def to_pixels(
    config, mesh: Mesh, statistics: Statistics | None
) -> Callable[[np.ndarray], np.ndarray]:
    """(n, *S, C) samples in the network's range -> uint8 pixels (n, *S', C'), decoded where they
    are latents, those of `statistics`, a batch at a time over the mesh.

    Raises:
      ValueError: the latents are of other weights than `autoencoder.weights` are now.
    """
    if not autoencoding.in_latents(config):
        return generate.to_pixels
    assert statistics is not None
    frozen = frozen_autoencoders.open_frozen(config)
    if frozen.fingerprint != statistics.weights:
        raise ValueError(
            f"autoencoder.weights={config.autoencoder.weights} are now {frozen.fingerprint}, and "
            f"the run's latents are of {statistics.weights}; give the weights that encoded them"
        )

    def decode(params, seeds: Array, given) -> Array:
        return frozen.decode(params, given["z"])

    decoder = Generator(decode, mesh, config.autoencoder.batch_size)

    def pixels(x: np.ndarray) -> np.ndarray:
        # Of previews as well, (n, k, *S, C).
        ahead = x.shape[: x.ndim - len(config.data.shape)]
        z = statistics.latents(x).reshape(-1, *config.data.shape)
        found = decoder(frozen.params, np.zeros(len(z), np.uint32), {"z": z})
        return generate.to_pixels(found.reshape(*ahead, *found.shape[1:]))

    return pixels


def originals(config, task: Task, given: Mapping[str, np.ndarray]) -> np.ndarray | None:
    """What samples that were given this are to be compared with, as uint8 pixels (n, *S, C), where
    they are of a task that has such."""
    found = given.get(task.original)
    if found is None:
        return None
    x = to_model_range(found, config.data.scale, config.data.shift)
    return generate.to_pixels(np.asarray(x))


def statistics_of(records: Source) -> Statistics | None:
    """Of the run's latents, where it has any."""
    return records.statistics if isinstance(records, LatentSource) else None


def keep_statistics(records: Source, workdir: pathlib.Path) -> None:
    """Beside the weights of the run, so that its samples can be decoded without its data."""
    found = statistics_of(records)
    if found is not None and distributed.is_writer():
        found.write(workdir / STATISTICS)


def kept_statistics(config, workdir: str) -> Statistics | None:
    """What `keep_statistics` wrote. Raises as `Statistics.read`."""
    if not autoencoding.in_latents(config):
        return None
    return Statistics.read(pathlib.Path(workdir) / STATISTICS)
