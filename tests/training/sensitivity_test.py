"""Residual sensitivity: the step's profile, the figures made of it, the alarm and the penalty."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from nrdm_jax import build
from nrdm_jax.training import charts, sensitivity


@pytest.mark.parametrize(
    ("streams", "memory", "micro_batches", "mesh"),
    [(1, "remat", 2, (2, 4)), (2, "reversible", 2, (8, 1)), (1, "sqrt", 1, (1, 8))],
    ids=["remat-accumulated-both", "reversible-accumulated-data", "sqrt-fsdp"],
)
def test_profile_of_a_step_is_plain_autodiff_s(
    tiny_config, fill_zeros, explicit_inputs, streams, memory, micro_batches, mesh
):
    """RMS over examples of |dL_b/dz_i|, L_b the loss of example b, whatever the memory mode,
    accumulation and sharding."""
    c = tiny_config
    c.model.depth, c.model.width, c.model.streams, c.model.memory = 3, 16, streams, memory
    c.train.micro_batches, (c.mesh.data, c.mesh.fsdp) = micro_batches, mesh
    parts = build.run(c)
    state = parts.fresh_state()
    params = fill_zeros(jax.device_get(state.params), jax.random.key(7))
    placed = jax.tree.map(lambda x, leaf: jax.device_put(x, leaf.sharding), params, state.params)
    rng = np.random.default_rng(0)
    batch = {
        "x": jnp.asarray(rng.integers(0, 256, (16, 8, 8, 3)), jnp.uint8),
        "label": jnp.asarray(rng.integers(0, 4, 16), jnp.int32),
    }
    _, metrics = jax.jit(parts.train_step)(state.replace(params=placed), batch)

    c.model.memory = "none"
    _, apply = build.model(c)
    objective = build.objective(c, apply, parts.path)
    key = jax.random.fold_in(jax.random.wrap_key_data(state.key), 0)
    keys = jax.vmap(jax.random.fold_in, in_axes=(None, 0))(key, jnp.arange(16))
    units = 2 * c.model.depth

    @jax.jit
    @jax.grad
    def gradient(zeros):
        with explicit_inputs(zeros):
            loss_B, _ = objective(params, batch, keys, jnp.zeros(units + 1))
        return jnp.sum(loss_B)

    explicit = gradient([jnp.zeros((streams, 16, 4, 16)) for _ in range(units + 1)])
    squares = jnp.stack([jnp.sum(g**2, axis=(0, 2, 3)) for g in explicit])  # (units + 1, B)
    np.testing.assert_allclose(metrics["profile"], jnp.sqrt(jnp.mean(squares, axis=1)), rtol=1e-5)
    assert np.all(np.asarray(metrics["profile"]) > 0)
    assert metrics["health"].shape == (units + 1, 2)


def test_slope_counts_decades_over_the_depth():
    assert sensitivity.slope(np.geomspace(1e-3, 1.0, 40)) == pytest.approx(3.0)
    assert sensitivity.slope(np.full(7, 0.2)) == pytest.approx(0.0)
    assert np.isnan(sensitivity.slope(np.zeros(7)))


def test_unevenness_is_the_mean_squared_log_ratio():
    squares = jnp.asarray([np.e**4, np.e**-2, 1.0])
    assert float(sensitivity.unevenness(squares)) == pytest.approx((16 + 4) / 2, rel=1e-5)
    assert float(sensitivity.unevenness(7 * squares)) == pytest.approx(10, rel=1e-5)
    # no sensitivity at all, as at the start: nothing to pull at, and no gradient that is not finite
    value, gradient = jax.value_and_grad(sensitivity.unevenness)(jnp.zeros(3))
    assert value == 0 and bool(jnp.all(jnp.isfinite(gradient)))


def test_share_and_rms_are_those_of_health():
    health = np.asarray([[0.16, 0.09], [4.0, 0.0]])
    np.testing.assert_allclose(sensitivity.trunk_rms(health), [0.5, 2.0])
    share = sensitivity.token_mean_share(health)
    assert share[0] == pytest.approx(4 / 3) and share[1] > 1e5


def even(units=5, share=1.0, decades=0.0):
    health = np.ones((units, 2)) * [share**2, 1.0]
    return np.geomspace(10.0**-decades, 1.0, units), health


def test_alarm_tells_a_jump_from_drift_and_noise():
    alarm = sensitivity.Alarm()
    # It knows nothing of what is usual yet.
    assert not alarm.check(*even(share=5.0)) and not alarm.check(*even(share=0.5))
    alarm = sensitivity.Alarm()
    for i in range(40):
        assert not alarm.check(*even(share=1.05**i, decades=0.05 * i))
    usual = 1.05**35
    (text,) = alarm.check(*even(share=usual * 2.5, decades=0.05 * 40))
    assert "token-mean share" in text and "unit 0" in text
    (text,) = alarm.check(*even(share=usual, decades=4.0))
    assert "slope of the sensitivity" in text


def test_alarm_forgets_what_a_jump_left_behind():
    alarm = sensitivity.Alarm(records=3)
    told = [bool(alarm.check(*even(share=s))) for s in [1, 1, 1, 9, 9, 9, 9]]
    assert told == [False, False, False, True, True, False, False]


def test_chart_shows_depth_against_steps(tmp_path):
    rows = []
    for step in (10, 20, 30):
        profile, health = even(units=6, share=1.0 + step, decades=1.0)
        rows.append({
            "step": step, "profile": profile.tolist(), "health": health.tolist(),
            "token_mean_share": sensitivity.token_mean_share(health).tolist(),
            "trunk_rms": sensitivity.trunk_rms(health).tolist(),
        })  # fmt: skip
    rows.insert(1, {"step": 15, "loss": 1.0})
    charts.sensitivity_chart(tmp_path / "chart.png", rows)
    picture = np.asarray(Image.open(tmp_path / "chart.png").convert("RGB"))
    assert picture.shape[0] > 200 and picture.shape[1] > picture.shape[0]
    # Another profile is another picture.
    rows[0]["profile"] = rows[0]["profile"][::-1]
    charts.sensitivity_chart(tmp_path / "other.png", rows)
    assert (picture != np.asarray(Image.open(tmp_path / "other.png").convert("RGB"))).any()


def penalised(config, factor, fill_zeros, steps):
    """(penalty at the start, after `steps` steps, state, metrics of the first)."""
    config.optim.sensitivity_penalty = factor
    config.optim.sensitivity_examples = 8
    parts = build.run(config)
    state = parts.fresh_state()
    filled = fill_zeros(jax.device_get(state.params), jax.random.key(7))
    place = lambda x, leaf: jax.device_put(np.array(x), leaf.sharding, may_alias=False)  # noqa: E731
    state = state.replace(params=jax.tree.map(place, filled, state.params))
    step = jax.jit(parts.train_step)
    rng = np.random.default_rng(0)
    batch = {
        "x": jnp.asarray(rng.integers(0, 256, (16, 8, 8, 3)), jnp.uint8),
        "label": jnp.asarray(rng.integers(0, 4, 16), jnp.int32),
    }
    values, first = [], None
    for _ in range(steps):
        state, metrics = step(state, batch)
        first = first or metrics
        values.append(sensitivity.unevenness(metrics["profile"] ** 2))
    return float(values[0]), float(values[-1]), first


def test_cost_of_the_penalty_is_that_of_its_examples(tiny_config):
    tiny_config.optim.sensitivity_penalty = 0.1
    costs = []
    for examples in (4, 8, 16):
        tiny_config.optim.sensitivity_examples = examples
        costs.append(build.penalty_cost(build.run(tiny_config)))
    # A step is 3 forward passes' worth. The penalty's gradient: a forward pass and one back to the
    # taps (not to the parameters), and twice that to differentiate both: 6.
    assert 2.5 < costs[2] <= 3.0
    np.testing.assert_allclose([(c - 1) / (costs[2] - 1) for c in costs], [1 / 4, 1 / 2, 1],
                               rtol=0.05)  # fmt: skip


def test_penalty_evens_the_profile_out(tiny_config, fill_zeros):
    tiny_config.model.depth, tiny_config.model.width = 4, 16
    tiny_config.model.alpha_start = "one"
    tiny_config.optim.learning_rate = 3e-3
    before, without, _ = penalised(tiny_config, 0.0, fill_zeros, 30)
    same, with_it, first = penalised(tiny_config, 0.3, fill_zeros, 30)
    assert same == pytest.approx(before)
    assert with_it < 0.5 * without
    # measured on the first eight examples, so it is about what the profile of all says
    assert 0.2 * same < float(first["penalty"]) < 5 * same
