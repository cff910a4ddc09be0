"""What dividing the tokens saves, and that it changes nothing.

  python -m benchmarks.context_parallel

`temporaries_ratio`: the compiler's temporary bytes a device of the train step of a video DiT of
65,536 tokens (64 x 64 x 64 latents in patches of 1 x 2 x 2, 4 blocks of width 128, joint attention,
remat), context=8 with ring attention over context=1, both by the same online softmax; and the same
of Ulysses, `ulysses_ratio`. Compiled, not run. `loss_difference`: the largest relative difference
of 10 losses of both kernels with context=8 from one device, 512 tokens, float32, zero-initialised
leaves drawn first. Exits 1 if temporaries_ratio is above 0.2 or loss_difference above 1e-5.
"""

from benchmarks import measuring, mesh_equivalence
from nrdm_jax import config as configuration
from nrdm_jax.processes import lifecycle

DEVICES = 8


def config(shape: tuple[int, ...], context: int, kernel: str):
    c = configuration.default()
    c.data.name, c.data.shape, c.data.num_classes = "synthetic", shape, 4
    c.model.patch, c.model.positions = (1, 2, 2), "rotary"
    c.model.depth, c.model.width, c.model.heads, c.model.memory = 4, 128, 8, "remat"
    c.train.batch_size = c.evaluate.batch_size = c.sample.batch_size = 1
    c.optim.learning_rate = 1e-3
    c.mesh.data, c.mesh.context, c.model.attention_kernel = 1, context, kernel
    configuration.validate(c)
    return c


def temporaries(context: int, kernel: str) -> int:
    import jax

    from nrdm_jax import build, programs

    c = config((64, 64, 64, 4), context, kernel)
    parts = build.run(c, jax.devices()[:context])
    return programs.compiled_step(parts, "float32").memory_analysis().temp_size_in_bytes


def run() -> int:
    mesh_equivalence.simulate(DEVICES)
    import jax

    whole = temporaries(1, "blockwise")
    sizes = {kernel: temporaries(DEVICES, kernel) for kernel in ("ring", "ulysses")}
    small = (8, 16, 16, 4)
    reference = mesh_equivalence.losses(config(small, 1, "blockwise"), jax.devices()[:1], 10)
    differences = [
        mesh_equivalence.difference(
            mesh_equivalence.losses(config(small, DEVICES, kernel), jax.devices(), 10), reference
        )
        for kernel in sizes
    ]
    result = {
        "temporaries_ratio": round(sizes["ring"] / whole, 4),
        "ulysses_ratio": round(sizes["ulysses"] / whole, 4),
        "temporaries_gib": round(whole / 2**30, 3),
        "loss_difference": float(f"{max(differences):.2e}"),
    }
    measuring.print_result(result)
    return 0 if result["temporaries_ratio"] <= 0.2 and result["loss_difference"] <= 1e-5 else 1


def main() -> None:
    lifecycle.launch(run, __doc__)


if __name__ == "__main__":
    main()
