"""The words of the checks: a condition on a field, with what is wrong and the fix."""

import math

MOST_FACTOR = 2**20  # that is tried


def get(config, field: str):
    for key in field.split("."):
        config = config[key]
    return config


def require(condition: bool, field: str, problem: str, fix: str) -> None:
    if not condition:
        raise ValueError(f"{field} {problem}; {fix}")


def nearest_divisor(whole: int, wanted: int) -> int:
    """Of those that are at most `MOST_FACTOR`, or have such a factor: of all, below its square."""
    small = [d for d in range(1, min(math.isqrt(whole), MOST_FACTOR) + 1) if whole % d == 0]
    return min(sorted(small + [whole // d for d in small]), key=lambda d: abs(d - wanted))


def is_number(value) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def is_int(value) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def parses_as_number(text) -> bool:
    try:
        return math.isfinite(float(text))
    except (TypeError, ValueError):
        return False
