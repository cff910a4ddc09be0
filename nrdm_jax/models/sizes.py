"""Published sizes, as data. Imports nothing, so that a config can be checked without jax."""

# DiT (arXiv 2212.09748), table 1: DiT(**DIT["XL"], ...).
DIT = {
    "S": {"depth": 12, "width": 384, "heads": 6},
    "B": {"depth": 12, "width": 768, "heads": 12},
    "L": {"depth": 24, "width": 1024, "heads": 16},
    "XL": {"depth": 28, "width": 1152, "heads": 16},
}
