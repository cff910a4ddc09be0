"""What is minimised, by its parts."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

from nrdm_jax.checkpointing.manager import Checkpoints
from nrdm_jax.diffusion import known, schedules, times
from nrdm_jax.diffusion.importance import Importance
from nrdm_jax.sharding.mesh import batch_sharding, make_mesh, replicated
from nrdm_jax.training.objectives import diffusion_objective
from nrdm_jax.training.state import create, save_items, state_of
from nrdm_jax.training.step import make_train_step

PATH = schedules.cosine()
X = jnp.full((8, 4, 4, 1), 0.5)  # a network that puts out 0 for x0 has the loss 0.25
BATCH = {"x": X, "label": jnp.zeros(8, jnp.int32)}
KEYS = jax.random.split(jax.random.key(0), 8)


UNIFORM = times.uniform(PATH.t_min, PATH.t_max)


def objective(sample_times=UNIFORM, **more):
    def apply(params, x_t, t, given):
        return jnp.broadcast_to(params["w"], x_t.shape)

    return diffusion_objective(
        apply, PATH, "x0", sample_times, lambda t: 1.0 + t,
        nothing=lambda given: given, dropout=0.0, **more,
    )  # fmt: skip


def test_where_it_is_the_logarithm_of_the_loss_the_uncertainty_has_no_gradient():
    learned = objective(uncertainty=lambda params, level: params["u"](level))
    plain, _ = objective()({"w": 0.0}, BATCH, KEYS)

    def of(shift):
        def u(level):
            # t by the level: l = 0.25 (1 + t)
            t = schedules.time_at(PATH, level / 2)
            return jnp.log(0.25 * (1.0 + t)) + shift

        return learned({"w": 0.0, "u": u}, BATCH, KEYS)

    loss, slope = jax.jit(lambda: jax.jvp(lambda s: of(s)[0], (0.0,), (1.0,)))()
    np.testing.assert_allclose(slope, 0.0, atol=1e-5)
    np.testing.assert_allclose(loss, 1.0 + jnp.log(plain), rtol=1e-4)
    for wrong in (-0.7, 0.7):
        assert float(jnp.mean(of(wrong)[0])) > float(jnp.mean(loss)) + 0.1
    np.testing.assert_allclose(of(0.3)[1]["weighted_loss"], plain.mean(), rtol=1e-5)


def test_at_its_start_the_uncertainty_changes_neither_loss_nor_gradient():
    learned = objective(uncertainty=lambda params, level: params["u"] * jnp.ones_like(level))
    (loss, metrics), plain = (f({"w": 0.3, "u": 0.0}, BATCH, KEYS) for f in (learned, objective()))
    np.testing.assert_array_equal(loss, plain[0])
    np.testing.assert_allclose(metrics["weighted_loss"], jnp.mean(plain[0]))
    assert plain[1] == {}
    slopes = [
        jax.grad(lambda w, f=f: jnp.mean(f({"w": w, "u": 0.0}, BATCH, KEYS)[0]))(0.3)
        for f in (learned, objective())
    ]
    assert slopes[0] == slopes[1] != 0


def test_what_is_known_of_an_example_is_not_learnt():
    """The first three of four rows are known and far off; the last, 0.5, is what counts."""
    batch = {"x": X.at[:, :3].set(9.0), "label": BATCH["label"]}
    plain, _ = objective()({"w": 0.0}, BATCH, KEYS)
    loss, _ = objective(see=known.first_frames(3))({"w": 0.0}, batch, KEYS)
    np.testing.assert_allclose(loss, plain, rtol=1e-6)


BY_IMPORTANCE = Importance(PATH.t_min, PATH.t_max, bins=3, remembered=4)


def importance_step(micro_batches=1):
    adam = optax.adam(0.1)
    step = make_train_step(
        objective(BY_IMPORTANCE), adam, micro_batches=micro_batches,
        ema_halflife_images=100.0, importance=BY_IMPORTANCE,
    )  # fmt: skip
    state = create(lambda key: {"w": jnp.zeros(())}, adam, 0, importance=BY_IMPORTANCE)
    return jax.jit(step), state


def test_a_state_with_its_history_goes_on_from_a_checkpoint_bit_for_bit(tmp_path):
    step, state = importance_step()
    for _ in range(4):
        state, metrics = step(state, BATCH)
    assert "importance" not in metrics and state.importance.counts.min() == 4
    assert np.ptp(BY_IMPORTANCE.chances(state.importance)) > 0.01
    checkpoints = Checkpoints(str(tmp_path / "checkpoints"))
    checkpoints.save(4, save_items(state), {})
    checkpoints.wait()
    wanted = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state
    )
    again = state_of(checkpoints.restore(4, save_items(wanted)))
    checkpoints.close()
    assert jax.tree.structure(again) == jax.tree.structure(state)
    for _ in range(2):
        state, again = (step(s, BATCH)[0] for s in (state, again))
    for a, b in zip(*map(jax.tree.leaves, (state, again)), strict=True):
        np.testing.assert_array_equal(a, b)


def test_parts_of_a_batch_are_drawn_by_one_history_and_make_the_next():
    found = []
    for micro_batches in (1, 4):
        step, state = importance_step(micro_batches)
        for _ in range(6):
            state, metrics = step(state, BATCH)
        found.append((state, metrics))
    for a, b in zip(*map(jax.tree.leaves, found), strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-5)


def test_devices_that_divide_a_batch_remember_all_of_it():
    step, state = importance_step()
    mesh = make_mesh({"data": 8})
    batch = jax.device_put(BATCH, batch_sharding(mesh))
    divided = jax.device_put(state, replicated(mesh))
    for _ in range(5):
        state, _ = step(state, BATCH)
        divided, _ = step(divided, batch)
    for a, b in zip(*map(jax.tree.leaves, (state, divided)), strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-5)
        assert b.sharding.is_fully_replicated
    assert np.ptp(BY_IMPORTANCE.chances(divided.importance)) > 0.01


def test_a_step_that_is_skipped_is_not_remembered():
    step, state = importance_step()
    state, _ = step(state, BATCH)
    after, metrics = step(state, BATCH | {"x": X.at[0, 0, 0, 0].set(jnp.nan)})
    assert metrics["finite"] == 0
    jax.tree.map(np.testing.assert_array_equal, after.replace(step=state.step), state)


def test_a_state_without_a_history_is_saved_as_ever():
    state = create(lambda key: {"w": jnp.zeros(())}, optax.sgd(0.1), 0)
    assert set(save_items(state)) == {"params", "ema", "opt", "loop"}
    assert jax.tree.leaves(state.importance) == []
