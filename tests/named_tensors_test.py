import numpy as np
import pytest

from nrdm_jax import named_tensors


def test_what_is_missing_or_of_another_shape_is_named():
    tensors = {"a": np.zeros(3), "b": np.zeros((2, 2)), "more": np.zeros(1)}
    with pytest.raises(ValueError) as error:
        named_tensors.select(tensors, {"a": (4,), "b": (None, 2), "c": (1,)}, "that network")
    assert str(error.value) == (
        "these are not the weights of that network: missing: c; a is (3,) and not (4,)"
    )
    assert list(named_tensors.select(tensors, {"b": (None, 2)}, "it")) == ["b"]
    with pytest.raises(ValueError, match="missing: t0, .*, t11 and 8 more$"):
        named_tensors.select({}, {f"t{i}": () for i in range(20)}, "it")
