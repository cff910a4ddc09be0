"""Whether every solver has the order that its theory says.

  python -m benchmarks.sampler_order

A mixture of three Gaussians in four dimensions, whose score has a closed form, in float64. For each
deterministic solver the error of x at log(alpha/sigma) = 3, from -3, against one of 4,096 steps of
order 3, over three paths and steps even in the log-SNR, halved four times: `orders` are the slopes
of the last halvings, the least certain of the paths. Theory: 1 for Euler and DDIM, 2 for Heun, EDM
without churn and DPM-Solver++(2M), p + 1 for UniPC-p. For each stochastic solver, `frechet` is the
Fréchet distance of 20,000 samples to the mixture's own mean and covariance over that of as many
true draws. Exits 1 if an order is further than 0.2 from its theory or a ratio above 3.
"""

import os

from benchmarks import measuring
from nrdm_jax.processes import lifecycle

TOLERANCE, RATIO = 0.2, 3.0
# name -> (sampler, options, theory)
DETERMINISTIC = {
    "euler": ("euler", {}, 1),
    "ddim": ("ddim", {}, 1),
    "heun": ("heun", {}, 2),
    "edm": ("edm", {}, 2),
    "dpmpp_2m": ("dpmpp_2m", {}, 2),
    "unipc_1": ("unipc", {"order": 1}, 2),
    "unipc_2": ("unipc", {"order": 2}, 3),
    "unipc_3": ("unipc", {"order": 3}, 4),
}
STOCHASTIC = {
    "ddpm": ("ddpm", {}),
    "ddim_eta": ("ddim", {"eta": 0.5}),
    "edm_churn": ("edm", {"churn": 40.0}),
    "dpmpp_2m_sde": ("dpmpp_2m_sde", {}),
    "sde_sigma": ("sde", {"diffusion": "sigma"}),
    "sde_sin2": ("sde", {"diffusion": "sin2"}),
    "sde_sbdm": ("sde", {"diffusion": "sbdm"}),
}
PATHS = ("rectified_flow", "cosine", "ve")
LOW, HIGH = -3.0, 3.0  # log(alpha / sigma)
SAMPLES, STOCHASTIC_STEPS = 20_000, 500


class Mixture:
    """Weights, means and standard deviations of round Gaussians in four dimensions."""

    def __init__(self):
        import jax.numpy as jnp

        self.weights = jnp.array([0.5, 0.3, 0.2])
        self.means = jnp.array(
            [[1.0, 0.0, -1.0, 0.5], [-1.0, 1.0, 0.5, 0.0], [0.0, -1.5, 1.0, -1.0]]
        )
        self.stds = jnp.array([0.5, 0.8, 0.4])

    def predict(self, path):
        """The exact estimates of x0 and eps."""
        import jax
        import jax.numpy as jnp

        def estimates(x, t):
            a, s = path.alpha(t)[:, None, None], path.sigma(t)[:, None, None]
            variance = a**2 * self.stds[None, :, None] ** 2 + s**2
            apart = x[:, None, :] - a * self.means[None]
            logits = jnp.log(self.weights)[None] - 0.5 * jnp.sum(
                apart**2 / variance + jnp.log(variance), axis=-1
            )
            share = jax.nn.softmax(logits, axis=1)[:, :, None]
            gain = apart / variance
            x0 = self.means[None] + a * self.stds[None, :, None] ** 2 * gain
            return jnp.sum(share * x0, axis=1), jnp.sum(share * s * gain, axis=1)

        return estimates

    def draw(self, key, count):
        import jax

        which, noise = jax.random.split(key)
        i = jax.random.choice(which, 3, (count,), p=self.weights)
        return self.means[i] + self.stds[i, None] * jax.random.normal(noise, (count, 4))

    def moments(self):
        import jax.numpy as jnp

        mean = self.weights @ self.means
        apart = self.means - mean
        covariance = (apart.T * self.weights) @ apart
        return mean, covariance + jnp.eye(4) * (self.weights @ self.stds**2)


def lam_times(path, steps: int):
    """steps + 1 times, even in log(alpha / sigma)."""
    import jax.numpy as jnp

    from nrdm_jax.diffusion.schedules import time_at

    return time_at(path, jnp.linspace(LOW, HIGH, steps + 1))


