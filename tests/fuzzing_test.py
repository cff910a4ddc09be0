"""Files of every format, damaged: each is read, or refused with its name and an exit code."""

import functools
import json
import os
import pathlib
import subprocess
import sys
import warnings

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from benchmarks import file_fuzzing
from benchmarks.file_formats import FORMATS, Format, made

ROOT = pathlib.Path(__file__).resolve().parents[1]
CASES = 50
# Of one damage: where in the file, as a share of it; bytes that go; bytes that come.
DAMAGE = st.tuples(st.floats(0, 1), st.integers(0, 8), st.binary(max_size=8))
CONTENTS = st.one_of(st.lists(DAMAGE, min_size=1, max_size=4), st.binary(max_size=200))


def corpus(cases, seed):
    """Lines of `benchmarks.file_fuzzing`, by the format: in a process of its own, since what is
    wrong may end it."""
    # Without the simulated devices of the tests.
    environment = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.file_fuzzing", f"--cases={cases}", f"--seed={seed}"],
        cwd=ROOT, env=environment, capture_output=True, text=True, timeout=3600, check=False,
    )  # fmt: skip
    lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith('{"format"')]
    return {line["format"]: line for line in lines}, done.stderr


@pytest.fixture(scope="module")
def found():
    return corpus(CASES, seed=0)


@pytest.mark.parametrize("name", FORMATS)
def test_damaged_files_are_read_or_refused(name, found):
    lines, told = found
    assert name in lines, told[-2000:]
    assert lines[name]["faults"] == [] and lines[name]["cases"] == CASES


@pytest.mark.slow
def test_many_damaged_files_are_read_or_refused():
    for seed in (1, 2):
        lines, told = corpus(3000, seed)
        assert list(lines) == list(FORMATS), told[-2000:]
        assert not [line for line in lines.values() if line["faults"]]


@pytest.fixture(scope="module")
def valid(tmp_path_factory):
    @functools.cache
    def of(name):
        path = made(name, tmp_path_factory.mktemp("valid"))
        return path, path.read_bytes()

    return of


def content_of(whole, given):
    """Bytes as they are, or `whole` with damages."""
    if isinstance(given, bytes):
        return given
    for share, gone, come in given:
        at = int(share * len(whole))
        whole = whole[:at] + come + whole[at + gone :]
    return whole


def examined(name, valid, examples):
    path, whole = valid(name)

    @settings(
        max_examples=examples, deadline=None, database=None, derandomize=True,
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    @given(CONTENTS)
    def examine(given):
        with warnings.catch_warnings(action="ignore"):
            assert file_fuzzing.fault(FORMATS[name], path, content_of(whole, given)) == ""

    try:
        examine()
    finally:
        path.write_bytes(whole)


@pytest.mark.parametrize("name", FORMATS)
def test_any_content_is_read_or_refused(name, valid):
    examined(name, valid, 15)


@pytest.mark.slow
@pytest.mark.parametrize("name", FORMATS)
def test_much_of_any_content_is_read_or_refused(name, valid):
    examined(name, valid, 600)


def test_faults_are_seen(tmp_path):
    """Of readers that do what none may."""
    path = tmp_path / "a"
    path.write_bytes(b"0")
    file_fuzzing.watch()

    def fault(action):
        return file_fuzzing.fault(Format("a", make=path.write_bytes, read=action), path, b"1")

    assert fault(lambda path: None) == ""
    assert "KeyError" in fault(lambda path: {}["a"])
    assert "ValueError" in fault(lambda path: int("a"))
    assert "to write" in fault(lambda path: (tmp_path / "b").write_text("a"))
    assert "os.system" in fault(lambda path: os.system("true"))
    assert "subprocess.Popen" in fault(lambda path: subprocess.run(["true"], check=True))
    assert "os.mkdir" in fault(lambda path: (tmp_path / "c").mkdir())
    assert fault(FORMATS["a.npz"].read) == ""  # an error of ours, with the file's name
