"""Whether our solvers are those of the field: beside diffusers' schedulers.

  bash launch/local.sh --setup-only --extras=torch
  python -m benchmarks.scheduler_parity

The same denoiser (the exact one of data that are -1 or 1 in each of 64 places, so of variance one),
the same 20 times of DDPM's discrete schedule, the same noise: `differences`, the largest absolute
ones of 16 samples between ours and diffusers' DDPM, with the smaller variance and with a learned
one, DDIM with and without eta, Euler (our ddim: Euler's method in sigma), Heun (our edm without
churn), DPM-Solver++(2M) and its SDE form, UniPC of orders 1 to 3, and Euler on a flow; `worst` of
them. Exits 1 if worst is above 1e-4.
"""

import os

import numpy as np

from benchmarks import measuring
from nrdm_jax.processes import lifecycle

BAR = 1e-4
SHAPE, STEPS = (16, 64), 20
VARIANCE = 0.8  # of the learned variance, v = 0.8 x0


def clean(xp, x, alpha, sigma):
    """E[x0 | x_t] of data that are -1 or 1 in each place."""
    return xp.tanh(alpha * x / sigma**2)


def noises():
    return np.random.default_rng(0).standard_normal((STEPS + 1, *SHAPE))


# name -> (sampler, options, scheduler of diffusers, its settings)
CASES = {
    "ddpm": ("ddpm", {}, "DDPMScheduler", {"variance_type": "fixed_small"}),
    "ddpm_learned": ("ddpm", {}, "DDPMScheduler", {"variance_type": "learned_range"}),
    "ddim": ("ddim", {}, "DDIMScheduler", {}),
    "ddim_eta": ("ddim", {"eta": 0.6}, "DDIMScheduler", {}),
    "euler": ("ddim", {}, "EulerDiscreteScheduler", {}),
    "heun": ("edm", {}, "HeunDiscreteScheduler", {}),
    "dpmpp_2m": ("dpmpp_2m", {}, "DPMSolverMultistepScheduler", {"final_sigmas_type": "zero"}),
    "dpmpp_2m_sde": ("dpmpp_2m_sde", {}, "DPMSolverMultistepScheduler",
                     {"algorithm_type": "sde-dpmsolver++", "final_sigmas_type": "zero"}),
    **{f"unipc_{p}": ("unipc", {"order": p}, "UniPCMultistepScheduler",
                      {"solver_order": p, "final_sigmas_type": "zero",
                       "lower_order_final": False}) for p in (1, 2, 3)},
    "flow_euler": ("euler", {}, "FlowMatchEulerDiscreteScheduler", {}),
}  # fmt: skip


def theirs(name: str) -> tuple[np.ndarray, np.ndarray]:
    """(samples, times)"""
    import diffusers
    import torch

    _, options, kind, settings = CASES[name]
    flow = name == "flow_euler"
    draws = iter(torch.from_numpy(noises()))
    start = next(draws)
    if flow:
        scheduler = diffusers.FlowMatchEulerDiscreteScheduler()
        scheduler.set_timesteps(sigmas=np.linspace(1.0, 1 / STEPS, STEPS))
        times = scheduler.sigmas[:-1].numpy()
    else:
        accepted = {"clip_sample": False} if kind in ("DDPMScheduler", "DDIMScheduler") else {}
        scheduler = getattr(diffusers, kind)(
            num_train_timesteps=1000, beta_start=1e-4, beta_end=0.02, beta_schedule="linear",
            timestep_spacing="leading", **accepted, **settings,
        )  # fmt: skip
        scheduler.set_timesteps(STEPS)
        times = np.array(sorted({int(t) for t in scheduler.timesteps}, reverse=True)) / 1000
    bar = np.cumprod(1 - np.linspace(1e-4, 0.02, 1000))
    in_sigma = kind in ("EulerDiscreteScheduler", "HeunDiscreteScheduler")
    first = round(times[0] * 1000)
    alpha, sigma = (0.0, 1.0) if flow else (np.sqrt(bar[first]), np.sqrt(1 - bar[first]))
    x = sigma * start / (alpha if in_sigma else 1.0)

    module = __import__(type(scheduler).__module__, fromlist=["randn_tensor"])
    if hasattr(module, "randn_tensor"):
        module.randn_tensor = lambda *_, **__: next(draws)
    for t in scheduler.timesteps:
        if flow:
            a, s = 1 - float(t) / 1000, float(t) / 1000
            x_t = x
        else:
            i = int(t)
            a, s = np.sqrt(bar[i]), np.sqrt(1 - bar[i])
            x_t = scheduler.scale_model_input(x, t) if in_sigma else x
        x0 = clean(torch, x_t, a, s)
        if name.startswith("unipc") and i == round(times[-1] * 1000):
            # Its last step, to no noise, is x0 where it is of order 1, and not a number elsewhere.
            return x0.numpy(), times
        eps = (x_t - a * x0) / s
        if name == "ddpm_learned":
            eps = torch.cat([eps, VARIANCE * x0], dim=1)
        more = {"eta": options["eta"]} if "eta" in options else {}
        x = scheduler.step(eps - x0 if flow else eps, t, x, **more).prev_sample
    return x.numpy(), times


def ours(name: str, times: np.ndarray) -> np.ndarray:
    import jax
    import jax.numpy as jnp

    from nrdm_jax.diffusion.samplers.table import make_sampler
    from nrdm_jax.diffusion.schedules import broadcast, make_path

    sampler, options, _, _ = CASES[name]
    path = make_path("rectified_flow" if name == "flow_euler" else "ddpm_discrete")

    def predict(x, t):
        a, s = (broadcast(f(t), x) for f in (path.alpha, path.sigma))
        x0 = clean(jnp, x, a, s)
        return x0, (x - a * x0) / s

    def predict_variance(x, t):
        x0, eps = predict(x, t)
        return x0, eps, VARIANCE * x0

    more = {"predict_variance": predict_variance} if name == "ddpm_learned" else {}
    at, draws = jnp.asarray(times), jnp.asarray(noises())
    solve = make_sampler(sampler, path, options)

    def sample(start):
        x = solve(predict, path, path.sigma(at[0]) * start, at, lambda i: draws[1 + i], **more)
        return predict(x, jnp.full(x.shape[:1], at[-1]))[0]

    return np.asarray(jax.jit(sample)(draws[0]))


def run() -> int:
    os.environ["JAX_PLATFORMS"] = "cpu"
    measuring.require("torch", "diffusers", extra="torch")
    import jax

    jax.config.update("jax_enable_x64", True)
    differences = {}
    for name in CASES:
        found, times = theirs(name)
        differences[name] = float(np.abs(found - ours(name, times)).max())
        print(f"{name:14} {differences[name]:.1e}", flush=True)
    worst = max(differences.values())
    measuring.print_result({
        "worst": float(f"{worst:.2e}"),
        "differences": {name: float(f"{value:.2e}") for name, value in differences.items()},
    })  # fmt: skip
    return 0 if worst <= BAR else 1


def main() -> None:
    lifecycle.launch(run, __doc__)


if __name__ == "__main__":
    main()
