"""The table of faults in the documentation is that of its rows, and they are what happens."""

import pytest

from benchmarks import fault_rows, fault_table, process_faults

ROWS = process_faults.rows()


def test_names_and_codes_of_the_table_are_those_of_the_rows():
    found = [
        (group, *line.removeprefix("| ").split(" | ")[:3])
        for group, table in fault_table.written().items()
        for line in table.splitlines()[2:]
    ]
    rows = fault_table.rows()
    codes = [str(row.expected_code) for row in rows]
    assert found == [(row.group, row.name, c, c) for row, c in zip(rows, codes, strict=True)]
    assert len({(row.group, row.name) for row in rows}) == len(rows)


def test_a_message_is_shown_on_one_line_with_the_part_that_was_expected(tmp_path):
    row = fault_rows.Row("a fault", "disk", 74, "a part", lambda scratch: (74, ""))
    shown = fault_table.shortened(fault_table.Line(row, 74, "x" * 200 + " a part | of\nit `y`"))
    assert shown == "`…a part \\| of it 'y'`"
    line = fault_table.tried(
        fault_rows.Row("it", "disk", 0, "run", lambda place: (0, f"{place}/run")), tmp_path
    )
    assert line.message == "…/run" and line.is_equal and not list(tmp_path.iterdir())


@pytest.mark.slow
@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row.group}: {row.name}")
def test_what_befalls_processes(row, tmp_path):
    answer = fault_rows.seen(row, tmp_path)
    assert fault_rows.is_as_expected(row, answer), answer
