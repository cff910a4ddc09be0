"""Optimizers see what they should of a gated stack."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from nrdm_jax import build, programs, trees
from nrdm_jax.config import CHOICES, validate
from nrdm_jax.training import optimizer


def made(name="adamw", **settings):
    defaults = {"b1": 0.9, "b2": 0.99, "eps": 1e-8, "weight_decay": 0.0, "clip_norm": 0.0,
                "slow_beta": False}  # fmt: skip
    rate = optax.constant_schedule(0.5)
    return optimizer.make_optimizer(name, rate, **(defaults | settings)).transform


def first_update(transform, params, grads):
    update = jax.jit(lambda params, grads: transform.update(grads, transform.init(params), params))
    return update(params, grads)


def stack_params():
    key = jax.random.key(0)
    kernels = {
        "attention": {"branch": {"query_kernel": jax.random.normal(key, (3, 128, 2, 64)),
                                 "out_kernel": jax.random.normal(key, (3, 2, 64, 128)),
                                 "query_bias": jnp.ones((3, 2, 64))},
                      "alpha": {"kernel": jnp.ones((3, 128, 128)), "bias": jnp.ones((3, 128))}},
        "mlp": {"branch": {"hidden": {"kernel": jax.random.normal(key, (3, 128, 256))}}},
        "convolution": {"branch": {"out": {"kernel": jax.random.normal(key, (3, 3, 3, 8, 16))}}},
    }  # fmt: skip
    return {"stack": {"blocks": kernels}, "final": {"kernel": jnp.ones((128, 12))}}


def test_adamw_is_optax_s():
    params, grads = stack_params(), jax.tree.map(jnp.sin, stack_params())
    found, _ = first_update(made(weight_decay=0.1), params, grads)
    expected, _ = first_update(
        optax.adamw(0.5, 0.9, 0.99, weight_decay=0.1, mask=optimizer.decay_mask), params, grads
    )
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), found, expected)


def test_muon_orthogonalises_every_kernel_of_every_block_by_itself():
    params = stack_params()
    grads = jax.tree.map(lambda p: p + 0.1, params)
    updates, state = first_update(made("muon"), params, grads)
    matrices = {
        "attention/branch/query_kernel": (128, 128),
        "attention/branch/out_kernel": (128, 128),
        "mlp/branch/hidden/kernel": (128, 256),
        "convolution/branch/out/kernel": (72, 16),
    }
    found = dict(trees.leaves_with_path(updates))
    for path, (inputs, outputs) in matrices.items():
        for block in np.asarray(found[f"stack/blocks/{path}"]).reshape(3, inputs, outputs):
            # Orthogonal up to what five steps of Newton and Schulz leave, times 0.2 sqrt(max).
            singular = np.linalg.svd(block, compute_uv=False) / (
                0.5 * 0.2 * max(inputs, outputs) ** 0.5
            )
            assert singular.max() < 1.3 and np.median(singular) > 0.6, path
    # Not silently Adam's: only gates, biases, embeddings and the head have two moments.
    adam = {path.split("/nu/")[1] for path, _ in trees.leaves_with_path(state) if "/nu/" in path}
    assert adam == {
        "stack/blocks/attention/branch/query_bias", "stack/blocks/attention/alpha/kernel",
        "stack/blocks/attention/alpha/bias", "final/kernel",
    }  # fmt: skip


@pytest.mark.parametrize("stack", ["dit", "unet"])
def test_matrices_of_all_kernels_are_known_by_their_logical_axes(tiny_config, stack):
    if stack == "unet":
        tiny_config.model.name, tiny_config.model.channel_factors = "unet", (1, 2)
        tiny_config.model.attention_at, tiny_config.model.patch = (4,), (1,)
        tiny_config.model.skip = "project"
    params = build.run(tiny_config).abstract_state.params
    found = {}
    for path, leaf in trees.leaves_with_path(params):
        matrix = optimizer.matrix_of(path, leaf)
        if matrix:
            found[path.split("/blocks/")[1]] = (leaf.ndim, *matrix)
    assert found["attention/branch/query_kernel"] == (4, (1,), (2, 3))
    assert found["attention/branch/out_kernel"] == (4, (1, 2), (3,))
    if stack == "dit":
        assert found["mlp/branch/hidden/kernel"] == (3, (1,), (2,))
    else:
        assert found["convolution/branch/hidden/kernel"] == (5, (1, 2, 3), (4,))
        assert found["convolution/branch/out/kernel"] == (5, (1, 2, 3), (4,))
        assert found["project/kernel"] == (3, (1,), (2,))
    assert not any("alpha" in path or "norm" in path for path in found)


def test_adafactor_factors_kernels_and_not_the_depth():
    params = stack_params()
    grads = jax.tree.map(jnp.sin, params)
    updates, state = first_update(made("adafactor"), params, grads)
    sizes = {path: leaf.shape for path, leaf in trees.leaves_with_path(state)}
    rows = [s for path, s in sizes.items() if "query_kernel" in path and path.endswith("/v_row")]
    assert rows == [(3, 128)]
    for block in range(3):
        alone = jax.tree.map(lambda x, b=block: x[b : b + 1], params["stack"])
        found, _ = first_update(
            made("adafactor"), {"stack": alone}, {"stack": jax.tree.map(jnp.sin, alone)}
        )
        jax.tree.map(
            lambda a, b, i=block: np.testing.assert_allclose(a[0], b[i], rtol=1e-5),
            found["stack"], updates["stack"],
        )  # fmt: skip


def test_lion_moves_by_signs():
    params = stack_params()
    updates, _ = first_update(made("lion"), params, jax.tree.map(jnp.sin, params))
    jax.tree.map(
        lambda u, p: np.testing.assert_allclose(u, -0.5 * np.sign(np.sin(p))), updates, params
    )


def test_rates_by_pattern_and_of_gates():
    params = stack_params()
    grads = jax.tree.map(jnp.ones_like, params)
    plain, _ = first_update(made(), params, grads)
    scaled, _ = first_update(
        made(gate_rate=0.5, rates=(("attention/.*kernel", 3.0), ("attention", 7.0))), params, grads
    )
    ratios = {
        path: float(np.ravel(a / b)[0])
        for (path, a), b in zip(trees.leaves_with_path(scaled), jax.tree.leaves(plain), strict=True)
    }
    assert ratios["stack/blocks/attention/branch/query_kernel"] == pytest.approx(3.0)
    assert ratios["stack/blocks/attention/branch/query_bias"] == pytest.approx(7.0)
    assert ratios["stack/blocks/attention/alpha/kernel"] == pytest.approx(1.5)
    assert ratios["stack/blocks/mlp/branch/hidden/kernel"] == pytest.approx(1.0)


def test_patterns_spare_from_decay():
    params = stack_params()
    zeros = jax.tree.map(jnp.zeros_like, params)
    updates, _ = first_update(made(weight_decay=0.1, no_decay=("mlp/",)), params, zeros)
    moved = {path for path, u in trees.leaves_with_path(updates) if np.any(u)}
    assert moved == {
        "stack/blocks/attention/branch/query_kernel", "stack/blocks/attention/branch/out_kernel",
        "stack/blocks/convolution/branch/out/kernel", "final/kernel",
    }  # fmt: skip


def test_schedule_free_evaluates_the_mean_of_its_weights():
    """On a quadratic the mean x comes nearer than the weights y that the gradient is taken at."""
    chosen = optimizer.make_optimizer(
        "schedule_free", optax.constant_schedule(0.1), b1=0.9, b2=0.99, eps=1e-8,
        weight_decay=0.0, clip_norm=0.0, slow_beta=False,
    )  # fmt: skip
    params = {"x": jnp.asarray([1.0, -2.0])}
    state, z, mean = chosen.transform.init(params), params["x"], params["x"]
    for step in range(50):
        updates, state = chosen.transform.update(params, state, params)
        params = optax.apply_updates(params, updates)
        z = state[1].z["x"]
        mean = mean + (z - mean) / (step + 1)
        found = chosen.averaged(state, params)["x"]
        np.testing.assert_allclose(found, mean, rtol=1e-3, atol=1e-3)
        np.testing.assert_allclose(params["x"], 0.1 * z + 0.9 * mean, rtol=1e-3, atol=1e-3)
    assert np.abs(found).max() < 0.2


@pytest.mark.parametrize(
    "name",
    # Those whose state has the shapes of the parameters differ in little: slow.
    [n if n in ("adafactor", "muon") else pytest.param(n, marks=pytest.mark.slow)
     for n in CHOICES["optim.name"]],
)  # fmt: skip
def test_state_of_every_optimizer_is_divided_and_trains(tiny_config, name):
    c = tiny_config
    c.optim.name = name
    c.mesh.data, c.mesh.fsdp = 2, 4
    c.mesh.zero1 = True
    validate(c)
    parts = build.run(c)
    step = programs.compiled_step(parts, np.dtype("float32"))
    state = parts.fresh_state()
    rng = np.random.default_rng(0)
    batch = {
        "x": rng.standard_normal((16, 8, 8, 3), np.float32),
        "label": np.zeros(16, np.int32),
    }
    batch = {k: jax.device_put(v, build.batch_sharding(parts.mesh)) for k, v in batch.items()}
    losses = []
    for _ in range(8):
        state, metrics = step(state, batch)
        losses.append(float(metrics["loss"]))
    assert np.isfinite(losses).all() and losses[-1] < losses[0]
    kernel = state.ema["stack"]["blocks"]["mlp"]["branch"]["hidden"]["kernel"]
    assert kernel.addressable_shards[0].data.shape == (2, 32 // 8, 128)  # fsdp and data
