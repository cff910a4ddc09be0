"""Runs side by side: hand-written runs whose figures are known."""

import json
import math
import re

import numpy as np
import pytest
from PIL import Image

from nrdm_jax import comparison, comparison_report
from nrdm_jax import config as configuration

LEVELS = (-2.0, 0.0, 2.0)


def level(value):
    return f"heldout_loss/log_snr={value:g}"


def heldout(losses, levels=LEVELS, examples=10):
    """A held-out row's values: losses at each level, and their mean."""
    return {
        "heldout_loss": sum(losses) / len(losses),
        "heldout_x0_error": max(losses),
        "heldout_examples": examples,
        **{level(at): loss for at, loss in zip(levels, losses, strict=True)},
    }


def write_run(path, rows, env=None, **fields):
    """A workdir with rows of (step, values), and the default config but for group__name=value."""
    config = configuration.default()
    config.train.steps, config.train.batch_size = 40, 4
    for name, value in fields.items():
        group, field = name.split("__")
        config[group][field] = value
    path.mkdir()
    (path / "config.json").write_text(json.dumps(configuration.to_dict(config)))
    if env:
        (path / "env.json").write_text("".join(json.dumps(line) + "\n" for line in env))
    if rows is not None:
        lines = (json.dumps({"step": step, **values}) + "\n" for step, values in rows)
        (path / "metrics.jsonl").write_text("".join(lines))
    return str(path)


def so_far(step, seconds):
    return {"images": 4 * step, "seconds": seconds, "step_seconds": seconds / 2}


def summary_of(*workdirs, labels=None):
    return comparison.summarise(comparison.read(workdirs, labels))[0]


@pytest.fixture
def two(tmp_path):
    """A finished run, and one that is still going."""
    a = write_run(
        tmp_path / "a",
        [
            (0, so_far(0, 5.0) | heldout([4.0, 2.0, 3.0])),
            (10, so_far(10, 15.0) | {"loss": 1.0, "profile": [1.0, 2.0]}),
            (20, so_far(20, 25.0) | heldout([1.0, 0.5, 0.3])),
            (20, so_far(20, 26.0) | {"fd_net": 8.0, "recall_net": 0.5, "scored_examples": 7}),
            (40, so_far(40, 45.0) | heldout([2.0, 0.5, 0.5])),
            (40, so_far(40, 3900.0) | {"fd_net": 4.0, "recall_net": 0.25, "scored_examples": 7}),
        ],
        env=[{"parameters": 11}, {"parameters": 12, "devices": "1 x cpu", "data": "f"}],
    )
    b = write_run(
        tmp_path / "b",
        [
            (0, so_far(0, 5.0) | heldout([4.0, 2.0, 3.0])),
            (20, so_far(20, 15.0) | heldout([2.0, 1.0, 1.2])),
            (25, so_far(25, 16.0) | {"fd_net": 9.0, "recall_net": 0.5, "scored_examples": 7}),
            (30, so_far(30, 40.0) | heldout([1.0, 0.4, 0.4])),
        ],
        env=[{"parameters": 20, "data": "f"}],
        model__variant="resnet",
        optim__learning_rate=0.5,
    )
    return a, b


