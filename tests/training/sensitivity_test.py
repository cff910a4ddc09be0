"""Residual sensitivity: the step's profile, the figures made of it, the alarm and the penalty."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from nrdm_jax import build, networks, programs
from nrdm_jax.training import charts, sensitivity
from nrdm_jax.training.hooks import SensitivityLog
from nrdm_jax.training.metrics import Ledger, MetricsWriter


@pytest.mark.parametrize(
    ("streams", "memory", "micro_batches", "mesh"),
    [
        pytest.param(1, "remat", 2, (2, 4), marks=pytest.mark.slow),
        (2, "reversible", 2, (8, 1)),
        pytest.param(1, "sqrt", 1, (1, 8), marks=pytest.mark.slow),
    ],
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
    _, apply = networks.model(c)
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


def even(units=5, share=1.0, decades=0.0, rms=1.0):
    """Profile, shares and RMS of a stack whose units are all alike."""
    profile = np.geomspace(10.0**-decades, 1.0, units)
    return profile, np.full(units, share), np.full(units, rms)


def test_alarm_tells_a_jump_from_drift_and_noise():
    alarm = sensitivity.Alarm()
    # It knows nothing of what is usual yet.
    assert not alarm.check(*even(share=5.0)) and not alarm.check(*even(share=0.5))
    alarm = sensitivity.Alarm()
    for i in range(40):
        assert not alarm.check(*even(share=1.05**i, decades=0.05 * i, rms=1.2**i))
    usual = dict(share=1.05**35, decades=0.05 * 40, rms=1.2**35)
    (text,) = alarm.check(*even(**usual | {"share": 2.5 * 1.05**35}))
    assert "token-mean share" in text and "unit 0" in text
    (text,) = alarm.check(*even(**usual | {"decades": 4.0}))
    assert "slope of the sensitivity" in text
    (text,) = alarm.check(*even(**usual | {"rms": 5 * 1.2**35}))
    assert "RMS of the trunk" in text


def test_alarm_looks_at_every_unit():
    share = np.asarray([9.0, 0.2, 0.2, 0.2, 0.2])
    alarm = sensitivity.Alarm()
    for _ in range(4):
        assert not alarm.check(*even()[:1], share, *even()[2:])
    # far below that of unit 0, and still the tokens have become alike there
    (text,) = alarm.check(*even()[:1], np.where(np.arange(5) == 3, 4.0, share), *even()[2:])
    assert "at unit 3, its median 0.2" in text
    # tokens that are all different are no danger, however their share has grown
    assert not alarm.check(*even()[:1], np.where(np.arange(5) == 3, 0.7, share), *even()[2:])


def test_alarm_tells_once_that_the_sensitivity_vanishes():
    profile, share, rms = even()
    gone = np.where(np.arange(5) < 3, 0.0, profile)
    alarm = sensitivity.Alarm()
    assert not alarm.check(np.zeros(5), share, rms)  # a head of zeros, as at the start
    assert not alarm.check(profile, share, rms)
    (text,) = alarm.check(gone, share, rms)
    assert "vanishes: it is 0 up to unit 2 of 4" in text
    assert not alarm.check(gone, share, rms)
    assert not alarm.check(profile, share, rms)
    assert alarm.check(gone, share, rms)


@pytest.mark.parametrize("which", range(3))
def test_alarm_is_not_blinded_by_what_is_not_finite(which):
    alarm = sensitivity.Alarm()
    for _ in range(4):
        alarm.check(*even())
    broken = list(even())
    broken[which] = broken[which] * np.nan
    assert alarm.check(*broken) == ["sensitivity or trunk is not finite"]
    assert alarm.check(*even(share=100.0))


def test_alarm_forgets_what_a_jump_left_behind():
    alarm = sensitivity.Alarm(records=3)
    told = [bool(alarm.check(*even(share=s))) for s in [1, 1, 1, 9, 9, 9, 9]]
    assert told == [False, False, False, True, True, False, False]


class Lines:
    def __init__(self):
        self.said = []

    def line(self, text):
        self.said.append(text)


def log_of(workdir, first_step, lines):
    ledger = Ledger()
    writer = MetricsWriter(workdir, first_step, ledger=ledger, images=int, before={})
    return SensitivityLog(workdir, writer, lines, ledger, every=5, last_step=1000)


def metrics_of(share):
    health = jnp.ones((4, 2)) * jnp.asarray([share**2, 1.0])[None]
    return {"profile": jnp.geomspace(0.1, 1.0, 4), "health": health}


def test_log_writes_warns_and_goes_on_after_a_kill(tmp_path):
    lines = Lines()
    log = log_of(tmp_path, 0, lines)
    for step in range(1, 21):
        log(step, None, metrics_of(1.0), 0.0)
    # Killed here; another process goes on from step 20, and knows what was usual before.
    log = log_of(tmp_path, 20, lines)
    assert lines.said == []
    log(25, None, metrics_of(5.0), 0.0)
    (said,) = lines.said
    assert said.startswith("step=25 WARNING: token-mean share 5 at unit 0")
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [5, 10, 15, 20, 25]
    assert [row["sensitivity_alarms"] for row in rows] == [0, 0, 0, 0, 1]
    assert "alarms" not in rows[0] and "token-mean share 5" in rows[-1]["alarms"][0]
    np.testing.assert_allclose(rows[-1]["token_mean_share"], np.full(4, 5.0), rtol=1e-4)
    np.testing.assert_allclose(rows[-1]["trunk_rms"], np.full(4, 26**0.5), rtol=1e-4)
    # Fewer records than make a chart: it is drawn when the run ends.
    assert not (tmp_path / "sensitivity.png").exists()
    log.close()
    assert (tmp_path / "sensitivity.png").exists()


def test_a_long_run_keeps_so_many_records_and_its_alarm(tmp_path, monkeypatch):
    monkeypatch.setattr(SensitivityLog, "MOST_RECORDS", 16)
    charted = []
    monkeypatch.setattr(charts, "sensitivity_chart", lambda _, steps, __: charted.append([*steps]))
    lines = Lines()
    log = log_of(tmp_path, 0, lines)
    for step in range(5, 505, 5):
        log(step, None, metrics_of(1.0), 0.0)
    log.close()
    assert len(charted) > 1 and max(map(len, charted)) <= 16
    assert len(set(np.diff(charted[-1]))) == 1  # evenly
    assert charted[-1][0] == 5 and charted[-1][-1] > 450
    # Who goes on keeps the same ones, and knows what was usual.
    again = log_of(tmp_path, 500, lines)
    assert again._steps == log._steps
    again(505, None, metrics_of(5.0), 0.0)
    assert len(lines.said) == 1


def test_chart_shows_depth_against_steps(tmp_path):
    def drawn(name, profiles):
        shares = [np.full(6, 1.0 + step) for step in (10, 20, 30)]
        charts.sensitivity_chart(
            tmp_path / name, [10, 20, 30],
            {"profile": profiles, "token_mean_share": shares, "trunk_rms": shares},
        )  # fmt: skip
        return np.asarray(Image.open(tmp_path / name).convert("RGB"))

    profile = np.geomspace(0.1, 1.0, 6)
    picture = drawn("chart.png", [profile] * 3)
    assert picture.shape[0] > 200 and picture.shape[1] > picture.shape[0]
    # Another profile is another picture.
    assert (picture != drawn("other.png", [profile[::-1], profile, profile])).any()


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
        costs.append(programs.penalty_cost(build.run(tiny_config)))
    # A step is 3 forward passes' worth. The penalty's gradient: a forward pass and one back to the
    # taps (not to the parameters), and twice that to differentiate both: 6.
    assert 2.5 < costs[2] <= 3.0
    np.testing.assert_allclose([(c - 1) / (costs[2] - 1) for c in costs], [1 / 4, 1 / 2, 1],
                               rtol=0.05)  # fmt: skip


@pytest.mark.slow
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
