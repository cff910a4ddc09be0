"""The policy of bad steps, as what a sequence of metrics leads to."""

import json

import jax.numpy as jnp
import numpy as np
import pytest

from nrdm_jax.training import guard, recovery, sensitivity

NAN = float("nan")


def decided(limits, losses, shares=None, stopped=()):
    """Of each step what was said, and the trouble that ended it; after a step of `stopped` another
    process goes on, with what a checkpoint says."""
    policy, said = guard.Policy(limits, {}), []
    for step, loss in enumerate(losses, 1):
        share = shares.get(step) if shares else None
        wrong, trouble = policy.observe(step, loss, loss, bool(np.isfinite(loss)), share)
        said.append(wrong)
        if trouble:
            return said, trouble
        if step in stopped:
            policy = guard.Policy(limits, json.loads(json.dumps(policy.memory())))
    return said, None


def test_so_many_bad_steps_in_a_row_are_one_too_many():
    limits = guard.Limits(most_in_a_row=3)
    said, trouble = decided(limits, [1, NAN, NAN, 1, NAN, float("inf"), NAN, 1])
    assert (trouble.since, trouble.step) == (5, 7) and trouble.counts["skipped"] == 5
    assert [bool(text) for text in said] == [False, True, True, False, True, True, True]
    assert said[1] == "loss=nan, grad_norm=nan: the update is skipped; 1 in a row"
    assert decided(limits, [NAN, NAN, 1] * 5)[1] is None
    assert decided(guard.Limits(1), [1, NAN])[1].since == 2
    # A finite loss whose gradient was not.
    wrong, _ = guard.Policy(limits, {}).observe(1, 0.5, float("inf"), False)
    assert wrong.startswith("loss=0.5, grad_norm=inf: the update is skipped")


def test_a_spike_is_far_above_the_median_whatever_outliers_there_were():
    losses = np.arange(1.0, 10.0)  # median 5, median deviation 2
    assert guard.spike_level(losses, 10) == pytest.approx(5 + 10 * 1.4826 * 2)
    assert guard.spike_level([*losses[:7], 1e9, 1e9], 10) == guard.spike_level(losses, 10)
    assert guard.spike_level([2.0] * 8, 10) == pytest.approx(2.02)  # even losses: a hundredth
    normal = np.random.default_rng(0).normal(3, 0.5, 20_001)
    assert guard.spike_level(normal, 4) == pytest.approx(3 + 4 * 0.5, rel=0.02)


def test_spikes_are_bad_steps_and_no_part_of_what_is_usual():
    limits = guard.Limits(2, spike_factor=10, spike_window=8)
    usual = [1.0, 1.1, 0.9, 1.0, 1.2, 0.8, 1.0, 1.05]
    # Before there are enough losses nothing is a spike; a single one is borne.
    said, trouble = decided(limits, [50, *usual, 9, *usual])
    assert trouble is None and [i for i, text in enumerate(said, 1) if text] == [10]
    assert said[9].startswith("loss=9: a spike, above ")
    said, trouble = decided(limits, [*usual, 9, 9])
    assert (trouble.since, trouble.step, trouble.counts["spikes"]) == (9, 10, 2)
    # With steps that are not finite they are one row.
    assert decided(limits, [*usual, NAN, 9])[1].since == 9
    assert decided(guard.Limits(2), [*usual, 9, 9])[1] is None


def test_a_collapse_is_trouble_at_once_and_since_the_last_good_look():
    limits = guard.Limits(3, collapse_factor=3.0)
    shares = {2: 1.0, 4: 1.2, 6: 1.1, 8: 1.0, 10: 4.0}
    _, trouble = decided(limits, [1.0] * 12, shares)
    assert (trouble.since, trouble.step) == (9, 10)
    assert trouble.reason == "token-mean share 4, its median 1.05: the tokens become alike"
    small = {step: share / 10 for step, share in shares.items()}
    assert decided(limits, [1.0] * 12, small)[1] is None  # less than all else
    assert decided(guard.Limits(3), [1.0] * 12, shares)[1] is None


def test_decisions_do_not_depend_on_where_a_process_was_stopped():
    limits = guard.Limits(2, spike_factor=10, spike_window=8, collapse_factor=3.0)
    draw = np.random.default_rng(0)
    for _ in range(20):
        losses = draw.normal(1, 0.1, 40)
        losses[draw.integers(0, 40, 4)] *= 10
        losses[draw.integers(0, 40, 4)] = NAN
        shares = {step: float(draw.uniform(1, 4)) for step in range(5, 41, 5)}
        stopped = set(draw.integers(1, 40, 6).tolist())
        whole = decided(limits, losses.tolist(), shares)
        assert decided(limits, losses.tolist(), shares, stopped) == whole


def test_the_hook_is_a_step_late_but_before_a_checkpoint():
    said = []
    hook = guard.Guard(guard.Policy(guard.Limits(2, 0.0, 128, 3.0), {}), said.append,
                       lambda step: step % 5 == 0, shares_every=2)  # fmt: skip

    def metrics(loss, share=1.0):
        health = jnp.ones((4, 2)) * jnp.asarray([share**2, 1.0])[None]
        found = dict.fromkeys(("loss", "grad_norm"), jnp.float32(loss))
        return found | {"finite": jnp.isfinite(loss).astype(jnp.float32), "health": health}

    hook(1, None, metrics(NAN), 0.0)
    assert not said
    hook(2, None, metrics(1.0), 0.0)
    assert said == ["step=1 WARNING: loss=nan, grad_norm=nan: the update is skipped; 1 in a row"]
    hook(4, None, metrics(NAN), 0.0)
    with pytest.raises(guard.Broken) as broken:
        hook(5, None, metrics(NAN), 0.0)
    assert (broken.value.trouble.since, broken.value.trouble.step) == (4, 5)
    assert hook.counts() == {"skipped": 3, "spikes": 0, "rollbacks": 0}
    # The share is looked at every second step.
    for step in (6, 8, 10):
        hook(step, None, metrics(1.0), 0.0)
    hook(11, None, metrics(1.0, share=9.0), 0.0)
    hook.settle()
    hook(12, None, metrics(1.0, share=9.0), 0.0)
    with pytest.raises(guard.Broken, match="alike"):
        hook.settle()


def test_the_alarm_and_the_guard_mean_the_same_by_alike():
    assert sensitivity.alike(2.1, 1.0, 2.0) and not sensitivity.alike(1.9, 1.0, 2.0)
    assert not sensitivity.alike(0.9, 0.1, 2.0)


def test_a_run_goes_back_to_where_it_would_have_without_being_stopped():
    assert recovery.good_ones([500, 1000, 1300, 1500], 1501, every=500) == [1500, 1000, 500, 1300]
    # 1300 is where a process was stopped; 1500 is suspect.
    assert recovery.good_ones([500, 1000, 1300, 1500], 1500, every=500) == [1000, 500, 1300]
    assert recovery.good_ones([1300], 1500, every=500) == [1300]
    assert recovery.good_ones([1500], 1500) == []
    old = recovery.whole({"records_seen": 80, "step": 5})
    assert (old["position"], old["left_out"], old["guard"]) == (80, [], {})
    trouble = guard.Trouble(7, 8, "", {"skipped": 2, "spikes": 0, "rollbacks": 1})
    again = recovery.begun_again(old, trouble, 128)
    assert (again["position"], again["left_out"], again["records_seen"]) == (128, [[80, 128]], 80)
    assert again["guard"] == {"skipped": 2, "spikes": 0, "rollbacks": 2}
