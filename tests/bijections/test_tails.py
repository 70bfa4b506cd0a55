"""What the laws do not see: how fast tails grow, and parameters at their limits."""

import jax.numpy as jnp
import numpy as np
import pytest

from numpyro_flows.bijections import SinhArcsinh


def test_powers_of_the_tails(x64):
    """`|y|` grows like `|x|^l` on the left and `|x|^r` on the right."""
    params = jnp.arctanh(jnp.log(jnp.array([2.0, 0.5])) / 1.1) * 1.1
    x = jnp.array([-1e9, -1e8, 1e8, 1e9])
    y, _ = SinhArcsinh().transform_and_log_derivative(x, jnp.broadcast_to(params, (4, 2)))
    # p(t) goes to its asymptote like 1 / t: at |t| = 20 the slopes are right to a few per mille
    np.testing.assert_allclose(np.log10(y[0] / y[1]), 2.0, rtol=5e-3)
    np.testing.assert_allclose(np.log10(y[3] / y[2]), 0.5, rtol=5e-3)


@pytest.mark.parametrize("params", [[0.0, 0.0], [20.0, -20.0], [-20.0, 20.0], [20.0, 20.0], [1e-9, -1e-9]])
def test_inverse_at_the_limits(params, x64):
    x = jnp.linspace(-30.0, 30.0, 601)
    params = jnp.broadcast_to(jnp.array(params), (601, 2))
    y, log_derivative = SinhArcsinh().transform_and_log_derivative(x, params)
    assert (np.diff(y) > 0).all()
    back, log_derivative_back = SinhArcsinh().inverse_and_log_derivative(y, params)
    np.testing.assert_allclose(back, x, atol=1e-9)
    np.testing.assert_allclose(log_derivative_back, -log_derivative, atol=1e-9)


def test_errors():
    with pytest.raises(ValueError, match="SinhArcsinh expected max_log_power > 0, got 0"):
        SinhArcsinh(0.0)
