"""Scores the averaged weights of a run on held-out data: loss at fixed noise levels, beside that of
the best linear denoiser, the distance of samples to their nearest training examples, and, with
--metrics, distances of their features to those of the training set; with --likelihood, bits per
number of held-out examples.

  python -m nrdm_jax.evaluate --workdir=runs/openmoji32 --samples=64
  python -m nrdm_jax.evaluate --workdir=runs/cifar10 --samples=1000 --metrics=fd,kid
  python -m nrdm_jax.evaluate --workdir=RUN --samples=50000 --metrics=fd,sfd,inception_score \
    --net=inception --weights=pt_inception-2015-12-05-6726825d.pth
"""

import pathlib

from absl import flags

from nrdm_jax import command_line
from nrdm_jax import config as configuration
from nrdm_jax.processes import lifecycle


def define_flags() -> None:
    command_line.define_config(required=False)
    command_line.define_workdir()
    command_line.define_processes()
    command_line.define_ema_width()
    flags.DEFINE_integer("samples", 64, "compared with the training set; 0: none", lower_bound=0)
    flags.DEFINE_list("metrics", [], f"of samples: {', '.join(configuration.METRICS)}")
    flags.DEFINE_enum("net", None, configuration.CHOICES["evaluate.net"], "whose features the "
                      "metrics compare; by default the config's")  # fmt: skip
    flags.DEFINE_string("weights", None, "file of the net's weights; efflite0 has a package")
    flags.DEFINE_boolean("by_class", False, "metrics of each class as well, in evals/scores.json")
    flags.DEFINE_integer("likelihood", 0, "held-out examples whose bits per number are measured, "
                         "by the probability-flow ODE; 0: none", lower_bound=0)  # fmt: skip
    flags.DEFINE_integer("probes", 1, "of the divergence along it; 0: exact, a pass a number of an "
                         "example", lower_bound=0)  # fmt: skip
    flags.DEFINE_integer("ode_steps", 100, "of it, of order 4", lower_bound=1)
    flags.DEFINE_string("npz", None, "file for the scored samples, as ADM's evaluator reads them")


def run() -> None:
    config = command_line.config_of_flags()
    f = flags.FLAGS
    unknown = [m for m in f.metrics if m not in configuration.METRICS]
    if unknown:
        raise ValueError(
            f"--metrics: {unknown[0]!r} is none; give some of {', '.join(configuration.METRICS)}"
        )
    if not f.metrics and (f.net or f.weights or f.by_class or f.npz):
        raise ValueError("--net, --weights, --by_class and --npz go with --metrics; give it, too")
    if f.by_class and not configuration.with_class(config):
        raise ValueError("--by_class: samples of this run are given no class; leave it out")
    if f.metrics and f.samples < 2:
        raise ValueError(f"--samples={f.samples} with --metrics; give at least 2")
    command_line.start_processes()
    from nrdm_jax import scoring

    scored = None
    if f.metrics:
        npz = pathlib.Path(f.npz) if f.npz else None
        scored = scoring.Scored(tuple(f.metrics), f.net, f.weights, f.by_class, npz)
    bits = scoring.Bits(f.likelihood, f.probes, f.ode_steps) if f.likelihood else None
    with command_line.signals(config, "evaluate") as signals:
        result = scoring.score(
            config,
            f.workdir,
            samples=f.samples,
            scored=scored,
            bits=bits,
            ema_width=f.ema_width,
            signals=signals,
        )
    command_line.print_result(result)


def main() -> None:
    define_flags()
    lifecycle.launch(run, __doc__)


if __name__ == "__main__":
    main()
