"""CIFAR-10, 32 x 32 photographs.

Purpose: class-conditional photographs on one accelerator.
Expected result: not measured at full length. (The archive beside the project is JPEG: its scores
are not comparable with published ones; use data.name=tfds:cifar10 for those.)
Needs: ../shared/data/cifar10_jpeg.tar.xz, or NRDM_CIFAR10, or a TFDS cifar10 in TFDS_DATA_DIR
Command: python -m nrdm_jax.train --config=configs/cifar10.py --workdir=runs/cifar10
"""

from nrdm_jax import config as configuration


def get_config(arg: str = ""):
    if arg:
        raise ValueError(f"cifar10 has no argument {arg!r}; give none")
    c = configuration.default()
    c.data.name = "cifar10"
    c.data.shape = (32, 32, 3)
    c.data.num_classes = 10
    c.data.flip = True
    c.model.size = "S"
    c.model.patch = (2,)
    c.model.branch_dtype = "bfloat16"
    c.optim.learning_rate = 2e-4
    c.optim.warmup_steps = 1_000
    c.train.steps = 200_000
    c.train.batch_size = 128
    c.checkpoint.every = 5_000
    c.evaluate.every = 5_000
    c.evaluate.examples = 2_000
    c.sample.every = 10_000
    c.log.every = 100
    return c
