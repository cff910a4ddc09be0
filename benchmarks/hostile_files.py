"""Files that were made to harm whoever reads them: each is refused with an exit code and a message
that names it; none is executed, none makes a file elsewhere or takes the memory that it asks
for."""

from benchmarks import (
    hostile_pictures,
    hostile_runs,
    hostile_scans,
    hostile_sets,
    hostile_weights,
)
from benchmarks.fault_rows import Row


def rows() -> list[Row]:
    parts = (hostile_weights, hostile_pictures, hostile_scans, hostile_sets, hostile_runs)
    return [row for part in parts for row in part.rows()]
