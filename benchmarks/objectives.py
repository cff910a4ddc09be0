"""What a learned variance, a learned uncertainty and times by importance cost; and what the first
is for.

  python -m benchmarks.objectives

`cost`: seconds of a train step of --config (on a thousand discrete steps, eps) with each of them
over those of one without, in alternated pairs: medians and their 95 % intervals.
`bits`: the variational bound of held-out pictures in bits a number, summed over all thousand steps,
of one network after --steps steps: with the variance it has learned, and with the posterior's
smaller and larger one in its place (Nichol & Dhariwal, arXiv 2102.09672, section 3.1: this is what
it is learned for). Exits 1 if the learned one's are not the fewest, or a cost is above 1.10.
"""

import pathlib
import tempfile

from absl import flags

from benchmarks import measuring
from benchmarks.unit_overhead import median_and_interval, ratios
from nrdm_jax import config as configuration
from nrdm_jax.processes import lifecycle

COST = 1.10
SETTINGS = {
    "plain": {},
    "learned_variance": {"model.learn_variance": True},
    "uncertainty": {"diffusion.uncertainty": True},
    "importance": {"diffusion.times": "importance"},
}


def define_flags() -> None:
    flags.DEFINE_string("config", "configs/openmoji32.py", "of the run")
    flags.DEFINE_integer("pairs", 20, "alternated pairs", lower_bound=10)
    flags.DEFINE_integer("steps", 600, "of the run whose bound is taken", lower_bound=1)
    flags.DEFINE_integer("examples", 16, "held-out pictures at each time", lower_bound=1)


def configured(setting: str):
    path = pathlib.Path(flags.FLAGS.config)
    c = configuration.of_file(str(path), path.stem)
    c.diffusion.path, c.diffusion.prediction = "ddpm_discrete", "eps"
    c.diffusion.times = "discrete"
    c.log.sensitivity_every = 0
    for field, value in SETTINGS[setting].items():
        group, name = field.split(".")
        c[group][name] = value
    configuration.validate(c)
    return c


def stepper(setting: str):
    """A function that does one step and waits for it."""
    import jax
    import numpy as np

    from nrdm_jax import build, programs

    parts = build.run(configured(setting))
    state = parts.fresh_state()
    step = programs.compiled_step(parts, np.dtype("float32"))
    batch = measuring.placed_batch(parts)

    def run() -> None:
        nonlocal state
        state, _ = step(state, batch)
        jax.block_until_ready(state)

    return run


def bits(workdir: pathlib.Path, examples: int) -> dict[str, float]:
    """Of the variances `learned`, `small` and `large`."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    from nrdm_jax import build, run_weights
    from nrdm_jax.diffusion import posterior
    from nrdm_jax.diffusion.predictions import to_x0_eps
    from nrdm_jax.diffusion.schedules import STEPS, add_noise
    from nrdm_jax.processes.stored_config import read_config
    from nrdm_jax.training.objectives import given_of, to_model_range

    c = configuration.from_dict(read_config(workdir))
    parts = build.run(c)
    params = run_weights.find(str(workdir)).read(parts.abstract_state.ema)
    source = build.source(c, "heldout", str(lifecycle.data_dir()))
    batch = source.gather(np.linspace(0, len(source) - 1, examples).astype(int))
    x0, channels = to_model_range(batch["x"], 1.0, 0.0), batch["x"].shape[-1]
    given = given_of(jax.tree.map(jnp.asarray, batch))

    def at(i):
        eps = jax.random.normal(jax.random.fold_in(jax.random.key(0), i), x0.shape)
        t_B = jnp.full(examples, i / STEPS)
        x_t = add_noise(parts.path, x0, eps, t_B)
        output = parts.apply(params, x_t, t_B, given)
        mean, v = output[..., :channels], output[..., channels:]
        x0_hat, _ = to_x0_eps(parts.path, c.diffusion.prediction, mean, x_t, t_B)
        ways = {"learned": v, "small": jnp.full_like(v, -1.0), "large": jnp.ones_like(v)}
        return {
            name: jnp.mean(posterior.bound(parts.path, x0, x0_hat, way, t_B, pixels=True))
            for name, way in ways.items()
        }

    found = jax.jit(lambda: jax.lax.map(at, jnp.arange(STEPS)))()
    return {name: round(float(jnp.sum(value)), 4) for name, value in found.items()}


def run() -> int:
    f = flags.FLAGS
    cost: dict[str, float] = {}
    intervals = {}
    steppers = {setting: stepper(setting) for setting in SETTINGS}
    for setting in list(SETTINGS)[1:]:
        print(setting, flush=True)
        values = ratios(steppers[setting], steppers["plain"], f.pairs)
        cost[setting], intervals[setting] = median_and_interval(values)
    with tempfile.TemporaryDirectory() as directory:
        workdir = pathlib.Path(directory) / "run"
        measuring.train(
            workdir,
            "--config.model.learn_variance=True",
            "--config.diffusion.path=ddpm_discrete",
            "--config.diffusion.times=discrete",
            "--config.diffusion.prediction=eps",
            f"--config.train.steps={f.steps}",
        )
        found = bits(workdir, f.examples)
    measuring.print_result({"cost": cost, "cost_intervals": intervals, "bits": found})
    fewest = found["learned"] < min(found["small"], found["large"])
    return 0 if fewest and max(cost.values()) <= COST else 1


def main() -> None:
    define_flags()
    lifecycle.launch(run, __doc__)


if __name__ == "__main__":
    main()
