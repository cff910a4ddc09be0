"""CIFAR-10, 32 x 32 photographs.

Purpose: class-conditional photographs on one accelerator. `:laptop` is a network for two CPU cores,
scored four times and more within the run by 1,000 samples.
Expected result: not measured at full length; `:laptop`: see docs/results.md. (The archive beside
the project is JPEG: its scores are not comparable with published ones; use data.name=tfds:cifar10
for those.)
Needs: ../shared/data/cifar10_jpeg.tar.xz, or NRDM_CIFAR10, or a TFDS cifar10 in TFDS_DATA_DIR
Command: python -m nrdm_jax.train --config=configs/cifar10.py --workdir=runs/cifar10
         python -m nrdm_jax.train --config=configs/cifar10.py:laptop --workdir=runs/cifar10-laptop
"""

from nrdm_jax import config as configuration

ARGUMENTS = ("laptop",)


def get_config(arg: str = ""):
    if arg not in ("", *ARGUMENTS):
        raise ValueError(f"cifar10 has no argument {arg!r}; give none, or laptop")
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
    c.evaluate.metrics_every = 10_000_000
    c.evaluate.metrics = ("fd", "kid", "precision_recall")
    c.evaluate.samples = 10_000
    c.log.every = 100
    if arg == "laptop":
        c.model.size, c.model.branch_dtype = None, "float32"
        c.model.depth, c.model.width, c.model.heads, c.model.patch = 6, 128, 2, (4,)
        c.optim.learning_rate, c.optim.b2 = 1.5e-3, 0.99
        c.optim.warmup_steps, c.optim.schedule = 100, "cosine"
        c.train.steps, c.train.batch_size = 4_000, 32
        c.train.ema_halflife_images = 5_000.0
        c.checkpoint.every = 500
        c.evaluate.every, c.evaluate.examples = 1_000, 1_000
        c.evaluate.metrics_every, c.evaluate.samples = 32_000, 1_000
        c.evaluate.reference = 10_000
        c.sample.every = 1_000
        c.sample.sampler, c.sample.steps = "dpmpp_2m", 12
        c.sample.guidance = 1.5
        c.log.every = 50
    return c
