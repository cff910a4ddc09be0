import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from nrdm_jax import build, trees
from nrdm_jax.training import ema, flops, hooks, metrics, optimizer, power_ema
from nrdm_jax.training.goodput import Goodput
from nrdm_jax.training.state import TrainState, save_items, state_of
from nrdm_jax.training.step import make_train_step


def linear_objective(params, batch, keys, taps):
    """Loss |w x - y|^2 per example, without randomness."""
    error = batch["x"] @ params["w"] - batch["y"]
    return error**2, {"seen": jnp.ones(())}


def linear_state(optimizer_, w=(0.5, -1.0)):
    params = {"w": jnp.asarray(w)}
    key = jax.random.key_data(jax.random.key(0))
    average = jax.tree.map(jnp.copy, params)
    averages = power_ema.start(params, (0.1,))
    return TrainState(
        jnp.int32(0), key, params, average, optimizer_.init(params), averages=averages
    )


BATCH = {
    "x": jax.random.normal(jax.random.key(1), (8, 2)),
    "y": jax.random.normal(jax.random.key(2), (8,)),
}


def step_of(optimizer_, micro_batches=1, halflife=1e9):
    return make_train_step(
        linear_objective, optimizer_, micro_batches=micro_batches,
        ema_halflife_images=halflife,
    )  # fmt: skip


def test_a_step_of_sgd_is_its_closed_form():
    sgd = optax.sgd(0.1)
    state, metrics = step_of(sgd)(linear_state(sgd), BATCH)
    w = np.asarray([0.5, -1.0])
    error = np.asarray(BATCH["x"]) @ w - np.asarray(BATCH["y"])
    gradient = 2 * np.asarray(BATCH["x"]).T @ error / 8
    np.testing.assert_allclose(state.params["w"], w - 0.1 * gradient, rtol=1e-5)
    np.testing.assert_allclose(metrics["loss"], np.mean(error**2), rtol=1e-5)
    np.testing.assert_allclose(metrics["grad_norm"], np.linalg.norm(gradient), rtol=1e-5)


@pytest.mark.parametrize("micro_batches", [2, 8])
def test_micro_batches_add_up_to_the_batch(micro_batches):
    adam = optax.adam(0.1)
    whole, metrics = step_of(adam)(linear_state(adam), BATCH)
    parts, metrics_of_parts = step_of(adam, micro_batches)(linear_state(adam), BATCH)
    for a, b in zip(jax.tree.leaves((whole.params, metrics)),
                    jax.tree.leaves((parts.params, metrics_of_parts)), strict=True):  # fmt: skip
        np.testing.assert_allclose(a, b, rtol=1e-5)


@pytest.mark.parametrize("bad", [jnp.nan, jnp.inf])
def test_a_non_finite_step_changes_nothing_but_the_count(bad):
    adam = optax.adam(0.1)
    before, _ = step_of(adam, halflife=100.0)(linear_state(adam), BATCH)
    after, metrics = step_of(adam, halflife=100.0)(
        before, BATCH | dict(y=BATCH["y"].at[3].set(bad))
    )
    assert metrics["finite"] == 0 and after.step == before.step + 1
    kept, now = ((s.params, s.ema, s.opt, s.averages) for s in (before, after))
    jax.tree.map(np.testing.assert_array_equal, kept, now)
    # Of one step there is but one average.
    np.testing.assert_allclose(now[3]["0.1"]["w"], now[0]["w"], rtol=1e-6)


def test_average_has_its_half_life():
    # Constant weights 1 after a start at 0: after one half-life of images the average is at 1/2.
    batch, halflife, average = 10, 1000.0, {"w": jnp.zeros(())}
    late = jnp.float32(1e6)
    for _ in range(100):
        average = ema.update(average, {"w": jnp.ones(())}, ema.decay(late, batch, halflife))
    np.testing.assert_allclose(average["w"], 0.5, rtol=1e-4)


def test_half_life_is_ramped_to_a_twentieth_of_what_was_seen():
    np.testing.assert_allclose(
        ema.decay(jnp.float32(2000.0), 10, 1e6), 0.5 ** (10 / 100), rtol=1e-6
    )
    np.testing.assert_allclose(ema.decay(jnp.float32(1e9), 10, 1e6), 0.5 ** (10 / 1e6), rtol=1e-6)


def test_decay_and_rates_spare_what_gates_need(tiny_config):
    parts = build.run(tiny_config)
    mask = dict(trees.leaves_with_path(optimizer.decay_mask(parts.abstract_state.params)))
    decayed = {path.removeprefix("stack/blocks/") for path, yes in mask.items() if yes}
    assert decayed == {
        "attention/branch/query_kernel", "attention/branch/key_kernel",
        "attention/branch/value_kernel", "attention/branch/out_kernel",
        "mlp/branch/hidden/kernel", "mlp/branch/out/kernel", "patch_embed/kernel",
        "time/hidden/kernel", "time/out/kernel", "final/kernel",
    }  # fmt: skip


