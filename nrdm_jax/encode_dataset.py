"""Encodes a data set of pixels into an autoencoder's latents: mean and standard deviation of each
record, bfloat16, with its label and its texts, as array_record in --workdir, which TFDS reads
(tfds.builder_from_directory) and a run takes as autoencoder.encoded. Several processes share the
shards; the same command goes on where one was stopped.

  python -m nrdm_jax.encode_dataset --config=configs/openmoji64_latent.py --workdir=latents/openmoji

CONFIG is that of the run: autoencoder.name and weights, data.name, and data.shape, the latents'.
"""

import pathlib
import time

from absl import flags

from nrdm_jax import command_line
from nrdm_jax.processes import lifecycle


def define_flags() -> None:
    command_line.define_config(required=True)
    command_line.define_workdir()
    command_line.define_processes()


def run() -> None:
    config = command_line.config_of_flags()
    if config.task != "diffusion" or config.autoencoder.name == "none":
        raise ValueError(
            f"--config has task={config.task} and autoencoder.name={config.autoencoder.name}; "
            "give a diffusion in an autoencoder's latents"
        )
    before = time.monotonic()
    command_line.start_processes()
    import jax

    from nrdm_jax import encoding, records
    from nrdm_jax.data import latents
    from nrdm_jax.processes import distributed

    home = pathlib.Path(flags.FLAGS.workdir) / latents.VERSION
    data_dir = config.data.dir or str(lifecycle.data_dir())
    with command_line.signals(config, "encode") as signals:
        with records.writer_first(config, "pixels"):
            sources = {s: encoding.pixels(config, s, data_dir, streamed=True)
                       for s in ("train", "heldout")}  # fmt: skip
            encoding.bind(config, home, sources)
        own = encoding.write_shards(
            config,
            home,
            sources,
            process=jax.process_index(),
            processes=jax.process_count(),
            poll=signals.check,
        )
        distributed.meet("shards")
        if distributed.is_writer():
            encoding.finish(config, home, sources)
        distributed.meet("finished")
    command_line.print_result(
        {
            "records": sum(map(len, sources.values())),
            "shards_of_this_process": own,
            "shape": list(config.data.shape),
            "seconds": round(time.monotonic() - before, 1),
            "set": str(home),
        }
    )


def main() -> None:
    define_flags()
    lifecycle.launch(run, __doc__)


if __name__ == "__main__":
    main()
