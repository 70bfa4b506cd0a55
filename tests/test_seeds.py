"""Keys by the name of their use."""

import jax
import numpy as np
import pytest

from numpyro_flows.training.seeds import named_key


@pytest.mark.parametrize("make_key", [jax.random.key, jax.random.PRNGKey], ids=["typed", "legacy"])
def test_named_keys(make_key):
    key = make_key(0)
    draws = {name: np.asarray(jax.random.normal(named_key(key, name), (3,))) for name in ("encoder", "field")}
    assert (draws["encoder"] != draws["field"]).all()
    assert (draws["encoder"] != np.asarray(jax.random.normal(named_key(make_key(1), "encoder"), (3,)))).all()
    within_jit = jax.jit(lambda key: jax.random.normal(named_key(key, "encoder"), (3,)))(key)
    np.testing.assert_array_equal(within_jit, draws["encoder"])
