"""Whether captions can be read as a config asks for."""

from collections.abc import Mapping

from nrdm_jax.config.conditions import nearest_divisor, require


def check_text(c) -> None:
    t = c.text
    require(
        t.encoder not in ("t5", "clip") or bool(t.weights),
        "text.weights",
        f"is not set, and text.encoder={t.encoder} comes in no package",
        "give the folder of its weights, or choose minilm or bytes",
    )
    if t.encoder == "bytes":
        require(
            t.width % t.heads == 0,
            "text.heads",
            f"is {t.heads}, which does not divide text.width={t.width}",
            f"the nearest that does is {nearest_divisor(t.width, t.heads)}",
        )
        require(t.width >= 2, "text.width", f"is {t.width}, too small for positions", "give 2")


def check_text_parallel(c, mesh: Mapping[str, int]) -> None:
    """Of the sizes of a mesh's axes."""
    t, parts = c.text, mesh["tensor"]
    require(
        t.encoder != "bytes" or t.heads % parts == 0,
        "text.heads",
        f"is {t.heads}, not divisible by mesh.tensor={parts}",
        f"the nearest mesh.tensor that divides is {nearest_divisor(t.heads, parts)}",
    )