@pytest.mark.parametrize(("bound", "ratio"), [(True, 0.1), (False, 1.0)])
def test_beta_moves_ten_times_slower_when_bounded(bound, ratio):
    params = {"alpha": {"bias": jnp.zeros(3)}, "beta": {"bias": jnp.zeros(3)}}
    rate = optax.constant_schedule(0.5)
    adam = optimizer.make_optimizer(
        "adamw", rate, b1=0.9, b2=0.99, eps=1e-8, weight_decay=0.0, clip_norm=0.0, slow_beta=bound
    ).transform
    updates, _ = adam.update(jax.tree.map(jnp.ones_like, params), adam.init(params), params)
    np.testing.assert_allclose(updates["alpha"]["bias"], -0.5, rtol=1e-5)
    np.testing.assert_allclose(updates["beta"]["bias"], -0.5 * ratio, rtol=1e-5)


@pytest.mark.parametrize(("variant", "slow"), [("gated", True), ("mv_split", False)])
def test_rate_of_beta_is_that_of_its_variant_shared_kernels_included(tiny_config, variant, slow):
    tiny_config.model.variant, tiny_config.model.gate_condition = variant, "cond_shared"
    parts = build.run(tiny_config)
    params = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), parts.abstract_state.params)
    adam = build.optimizing(tiny_config)[1].transform
    ones = jax.tree.map(np.ones_like, params)
    updates, _ = jax.jit(lambda params: adam.update(ones, adam.init(params), params))(params)
    rates = {
        path: np.abs(u).max() / tiny_config.optim.learning_rate
        for path, u in trees.leaves_with_path(jax.device_get(updates))
    }
    betas = {path for path in rates if "beta/" in path}
    assert ("shared/beta/kernel" in betas) == (variant == "gated") and betas
    for path, rate in rates.items():
        assert rate == pytest.approx(0.1 if slow and path in betas else 1.0, rel=1e-3), path


def test_the_average_s_half_life_is_of_the_images_that_batches_had():
    sgd = optax.sgd(0.1)
    state = linear_state(sgd).replace(images=jnp.uint32(0))
    seen = 0
    for size in (8, 4, 8):
        before = state.ema["w"]
        state, _ = step_of(sgd, halflife=100.0)(state, {k: v[:size] for k, v in BATCH.items()})
        seen += size
        share = 1 - 0.5 ** (size / min(100.0, 0.05 * seen))
        expected = before + share * (state.params["w"] - before)
        np.testing.assert_allclose(state.ema["w"], expected, rtol=1e-6)
    assert int(state.images) == seen
    again = state_of(save_items(state))
    assert int(again.images) == seen and state_of(save_items(linear_state(sgd))).images == ()


def test_more_images_than_can_be_counted_leave_the_average_as_long():
    sgd, most = optax.sgd(0.1), 2**32 - 1
    state = linear_state(sgd).replace(images=jnp.uint32(most - 5))
    step = step_of(sgd, halflife=100.0)
    for _ in range(2):
        before = state.ema["w"]
        state, _ = step(state, {k: v[:8] for k, v in BATCH.items()})
        assert int(state.images) == most
        expected = before + (1 - 0.5 ** (8 / 100)) * (state.params["w"] - before)
        np.testing.assert_allclose(state.ema["w"], expected, rtol=1e-6)


def writer_of(workdir, first_step, ledger, before, images=0, batch_size=4):
    return metrics.MetricsWriter(
        workdir,
        first_step,
        ledger=ledger,
        before=before,
        images=lambda step: images + (step - first_step) * batch_size,
    )


NOTHING_YET = {"seconds": 0.0, "step_seconds": 0.0}


def test_metrics_of_a_run_that_begins_again_are_its_own(tmp_path):
    for value in (float("nan"), 2.0):
        writer = writer_of(tmp_path, 0, metrics.Ledger(), NOTHING_YET)
        writer.write(0, {"heldout_loss": value, "profile": [1.0, value]})
        writer.close()
        text = (tmp_path / "metrics.jsonl").read_text()
        assert text.count("\n") == 1 and "NaN" not in text
        (row,) = metrics.read_metrics(tmp_path)
        np.testing.assert_equal(row["profile"], [1.0, value])


class Clock:
    """Shows what it is set to."""

    def __init__(self, now):
        self.now = now

    def __call__(self):
        return self.now


