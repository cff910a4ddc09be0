"""A thousand gated blocks of width 1,024 on ImageNet 256 x 256 latents, for a pod.

Purpose: the flow-shaped stack at the depth the project is for: 2,000 residual units, bfloat16
branches on a float32 trunk, activations kept by the square root of the depth, parameters sharded
over all devices.
Expected result: none measured here; compiled ahead for both machines below. The same
form with width 64 trains on two CPU cores: configs/depth_1000.py, docs/depth.
Data: as configs/imagenet256_dit_xl2.py.
Argument: `v5p`, for 64 chips of a TPU v5p slice, 4x4x4; `h100`, for eight hosts of eight H100s.
There the inputs of all blocks fit, and remat costs a forward pass less than sqrt.
Command: python -m nrdm_jax.train --config=configs/nrdm_f_1000.py --workdir=/tmp/w --dry_run
    python -m nrdm_jax.compile_ahead --config=configs/nrdm_f_1000.py:v5p --topology=tpu:v5p:4x4x4
"""

from nrdm_jax import config as configuration

ARGUMENTS = ("v5p", "h100")


def get_config(arg: str = ""):
    if arg not in ("", *ARGUMENTS):
        raise ValueError(f"nrdm_f_1000 has no argument {arg!r}; give none, {', '.join(ARGUMENTS)}")
    c = configuration.of_file(__file__, "imagenet256_dit_xl2")
    c.model.size = None
    c.model.depth, c.model.width, c.model.heads = 1_000, 1_024, 16
    c.model.learn_variance = False
    c.model.alpha_bound = c.model.beta = True
    # One kernel for all gates and one for all norms, 12 d^2 a block are the branches' alone.
    c.model.gate_condition, c.model.modulation = "cond_shared", "shared"
    c.model.qk_norm = True
    c.model.memory = "sqrt"
    c.diffusion.path, c.diffusion.prediction = "rectified_flow", "velocity"
    c.diffusion.times = "logit_normal"
    c.sample.sampler, c.sample.grid, c.sample.steps = "heun", "uniform", 30
    c.optim.warmup_steps = 2_000
    c.optim.b2 = 0.95
    c.train.batch_size = 1_024
    c.mesh.data, c.mesh.fsdp = 1, -1
    if arg:
        c.model.memory = "remat"
    if arg == "h100":
        c.mesh.data, c.mesh.fsdp = 8, 8  # weights are divided within a host, over NVLink
    return c