def test_figures_of_two_runs(two):
    summary = summary_of(*two)
    a, b = summary["runs"]
    assert summary["warnings"] == []
    assert (a["label"], a["steps"], a["of_steps"], a["images"]) == ("a", 40, 40, 160)
    assert (a["seconds"], a["step_seconds"], a["parameters"]) == (3900, 1950, 12)
    assert (b["steps"], b["of_steps"], b["images"], b["seconds"]) == (30, 40, 120, 40)
    # Both have the losses of 80 images; later ones were measured at different steps.
    assert summary["equal_images"]["heldout_loss"] == 80
    assert a["metrics"]["heldout_loss"] == pytest.approx(
        {"first": 3.0, "last": 1.0, "best": 0.6, "best_images": 80, "last_over_first": 1 / 3,
         "at_equal_images": 0.6, "examples": 10}
    )  # fmt: skip
    assert b["metrics"]["heldout_loss"]["at_equal_images"] == pytest.approx(1.4)
    assert a["metrics"][level(-2)]["best"] == 1.0 and a["metrics"][level(-2)]["last"] == 2.0
    # Less is better of distances, more of scores; counts are no figures.
    assert summary["distances"] == ["fd_net", "recall_net"]
    assert a["metrics"]["fd_net"]["best"] == 4.0 and a["metrics"]["recall_net"]["best"] == 0.5
    assert a["metrics"]["recall_net"]["last_over_first"] == 0.5
    assert a["metrics"]["fd_net"]["examples"] == 7 and "scored_examples" not in a["metrics"]
    # b's fd_net is of 100 images and a's of 80 and 160: there is nothing at an equal number.
    assert a["metrics"]["fd_net"]["at_equal_images"] is None
    assert summary["config"] == {
        "model.variant": ["gated", "resnet"],
        "optim.learning_rate": [1e-4, 0.5],
    }


def test_tables_and_charts(two, tmp_path):
    out = tmp_path / "out"
    found = comparison_report.view(comparison.read(two, ["first", "se|cond"]), out)
    assert json.loads((out / "compare.json").read_text()) == found
    assert found["charts"] == [str(out / "losses.png"), str(out / "distances.png")]
    text = (out / "compare.md").read_text()
    rows = [[c.strip() for c in line.split("|")[1:-1]] for line in text.replace("\\|", "/")
            .splitlines() if line.startswith("|")]  # fmt: skip
    assert ["first", two[0], "40 of 40", "160", "1h05m", "32m30s", "12", "1 x cpu"] in rows
    assert ["se/cond", two[1], "30 of 40, unfinished", "120", "0m40s", "0m20s", "20", "–"] in rows
    assert ["first", "3", "1", "0.3333", "0.6", "80", "10", "0.6"] in rows
    assert ["run", "-2", "0", "2"] in rows and ["first", "2", "0.5", "0.5"] in rows
    assert ["model.variant", '"gated"', '"resnet"'] in rows
    # Of a table, every row has as many cells as its header.
    for table in text.split("\n\n"):
        if table.startswith("|"):
            lines = table.replace("\\|", "/").splitlines()
            assert {line.count("|") for line in lines} == {lines[0].count("|")}
    # Without distances there is no chart of them, not even that of a comparison before.
    (tmp_path / "b" / "metrics.jsonl").unlink()
    rows = [(0, heldout([4.0, 2.0, 3.0]))]
    c = write_run(tmp_path / "c", rows)
    assert comparison_report.view(comparison.read([c]), out)["charts"] == [str(out / "losses.png")]
    assert not (out / "distances.png").exists()


def has_colour(path, colour):
    return bool(np.all(np.asarray(Image.open(path).convert("RGB")) == colour, axis=-1).any())


def test_a_run_has_one_colour_whatever_others_have(two, tmp_path):
    blue, orange = (31, 119, 180), (255, 127, 14)
    found = comparison_report.view(comparison.read(two), tmp_path / "both")
    for chart in found["charts"]:
        assert has_colour(chart, blue) and has_colour(chart, orange)
    (tmp_path / "a" / "metrics.jsonl").unlink()
    found = comparison_report.view(comparison.read(two), tmp_path / "second")
    assert found["warnings"] == ["a has no metrics yet"]
    for chart in found["charts"]:
        assert not has_colour(chart, blue) and has_colour(chart, orange)