def test_a_step_line_is_of_all_images_and_flops_since_the_last(tmp_path):
    clock = Clock(0.0)
    ledger = metrics.Ledger(clock)
    seen = [0, 8, 24, 32, 48]
    writer = metrics.MetricsWriter(
        tmp_path, 0, ledger=ledger, images=seen.__getitem__, before=NOTHING_YET
    )
    log = hooks.StepLog(
        writer, metrics.Progress(0, 4), ledger, lambda step: 0.1, every=2, last_step=4, devices=2,
        peak_flops=None, goodput=Goodput(tmp_path, ledger, 0.0), counts=lambda: {"skipped": 1},
    )  # fmt: skip
    for step in (1, 2, 3, 4):
        clock.now += 3.0 if seen[step] - seen[step - 1] == 16 else 1.0
        images = seen[step] - seen[step - 1]
        told = {"images": np.int64(images), "flops": np.float64(1e12 * images)}
        values = {name: jnp.float32(1.0) for name in ("loss", "grad_norm", "finite")}
        if step == 2:  # whose update was skipped: its loss is in no mean, its time in all
            values = {name: jnp.float32(np.nan) for name in values} | {"finite": jnp.float32(0)}
        log(step, None, values | told, 0.5)
    writer.close()
    rows = metrics.read_metrics(tmp_path)
    assert [row["images"] for row in rows] == [24, 48]
    for row in rows:  # 24 images in 4 seconds
        assert (row["img/s"], row["step_time"], row["data_wait"]) == (6.0, 2.0, 0.25)
        assert row["TFLOP/s/chip"] == 3.0
        assert (row["loss"], row["goodput"], row["skipped"]) == (1.0, 1.0, 1)


def test_images_and_seconds_of_a_run_go_on_over_its_processes(tmp_path):
    clock = Clock(100.0)
    ledger = metrics.Ledger(clock)
    writer = writer_of(tmp_path, 0, ledger, NOTHING_YET)
    with ledger.account("compile"):
        clock.now += 30
    clock.now += 2
    writer.write(2, {})
    with ledger.account("evaluate"):
        clock.now += 5
        writer.write(2, {})  # the evaluation has not ended, and its seconds are no step's already
    clock.now += 2
    writer.write(4, {})
    clock.now += 1
    checkpoint = writer.so_far(5)
    clock.now += 50
    writer.write(9, {})  # lost
    writer.close()

    clock = Clock(7.0)  # of another machine
    ledger = metrics.Ledger(clock)
    with ledger.account("init"):
        clock.now += 10
    # Of another batch size, which a run may get on its way.
    writer = writer_of(tmp_path, 5, ledger, checkpoint, images=20, batch_size=8)
    clock.now += 3
    writer.write(7, {})
    writer.close()
    rows = metrics.read_metrics(tmp_path)
    assert [row["step"] for row in rows] == [2, 2, 4, 7]
    assert [row["images"] for row in rows] == [8, 8, 16, 36]
    assert [row["seconds"] for row in rows] == [32, 37, 39, 53]
    assert [row["step_seconds"] for row in rows] == [2, 2, 4, 8]
    # Of a checkpoint that does not say them, they are unknown.
    writer = writer_of(tmp_path, 5, metrics.Ledger(), {"records_seen": 20}, images=20)
    writer.write(6, {})
    writer.close()
    assert metrics.read_metrics(tmp_path)[-1] == {"step": 6, "images": 24}

    # Begun again, the run has taken no time.
    writer = writer_of(tmp_path, 0, metrics.Ledger(Clock(1.0)), NOTHING_YET)
    writer.write(0, {})
    writer.close()
    (row,) = metrics.read_metrics(tmp_path)
    assert row == {"step": 0, "images": 0, "seconds": 0, "step_seconds": 0}


def test_schedules():
    warm = optimizer.schedule("constant", 1.0, 4, 100)
    np.testing.assert_allclose([warm(i) for i in range(6)], [0.25, 0.5, 0.75, 1.0, 1.0, 1.0])
    cosine = optimizer.schedule("cosine", 2.0, 10, 110)
    np.testing.assert_allclose([cosine(10), cosine(60), cosine(110)], [2.0, 1.0, 0.0], atol=1e-6)


def test_flops_count_the_body_of_a_scan_each_time():
    a, w = jnp.zeros((5, 7)), jnp.zeros((11, 7, 7))

    def f(a, w):
        return jax.lax.scan(lambda z, w: (z @ w, None), a, w)[0]

    assert flops.count(f, a, w) == 11 * 2 * 5 * 7 * 7
    x, k = jnp.zeros((1, 8, 8, 3)), jnp.zeros((3, 3, 3, 16))

    def conv(x, k):
        return jax.lax.conv_general_dilated(
            x, k, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )

    assert flops.count(conv, x, k) == 2 * 8 * 8 * 16 * 27
