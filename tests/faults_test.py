"""Every row of bad configs and hostile files is answered as the table of faults says."""

import pytest

from benchmarks import bad_configs, fault_rows, hostile_files
from benchmarks.hostile_reading import row

ROWS = [*bad_configs.rows(), *hostile_files.rows()]


@pytest.mark.parametrize("fault", ROWS, ids=lambda fault: f"{fault.group}: {fault.name}")
def test_a_fault_is_answered_as_it_should_be(fault, tmp_path):
    answer = fault_rows.seen(fault, tmp_path)
    wanted = fault.expected_code, fault.expected_message
    assert fault_rows.is_as_expected(fault, answer), f"wanted {wanted}, seen {answer}"


def test_rows_have_names_of_their_own_and_say_what_is_expected():
    assert len({(fault.group, fault.name) for fault in ROWS}) == len(ROWS)
    assert all(fault.expected_message and fault.expected_code in (2, 65) for fault in ROWS)
    for part in (bad_configs, hostile_files):
        assert len(part.rows()) >= 40


def test_another_code_or_message_is_not_as_expected():
    fault = fault_rows.Row("a", "b", 65, "no such", lambda scratch: (65, ""))
    assert fault_rows.is_as_expected(fault, (65, "there is no such file"))
    assert not fault_rows.is_as_expected(fault, (2, "there is no such file"))
    assert not fault_rows.is_as_expected(fault, (65, "there is one"))


@pytest.mark.parametrize("name", ["executed", "elsewhere"])
def test_what_a_file_has_done_is_seen(name, tmp_path):
    def read(inside):
        (inside.parent / name).touch()
        return 65, "as it should be"

    one = row("a", 65, "as it", lambda inside: inside, read)
    assert fault_rows.seen(one, tmp_path)[0] == -1