def test_what_is_not_finite_is_neither_best_nor_a_number(tmp_path):
    rows = [
        (0, so_far(0, 1.0) | {"fd_net": None}),
        (10, so_far(10, 2.0) | {"fd_net": 3.0, "kid_net": -0.5}),
        (20, so_far(20, 3.0) | {"fd_net": 2.0, "kid_net": 0.0}),
        (30, so_far(30, 4.0) | {"fd_net": None, "kid_net": -0.25}),
    ]
    workdir = write_run(tmp_path / "a", rows)
    # A run that is going may be read in the middle of a line.
    with (tmp_path / "a" / "metrics.jsonl").open("a") as file:
        file.write('{"step": 40, "ima')
    found = comparison_report.view(comparison.read([workdir]), tmp_path / "out")
    (run,) = found["runs"]
    assert run["steps"] == 30
    fd, kid = run["metrics"]["fd_net"], run["metrics"]["kid_net"]
    assert (fd["first"], fd["last"], fd["last_over_first"]) == (None, None, None)
    assert (fd["best"], fd["best_images"]) == (2.0, 80)
    assert (kid["best"], kid["last_over_first"]) == (-0.5, 0.5)
    assert "not finite" in (tmp_path / "out" / "compare.md").read_text()
    rows = [(10, {"fd_net": None}), (20, {"fd_net": None})]
    workdir = write_run(tmp_path / "b", rows)
    fd = comparison_report.view(comparison.read([workdir]), tmp_path / "out")["runs"][0]["metrics"]
    assert set(fd["fd_net"].values()) == {None}


def test_rows_of_an_older_version_say_no_time(tmp_path):
    rows = [(0, heldout([2.0, 2.0, 2.0])), (10, heldout([1.0, 1.0, 1.0]))]
    workdir = write_run(tmp_path / "a", rows, train__batch_size=8)
    found = comparison_report.view(comparison.read([workdir]), tmp_path / "out")
    (run,) = found["runs"]
    assert (run["images"], run["seconds"], run["parameters"]) == (80, None, None)
    assert run["metrics"]["heldout_loss"]["best_images"] == 80


ALL = {"heldout_loss", "heldout_x0_error", *map(level, LEVELS), "fd_net"}


@pytest.mark.parametrize(
    ("fields", "left", "says"),
    [
        ({"model__depth": 3, "optim__name": "muon"}, ALL, None),
        ({"data__name": "cifar10"}, set(), "data.name is 'cifar10' and not 'openmoji'"),
        ({"data__scale": 0.5}, set(), "data.scale is 0.5 and not 1.0"),
        ({"diffusion__prediction": "eps"}, {"heldout_x0_error", "fd_net"},
         "diffusion.prediction is 'eps' and not 'velocity'.*x0 error is not"),
        ({"diffusion__path": "cosine"}, {"heldout_x0_error", "fd_net"}, "diffusion.path"),
        ({"sample__guidance": 3.0, "sample__every": 5}, ALL, "^sample.guidance differ: distances"),
    ],
)  # fmt: skip
def test_only_figures_of_the_same_thing_are_set_side_by_side(fields, left, says, tmp_path):
    rows = [(0, heldout([2.0, 2.0, 2.0]) | {"fd_net": 1.0})]
    runs = [write_run(tmp_path / "a", rows), write_run(tmp_path / "b", rows, **fields)]
    summary = summary_of(*runs)
    first, second = summary["runs"]
    assert set(first["metrics"]) == ALL
    assert set(second["metrics"]) == left and set(second["left_out"]) == ALL - left
    if says is None:
        assert summary["warnings"] == []
    else:
        (line,) = summary["warnings"]
        assert re.search(says, line)


def test_other_records_of_the_same_name_are_other_data(tmp_path):
    rows = [(0, heldout([2.0, 2.0, 2.0]))]
    runs = [write_run(tmp_path / name, rows, env=[{"data": name}]) for name in "ab"]
    summary = summary_of(*runs)
    assert "its data are b and not a" in summary["warnings"][0]
    assert summary["runs"][1]["metrics"] == {}


