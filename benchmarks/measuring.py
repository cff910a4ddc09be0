"""What benchmarks share."""

import importlib.util

from nrdm_jax.command_line import print_result
from nrdm_jax.processes.exit_codes import USAGE, Stop

__all__ = ["print_result", "require"]


def require(*packages: str, extra: str) -> None:
    """Raises:
    Stop: a package is not installed; exit code 2, naming the extra.
    """
    missing = [name for name in packages if importlib.util.find_spec(name) is None]
    if missing:
        raise Stop(
            USAGE,
            f"{', '.join(missing)} not installed; bash launch/local.sh --setup-only --extras={extra}",
        )
