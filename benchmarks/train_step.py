"""Our train step against torch's, on this machine: images a second, in alternated pairs.

  bash launch/local.sh --setup-only --extras=torch
  python -m benchmarks.train_step

Ours is the step of `build.run`, whole: state, rule table, donation, ahead-of-time compile. The peer
is diffusers' DiTTransformer2DModel of the same width, depth, heads and tokens with fused AdamW and
a multi-tensor EMA. Both do forward, backward, AdamW and EMA in float32 on the same batch, without
clipping; DiT-S/2, 32 x 32 x 4 latents, 256 tokens. Each pair is a turn of ours and one of torch's,
in alternating order; a turn is a step that is not timed and one that is, as in a run, where a step
follows its like: the threads and buffers that the other left are not charged to it. The ratio is
the median over pairs. Exits 1 below --at_least.
"""

import statistics

from absl import flags

from benchmarks import measuring
from nrdm_jax import config as configuration
from nrdm_jax.processes import lifecycle

SIZE = {"depth": 12, "width": 384, "heads": 6}


def define_flags() -> None:
    flags.DEFINE_integer("pairs", 9, "alternated pairs", lower_bound=7)
    flags.DEFINE_integer("batch_size", 16, "images a step", lower_bound=1)
    flags.DEFINE_integer("micro_batches", 4, "of ours", lower_bound=1)
    flags.DEFINE_string("memory", "none", "our memory mode")
    flags.DEFINE_float("at_least", 0.6, "ratio required")


def our_step(batch_size: int, micro_batches: int, memory: str):
    """A function that does one step and waits for it, and the number of parameters."""
    import jax
    import numpy as np

    from nrdm_jax import build, programs, trees

    c = configuration.default()
    c.data.shape, c.data.num_classes = (32, 32, 4), 1000
    c.model.depth, c.model.width, c.model.heads = SIZE["depth"], SIZE["width"], SIZE["heads"]
    c.model.patch, c.model.beta, c.model.memory = (2,), False, memory
    c.train.batch_size, c.train.micro_batches = batch_size, micro_batches
    c.optim.clip_norm, c.optim.weight_decay = 0.0, 0.01
    configuration.validate(c)
    parts = build.run(c)
    state = parts.fresh_state()
    step = programs.compiled_step(parts, np.dtype("float32"))
    batch = measuring.placed_batch(parts)
    parameters = trees.count(state.params)

    def run() -> None:
        nonlocal state
        state, _ = step(state, batch)
        jax.block_until_ready(state)

    return run, parameters


def torch_step(batch_size: int):
    """The same of torch."""
    measuring.require("torch", "diffusers", extra="torch")
    import torch
    from diffusers import DiTTransformer2DModel

    torch.manual_seed(0)
    model = DiTTransformer2DModel(
        num_attention_heads=SIZE["heads"],
        attention_head_dim=SIZE["width"] // SIZE["heads"],
        in_channels=4,
        out_channels=4,
        num_layers=SIZE["depth"],
        sample_size=32,
        patch_size=2,
        num_embeds_ada_norm=1000,
    ).train()
    weights = list(model.parameters())
    average = [w.detach().clone() for w in weights]
    optimizer = torch.optim.AdamW(weights, lr=1e-4, weight_decay=0.01, fused=True)
    x0 = torch.randn(batch_size, 4, 32, 32)
    label = torch.randint(0, 1000, (batch_size,))

    def run() -> None:
        t = torch.rand(batch_size)
        noise = torch.randn_like(x0)
        x_t = (1 - t)[:, None, None, None] * x0 + t[:, None, None, None] * noise
        out = model(x_t, timestep=(1000 * t).long(), class_labels=label).sample
        loss = torch.nn.functional.mse_loss(out, noise - x0)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        with torch.no_grad():
            torch._foreach_lerp_(average, weights, 1e-3)

    return run, sum(w.numel() for w in weights)


def run() -> int:
    f = flags.FLAGS
    theirs, their_parameters = torch_step(f.batch_size)
    ours, our_parameters = our_step(f.batch_size, f.micro_batches, f.memory)
    print(f"parameters: ours {our_parameters:,}, torch {their_parameters:,}", flush=True)
    seconds = measuring.paired_seconds(ours, theirs, f.pairs)
    ratios = [theirs / ours for ours, theirs in seconds]
    ours_seconds, their_seconds = (statistics.median(s) for s in zip(*seconds, strict=True))
    result = {
        "ratio": round(statistics.median(ratios), 3),
        "ratio_spread": [round(min(ratios), 3), round(max(ratios), 3)],
        "ours_images_per_second": round(f.batch_size / ours_seconds, 2),
        "torch_images_per_second": round(f.batch_size / their_seconds, 2),
        "pairs": f.pairs,
    }
    measuring.print_result(result)
    return 0 if result["ratio"] >= f.at_least else 1


def main() -> None:
    define_flags()
    lifecycle.launch(run, __doc__)


if __name__ == "__main__":
    main()