def test_means_are_over_the_levels_that_all_have(tmp_path):
    a = write_run(tmp_path / "a", [(0, heldout([4.0, 2.0, 3.0]))])
    # The second of b's rows is of other levels, which a run may get on its way.
    rows = [(0, heldout([1.0, 2.0, 9.0], (0.0, 2.0, 5.0))), (4, heldout([7.0], (0.0,)))]
    b = write_run(tmp_path / "b", rows)
    summary = summary_of(a, b)
    assert summary["levels"] == [level(0), level(2)]
    means = [run["metrics"]["heldout_loss"]["last"] for run in summary["runs"]]
    assert means == [2.5, 1.5]
    assert not any("heldout_x0_error" in run["metrics"] for run in summary["runs"])
    assert "evaluate.log_snr differs" in summary["warnings"][0]
    c = write_run(tmp_path / "c", [(0, heldout([1.0], (7.0,)))])
    summary = summary_of(a, c)
    assert summary["levels"] == [] and "none" in summary["warnings"][0]
    assert not any(run["metrics"] for run in summary["runs"])


def test_distances_of_other_numbers_of_samples_are_left_out(tmp_path):
    of = [{"fd_net": 1.0, "scored_examples": n, "heldout_loss": 1.0} for n in (5, 9)]
    runs = [
        write_run(tmp_path / name, [(4, values)]) for name, values in zip("ab", of, strict=True)
    ]
    summary = summary_of(*runs)
    assert [set(run["metrics"]) for run in summary["runs"]] == [
        {"fd_net", "heldout_loss"},
        {"heldout_loss"},
    ]
    assert "b is measured on 9 examples and a on 5: the fd_net of b" in summary["warnings"][0]


def test_names_tell_runs_apart(two, tmp_path):
    (tmp_path / "x").mkdir()
    other = write_run(tmp_path / "x" / "a", None)
    names = [run.label for run in comparison.read([two[0], other])]
    assert names == [f"{tmp_path.name}/a", "x/a"]
    for workdirs, labels, says in (
        ((two[0], two[0] + "/"), None, "given twice"),
        (two, ["one"], "are 1 for 2 runs"),
        (two, ["one", "one"], "no two the same"),
        ((tmp_path / "none",), None, "none is no run"),
    ):
        with pytest.raises(ValueError, match=says):
            comparison.read(workdirs, labels)


def test_a_value_at_equal_images_is_one_that_was_measured():
    curve = comparison.Curve(
        np.asarray([0.0, 10.0, 20.0, 30.0]),
        np.full(4, math.nan),
        np.asarray([8.0, 6.0, math.nan, 2.0]),
    )
    at = [comparison.figures(curve, at=images)["at_equal_images"] for images in (5, 20, 30, 31)]
    assert at == [None, None, 2.0, None]


def test_distances_beside_another_reference_are_left_out(tmp_path):
    rows = [(4, {"fd_net": 1.0, "scored_examples": 5, "heldout_loss": 1.0})]
    a = write_run(tmp_path / "a", rows)
    b = write_run(tmp_path / "b", rows, evaluate__reference=100)
    summary = summary_of(a, b)
    assert [set(run["metrics"]) for run in summary["runs"]] == [
        {"fd_net", "heldout_loss"},
        {"heldout_loss"},
    ]
    assert "evaluate.reference is 100 and not 0: its distances" in summary["warnings"][0]


def test_what_a_run_measured_otherwise_before_is_left_out(tmp_path):
    few = {"fd_net": 9.0, "scored_examples": 5}
    many = {"fd_net": 2.0, "scored_examples": 50}
    a = write_run(tmp_path / "a", [(2, few), (4, many), (6, many | {"fd_net": 1.0})])
    summary = summary_of(a)
    found = summary["runs"][0]["metrics"]["fd_net"]
    assert (found["first"], found["last"], found["examples"]) == (2.0, 1.0, 50)
    assert "measured in another way up to step 2" in summary["warnings"][0]


def test_x0_errors_at_other_levels_are_left_out_whatever_is_predicted(tmp_path):
    a = write_run(tmp_path / "a", [(0, heldout([1.0, 2.0, 3.0]))])
    b = write_run(
        tmp_path / "b", [(0, heldout([1.0], (7.0,)))], diffusion__prediction="eps",
        evaluate__log_snr=(7.0,),
    )  # fmt: skip
    summary = summary_of(a, b)
    assert not any("heldout_x0_error" in run["metrics"] for run in summary["runs"])
