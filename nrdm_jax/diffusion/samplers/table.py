"""Solvers by name; all have the signature of `euler.sample`, once their own options are bound."""

import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any

from nrdm_jax.diffusion.samplers import (
    ddim,
    ddpm,
    dopri5,
    dpm_solver,
    edm,
    euler,
    heun,
    sde,
    unipc,
)
from nrdm_jax.diffusion.schedules import Path

Solver = Callable[..., Any]

SAMPLERS: dict[str, Solver] = {
    "euler": euler.sample,
    "heun": heun.sample,
    "ddim": ddim.sample,
    "ddpm": ddpm.sample,
    "edm": edm.sample,
    "dpmpp_2m": dpm_solver.sample,
    "dpmpp_2m_sde": functools.partial(dpm_solver.sample, stochastic=True),
    "unipc": unipc.sample,
    "sde": sde.sample,
    "dopri5": dopri5.sample,
}


def make_sampler(name: str, path: Path, options: Mapping[str, Any]) -> Solver:
    """The solver with those of the options that it has.

    Raises:
      ValueError: there is none of that name, or it cannot be used on this path.
    """
    if name not in SAMPLERS:
        raise ValueError(f"sample.sampler is {name!r}; choose one of {', '.join(SAMPLERS)}")
    solver = SAMPLERS[name]
    if path.name == "ve" and name in ("euler", "heun"):
        raise ValueError(
            f"sample.sampler is {name}, whose steps are in t, the logarithm of sigma of "
            "diffusion.path=ve, in which they err by far more than in sigma; choose ddim, Euler's "
            "method in sigma, or edm, Heun's"
        )
    if name == "sde":
        sde.check(path, options["diffusion"])
    # What a table's row has bound is its own.
    taken = {k for k, p in inspect.signature(solver).parameters.items() if p.default is not p.empty}
    bound = getattr(solver, "keywords", {})
    own = {k: v for k, v in options.items() if k in taken and k not in bound}
    return functools.partial(solver, **own)
