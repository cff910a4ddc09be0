"""Our sampler against diffusers' DiTPipeline on this machine: images a second, in alternated pairs.

  bash launch/local.sh --setup-only --extras=torch
  python -m benchmarks.sampling_speed

Ours is the generator of `drawing.generator`, whole, which `nrdm sample` draws with: noise from
seeds, guidance, DDIM, samples on the host. Theirs is the pipeline's own __call__ with its
DDIMScheduler and nothing for a decoder. Both draw 16 latents of 32 x 32 x 4 with guidance 4,
float32, from random weights of DiT-S/2 (depth 12, width 384, 6 heads, 256 tokens): ours as
adaLN-Zero DiT, that is `gated` without bounds and beta, of as many parameters; what the default
gates cost beside it is `gated_over_dit`, a ratio of seconds. torch has all its threads, as by
default.

A network evaluation costs the same at every step: fewer --steps than the 50 of a picture take less
time and find the same. The ratio is the median over pairs; of 7 pairs the
lowest and the highest enclose the true median in 98 of 100 cases. `load` is that of the machine
before and after: where others use the cores, torch's threads, which wait for each other, lose more
than ours. `cpu_ratio` is the ratio of processor seconds. Exits 1 if the ratio is below --at_least.
Without GLIBC_TUNABLES=glibc.malloc.hugetlb=1, which launch/*.sh set, both are slower.
"""

import contextlib
import os
import statistics
import time
from collections.abc import Callable, Iterator

from absl import flags

from benchmarks import measuring
from nrdm_jax import config as configuration
from nrdm_jax.processes import lifecycle

IMAGES, CLASSES, GUIDANCE = 16, 1000, 4.0
DEPTH, WIDTH, HEADS = 12, 384, 6


def define_flags() -> None:
    flags.DEFINE_integer("pairs", 7, "alternated pairs", lower_bound=7)
    flags.DEFINE_integer("steps", 50, "network evaluations of each sample", lower_bound=2)
    flags.DEFINE_integer("depth", DEPTH, "blocks", lower_bound=1)
    flags.DEFINE_integer("batch_size", 0, "images that ours draws at a time; 0: chosen")
    flags.DEFINE_float("at_least", 0.75, "ratio required")


def our_sampler(**gates) -> tuple[Callable[[], object], int, int]:
    """A function that draws the samples, the images of a batch, and the number of parameters."""
    import jax
    import numpy as np

    from nrdm_jax import build, drawing, trees

    c = configuration.default()
    c.data.shape, c.data.num_classes = (32, 32, 4), CLASSES
    c.model.depth, c.model.width, c.model.heads = flags.FLAGS.depth, WIDTH, HEADS
    c.model.patch = (2,)
    c.model.update(gates)
    c.diffusion.path, c.diffusion.prediction = "ddpm_discrete", "eps"
    c.diffusion.times = "discrete"
    c.sample.sampler, c.sample.grid, c.sample.guidance = "ddim", "respaced", GUIDANCE
    c.sample.steps, c.sample.batch_size = flags.FLAGS.steps, flags.FLAGS.batch_size
    configuration.validate(c)
    parts = build.run(c)
    params = trees.drawn_zeros(parts.fresh_state().params, jax.random.key(1))
    generator = drawing.generator(c, parts.apply, parts.path, parts.mesh)
    seeds, given = np.arange(IMAGES), {"label": np.arange(IMAGES, dtype=np.int32)}

    def draw() -> None:
        assert np.isfinite(generator(params, seeds, given)).all()

    return draw, generator.batch_size, trees.count(params)


def their_sampler() -> tuple[Callable[[], object], int]:
    """The same of diffusers."""
    measuring.require("torch", "diffusers", extra="torch")
    import diffusers
    import torch

    class NoDecoder(torch.nn.Module):
        device = torch.device("cpu")
        config = diffusers.configuration_utils.FrozenDict(scaling_factor=1.0)

        def decode(self, latents):
            return diffusers.models.autoencoders.vae.DecoderOutput(sample=latents)

    torch.manual_seed(0)
    transformer = diffusers.DiTTransformer2DModel(
        num_attention_heads=HEADS,
        attention_head_dim=WIDTH // HEADS,
        in_channels=4,
        out_channels=4,
        num_layers=flags.FLAGS.depth,
        sample_size=32,
        patch_size=2,
        num_embeds_ada_norm=CLASSES,
    ).eval()
    pipeline = diffusers.DiTPipeline(transformer, NoDecoder(), diffusers.DDIMScheduler())
    pipeline.set_progress_bar_config(disable=True)

    def draw() -> None:
        pipeline(
            list(range(IMAGES)),
            guidance_scale=GUIDANCE,
            num_inference_steps=flags.FLAGS.steps,
            output_type="pt",
        )

    return draw, sum(w.numel() for w in transformer.parameters())


class Clocked:
    """A function that counts the processor seconds of its calls."""

    def __init__(self, call: Callable[[], object]):
        self._call = call
        self.seconds: list[float] = []

    def __call__(self) -> None:
        before = time.process_time()
        self._call()
        self.seconds.append(time.process_time() - before)


@contextlib.contextmanager
def loads() -> Iterator[list[float]]:
    """The machine's load average, of one minute, before and after."""
    found = [os.getloadavg()[0]]
    yield found
    found.append(os.getloadavg()[0])


def run() -> int:
    os.environ["JAX_PLATFORMS"] = "cpu"
    f = flags.FLAGS
    theirs, their_parameters = their_sampler()
    import torch

    ours, batch_size, our_parameters = our_sampler(alpha_bound=False, beta=False)
    gated, _, gated_parameters = our_sampler()
    print(
        f"parameters: ours {our_parameters:,}, with the default gates {gated_parameters:,}, theirs "
        f"{their_parameters:,}; {torch.get_num_threads()} threads",
        flush=True,
    )
    for draw in (theirs, ours, gated):
        draw()
    one, other = Clocked(ours), Clocked(theirs)
    with loads() as load:
        seconds = measuring.paired_seconds(one, other, f.pairs, untimed=False)
    print("the default gates, and DiT's:")
    gates = measuring.paired_seconds(gated, ours, 3, untimed=False)
    ratios = [theirs / ours for ours, theirs in seconds]
    our_seconds, their_seconds = (statistics.median(s) for s in zip(*seconds, strict=True))
    ratio = statistics.median(ratios)
    measuring.print_result({
        "ratio": round(ratio, 3),
        "ratio_spread": [round(min(ratios), 3), round(max(ratios), 3)],
        "cpu_ratio": round(
            statistics.median(b / a for a, b in zip(one.seconds, other.seconds, strict=True)), 3
        ),
        "gated_over_dit": round(statistics.median(a / b for a, b in gates), 3),
        "ours_images_per_second": round(IMAGES / our_seconds, 3),
        "diffusers_images_per_second": round(IMAGES / their_seconds, 3),
        "pairs": f.pairs,
        "steps": f.steps,
        "depth": f.depth,
        "our_batch_size": batch_size,
        "threads": torch.get_num_threads(),
        "load": [round(x, 1) for x in load],
        "huge_pages": "hugetlb=1" in os.environ.get("GLIBC_TUNABLES", ""),
    })  # fmt: skip
    return 0 if ratio >= f.at_least else 1


def main() -> None:
    define_flags()
    lifecycle.launch(run, __doc__)


if __name__ == "__main__":
    main()
