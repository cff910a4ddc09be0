"""Depth as an ODE's time: its discretisation is a stack, its two gradients meet."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nrdm_jax import build, programs
from nrdm_jax.models import continuous
from nrdm_jax.models.conditioning import Condition
from nrdm_jax.models.continuous import ContinuousDiT, Flow

X = jax.random.normal(jax.random.key(0), (2, 8, 8, 3))
ARGUMENTS = (X, jnp.linspace(0.1, 0.9, 2), {"label": jnp.arange(2)})
Z = jax.random.normal(jax.random.key(3), (2, 16, 16))
CONDITION = Condition(jax.random.normal(jax.random.key(4), (2, 16)), {})


def model(**changes):
    settings = dict(patch=2, depth=4, width=16, heads=2, num_classes=5, knots=3) | changes
    return ContinuousDiT(shape=(8, 8, 3), **settings)


@pytest.fixture(scope="module")
def variables(fill_zeros):
    return fill_zeros(jax.jit(model().init)(jax.random.key(1), *ARGUMENTS), jax.random.key(2), 0.1)


def gradient(net, variables):
    def loss(variables):
        return jnp.mean((net.apply(variables, *ARGUMENTS) - X) ** 2)

    leaves = jax.tree.leaves(jax.jit(jax.grad(loss))(variables))
    return np.concatenate([np.ravel(x) for x in leaves])


def relative(a, b):
    return np.linalg.norm(a - b) / np.linalg.norm(b)


@pytest.mark.parametrize("knots", [1, pytest.param(3, marks=pytest.mark.slow)])
def test_a_step_of_euler_is_a_block_whose_branches_read_the_same(knots, fill_zeros):
    net = model(knots=knots, solver="euler")
    block = net._block((4, 4))
    flow = Flow(block, knots, 4, "euler", 1e-3, "backpropagation")
    params = fill_zeros(jax.jit(flow.init)(jax.random.key(1), Z, CONDITION), jax.random.key(2), 0.5)

    def solved(params):
        return flow.apply(params, Z, CONDITION, True)

    def loop(params):
        z, after = Z, []
        units = dict(block.units)
        for step in range(4):
            at = continuous.interpolated(params["params"]["blocks"], jnp.float32(step / 4))
            z = z + sum(
                units[n](parent=None).apply({"params": at[n]}, z, z, CONDITION) - z for n in units
            )
            after.append(z)
        return jnp.stack(after)

    np.testing.assert_allclose(jax.jit(solved)(params), jax.jit(loop)(params), rtol=1e-4, atol=1e-5)
    ours, plain = (
        np.concatenate([np.ravel(x) for x in jax.tree.leaves(
            jax.jit(jax.grad(lambda p: jnp.sum(f(p)[-1] ** 2)))(params))])  # noqa: B023
        for f in (solved, loop)
    )  # fmt: skip
    assert relative(ours, plain) < 1e-4


def test_weights_between_knots_are_linear():
    knots = {"w": jnp.asarray([[0.0], [10.0], [40.0]])}
    for share, value in ((0.0, 0.0), (0.25, 5.0), (0.5, 10.0), (0.75, 25.0), (1.0, 40.0)):
        np.testing.assert_allclose(continuous.interpolated(knots, jnp.float32(share))["w"], [value])


@pytest.mark.slow
def test_adjoint_comes_to_back_propagation_as_the_tolerance_falls(variables):
    exact = gradient(model(tolerance=1e-6), variables)
    away = [relative(gradient(model(tolerance=t, adjoint="ode"), variables), exact)
            for t in (1e-2, 1e-6)]  # fmt: skip
    assert away[0] > 30 * away[1] and away[1] < 1e-3


@pytest.mark.parametrize("solver", ["heun", "dopri5"])
def test_solvers_agree(variables, solver):
    outputs = [
        model(solver=s, tolerance=1e-5).apply(variables, *ARGUMENTS) for s in (solver, "tsit5")
    ]
    np.testing.assert_allclose(*outputs, rtol=1e-2, atol=5e-3)


def test_too_many_steps_are_no_result(variables, monkeypatch):
    monkeypatch.setattr(continuous, "MAX_STEPS", 2)
    assert bool(jnp.all(jnp.isnan(model(tolerance=1e-6).apply(variables, *ARGUMENTS))))


def test_trunk_along_the_way_is_the_solution_there(variables):
    assert model().blocks == 4
    read = model().apply(variables, *ARGUMENTS, after=(0, 2, model().blocks))
    whole = model().apply(variables, *ARGUMENTS)
    np.testing.assert_allclose(read[-1], whole, rtol=1e-2, atol=1e-3)
    assert np.abs(read[1] - whole).max() > 1e-3


@pytest.mark.slow
@pytest.mark.parametrize("adjoint", ["backpropagation", "ode"])
def test_it_trains_in_the_one_step(tiny_config, adjoint):
    c = tiny_config
    c.model.name, c.model.knots, c.model.adjoint = "continuous", 2, adjoint
    c.optim.learning_rate = 3e-3
    parts = build.run(c)
    step = jax.jit(parts.train_step)
    state = parts.fresh_state()
    rng = np.random.default_rng(0)
    batch = {"x": jnp.asarray(rng.integers(0, 256, (16, 8, 8, 3)), jnp.uint8),
             "label": jnp.zeros(16, jnp.int32)}  # fmt: skip
    losses = []
    for _ in range(12):
        state, metrics = step(state, batch)
        losses.append(float(metrics["loss"]))
    assert np.mean(losses[-3:]) < np.mean(losses[:3]) and metrics["profile"].shape == (2,)
    assert float(metrics["profile"].min()) > 0
    assert programs.flops_per_step(parts) == 0  # its solver chooses the steps
