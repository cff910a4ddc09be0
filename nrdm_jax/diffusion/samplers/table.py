"""Solvers by name; all have the signature of `euler.sample`."""

from nrdm_jax.diffusion.samplers import ddim, euler, heun

SAMPLERS = {"euler": euler.sample, "heun": heun.sample, "ddim": ddim.sample}