def orders(name: str) -> dict[str, float]:
    """The measured order on each path."""
    import jax
    import numpy as np

    from nrdm_jax.diffusion.samplers.table import make_sampler
    from nrdm_jax.diffusion.schedules import make_path

    sampler, options, _ = DETERMINISTIC[name]
    mixture, found = Mixture(), {}
    for path_name in PATHS:
        path = make_path(path_name)
        predict = mixture.predict(path)
        start_time = lam_times(path, 1)[0]
        x0 = mixture.draw(jax.random.key(0), 64)
        noise = jax.random.normal(jax.random.key(1), x0.shape)
        x = path.alpha(start_time) * x0 + path.sigma(start_time) * noise

        try:
            make_sampler(sampler, path, options)
        except ValueError as error:
            print(f"{name:10} {path_name:15} refused: {error}")
            continue

        def end(sampler, options, steps, path=path, predict=predict, x=x):
            solve = make_sampler(sampler, path, options)
            return jax.jit(lambda x: solve(predict, path, x, lam_times(path, steps), None))(x)

        truth = end("unipc", {"order": 2}, 4096)
        counts = (32, 64, 128, 256)
        errors = [float(np.sqrt(np.mean((end(sampler, options, n) - truth) ** 2))) for n in counts]
        slopes = np.log2(np.array(errors[:-1]) / np.array(errors[1:]))
        found[path_name] = float(slopes[-1])
        print(f"{name:10} {path_name:15} " + " ".join(f"{s:.3f}" for s in slopes), flush=True)
    return found


def frechet(x, mean, covariance) -> float:
    """|m - m'|^2 + tr(C + C' - 2 (C C')^(1/2)) of the samples' moments."""
    import numpy as np
    import scipy.linalg

    m, c = np.mean(x, axis=0), np.cov(x, rowvar=False)
    root = scipy.linalg.sqrtm(c @ covariance).real
    return float(np.sum((m - mean) ** 2) + np.trace(c + covariance - 2 * root))


def frechet_ratio(name: str) -> float:
    """Of the samples over the median of ten true sets; the largest of the paths."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    from nrdm_jax.diffusion.noise import noise_of_seeds, noise_of_steps
    from nrdm_jax.diffusion.samplers.table import make_sampler
    from nrdm_jax.diffusion.schedules import make_path

    sampler, options = STOCHASTIC[name]
    mixture, ratios = Mixture(), {}
    mean, covariance = (np.asarray(m) for m in mixture.moments())
    true = [
        frechet(np.asarray(mixture.draw(jax.random.key(i), SAMPLES)), mean, covariance)
        for i in range(10)
    ]
    seeds = jnp.arange(SAMPLES)
    for path_name in PATHS:
        path = make_path(path_name)
        try:
            solve = make_sampler(sampler, path, {"diffusion": "sigma", **options})
        except ValueError as error:
            print(f"{name:10} {path_name:15} refused: {error}")
            continue
        predict = mixture.predict(path)

        def samples(seeds, path=path, solve=solve, predict=predict):
            times = jnp.linspace(path.t_max, path.t_max / STOCHASTIC_STEPS, STOCHASTIC_STEPS)
            start = path.sigma(times[0]) * noise_of_seeds(seeds, (4,))
            x = solve(predict, path, start, times, noise_of_steps(seeds, (4,)))
            # The noise that is left is the samples' own.
            x0, eps = predict(x, jnp.full(x.shape[:1], times[-1]))
            del x0
            return (x - path.sigma(times[-1]) * eps) / path.alpha(times[-1])

        found = frechet(np.asarray(jax.jit(samples)(seeds)), mean, covariance)
        ratios[path_name] = found / float(np.median(true))
        print(f"{name:10} {path_name:15} {found:.2e}, {ratios[path_name]:.2f} of true draws",
              flush=True)  # fmt: skip
    return max(ratios.values())


def run() -> int:
    os.environ["JAX_PLATFORMS"] = "cpu"
    import jax

    jax.config.update("jax_enable_x64", True)
    measured = {name: orders(name) for name in DETERMINISTIC}
    worst = {
        name: max(found.values(), key=lambda order, name=name: abs(order - DETERMINISTIC[name][2]))
        for name, found in measured.items()
    }
    ratios = {name: frechet_ratio(name) for name in STOCHASTIC}
    measuring.print_result({
        "orders": {name: round(order, 3) for name, order in worst.items()},
        "frechet": {name: round(ratio, 2) for name, ratio in ratios.items()},
    })  # fmt: skip
    right = all(abs(worst[name] - DETERMINISTIC[name][2]) <= TOLERANCE for name in worst)
    return 0 if right and max(ratios.values()) <= RATIO else 1


def main() -> None:
    lifecycle.launch(run, __doc__)


if __name__ == "__main__":
    main()
