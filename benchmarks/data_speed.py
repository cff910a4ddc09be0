"""How fast records come, against how fast the smallest model takes them.

  python -m benchmarks.data_speed

Records a second of prepared openmoji and cifar10 (32 x 32 x 3, uint8) and of a set of latents (8 x
8 x 32, the bfloat16 means and standard deviations of drawn posteriors, written as `nrdm encode`
writes them), decoded once into files that are mapped, through the whole pipeline of a run: the
order, reading, draws from the posteriors, mirrored copies, threads, prefetching, the transfer to
the device. Beside each the images a
second of the train step of --config, by default the smallest there is (2 blocks of width 32), at
the same shape, in alternated turns of the same process; the medians are compared. `ratio` is the
least of the sets', `cached_images_per_s` the least of the pictures'. Exits 1 where one is missed.
cifar10 is left out, with the reason, where its archive is not (see data/builders/cifar10.py).
"""

import itertools
import pathlib
import statistics
import tempfile

from absl import flags

from benchmarks import measuring
from nrdm_jax import config as configuration
from nrdm_jax.processes import lifecycle

LATENTS, LATENT_SHAPE = 20_000, (8, 8, 32)


def define_flags() -> None:
    flags.DEFINE_string("config", "openmoji32:smoke", "in configs/, whose step is the smallest")
    flags.DEFINE_integer("pairs", 9, "alternated turns", lower_bound=3)
    flags.DEFINE_integer("records", 8_192, "read in a turn", lower_bound=1)
    flags.DEFINE_integer("steps", 30, "done in a turn", lower_bound=1)
    flags.DEFINE_float("at_least", 10.0, "ratio required")
    flags.DEFINE_float("at_least_images", 8_000.0, "cached images a second required")


def config_for(shape: tuple[int, ...], name: str):
    file, _, argument = flags.FLAGS.config.partition(":")
    c = configuration.of_file(str(pathlib.Path("configs") / "any.py"), file, argument)
    c.data.name, c.data.shape, c.data.flip = name, shape, True
    if name == "latents":
        c.model.patch = (1,)  # 64 tokens, as the pictures have with patches of 4
    configuration.validate(c)
    return c


def source(config, directory: str):
    """The training records of a set, as a run opens them: decoded into files."""
    from nrdm_jax import build, records

    if config.data.name != "latents":
        return build.source(config, "train", str(lifecycle.data_dir()))
    home = pathlib.Path(directory) / "set"
    write_latents(home, config.data.num_classes)
    return records.latents(config, home, "train", directory)


def write_latents(home: pathlib.Path, num_classes: int) -> None:
    """A set of `LATENTS` records, each a posterior of its own."""
    import numpy as np

    from nrdm_jax.data import latent_shards
    from nrdm_jax.data.sources import ArraySource

    draw = np.random.default_rng(0)

    def encode(x):
        mean = draw.standard_normal((len(x), *LATENT_SHAPE), np.float32)
        return mean, draw.uniform(0.1, 0.5, mean.shape).astype(np.float32)

    nothing = np.zeros((LATENTS, 1, 1, 1), np.uint8)  # of which they are the latents
    label = np.arange(LATENTS) % num_classes
    pixels = ArraySource(nothing, label, num_classes=num_classes, fingerprint="none")
    writer = latent_shards.Writer(home, LATENT_SHAPE, pixels)
    for number in range(latent_shards.shards(pixels)):
        writer.write(pixels, "train", number, encode, lambda _: {})
    writer.finish({"train": pixels}, fingerprint="drawn", weights="none")


def measure(config, records) -> tuple[float, float]:
    """(records a second, images a second that the step takes)."""
    import jax

    from nrdm_jax import build, programs

    f, parts = flags.FLAGS, build.run(config)
    batches = build.train_loader(config, records, parts.mesh).iterate(0)
    step, state = programs.compiled_step(parts, records.dtype), parts.fresh_state()
    size = config.train.batch_size
    count = -(-f.records // size)
    batch = next(batches)

    def read() -> None:
        for last in itertools.islice(batches, count):
            jax.block_until_ready(last)

    def train() -> None:
        nonlocal state
        for _ in range(f.steps):
            state, _ = step(state, batch)
        jax.block_until_ready(state)

    read(), train()
    seconds = measuring.paired_seconds(read, train, f.pairs, untimed=False)
    reading, training = (statistics.median(turns) for turns in zip(*seconds, strict=True))
    return count * size / reading, f.steps * size / training


def run() -> int:
    from nrdm_jax.data.errors import DataError

    f = flags.FLAGS
    sets = {"openmoji": (32, 32, 3), "cifar10": (32, 32, 3), "latents": LATENT_SHAPE}
    found, skipped = {}, []
    with tempfile.TemporaryDirectory() as directory:
        for name, shape in sets.items():
            config = config_for(shape, name)
            try:
                records = source(config, directory)
            except DataError as error:
                if name != "cifar10":
                    raise
                print(f"{name} left out: {error}", flush=True)
                skipped.append(name)
                continue
            found[name] = measure(config, records)
            print(f"{name}: {found[name][0]:.0f} records/s, step {found[name][1]:.0f} images/s")
    ratios = {name: read / taken for name, (read, taken) in found.items()}
    cached = min(read for name, (read, _) in found.items() if name != "latents")
    result = {
        "ratio": round(min(ratios.values()), 1),
        "cached_images_per_s": round(cached),
        "ratios": {name: round(ratio, 1) for name, ratio in ratios.items()},
        "records_per_s": {name: round(read) for name, (read, _) in found.items()},
        "step_images_per_s": {name: round(taken) for name, (_, taken) in found.items()},
        "skipped": skipped,
    }
    measuring.print_result(result)
    return 0 if result["ratio"] >= f.at_least and cached >= f.at_least_images else 1


def main() -> None:
    define_flags()
    lifecycle.launch(run, __doc__)


if __name__ == "__main__":
    main()
