import jax
import jax.numpy as jnp
import numpy as np
import pytest

from numpyro_flows.inference.newton import Counted, climb
from numpyro_flows.inference.settings import FlowVISettings
from tests.test_gaussian import on_host

SETTINGS = FlowVISettings()


@pytest.mark.parametrize("scale", [1e-5, 1.0, 1e5])
def test_optimum_and_curvature_at_any_scale(scale, x64):
    def log_density(x):
        z = jnp.array([x[0] / scale, x[1] - 0.5 * x[0] / scale])
        return -jnp.sum(0.5 * (z - 1.0) ** 2 + 0.25 * (z - 1.0) ** 4)  # curvature 1 at z = 1

    found = climb(on_host(log_density), np.random.default_rng(0).uniform(-2, 2, (4, 2)), np.eye(2), SETTINGS)
    assert found.converged.all()
    np.testing.assert_allclose(found.x / [scale, 1.0], np.tile([1.0, 1.5], (4, 1)), rtol=1e-3)
    jacobian = np.array([[1 / scale, 0.0], [-0.5 / scale, 1.0]])
    covariance = found.factor @ found.factor.swapaxes(1, 2)
    whitened = jacobian @ covariance @ jacobian.T
    # of the point before, as much as 0.3 standard deviations away, where the curvature is up to 2% larger
    np.testing.assert_allclose(whitened, np.tile(np.eye(2), (4, 1, 1)), atol=0.02)


def test_a_saddle_is_left(x64):
    found = climb(
        on_host(lambda x: x[0] ** 2 - 0.1 * x[0] ** 4 - x[1] ** 2), np.array([[1e-3, 1.0]]), np.eye(2), SETTINGS
    )
    assert found.converged[0]
    np.testing.assert_allclose(abs(found.x[0]), [np.sqrt(5.0), 0.0], atol=1e-3)


def test_starts_that_are_not_finite_stay():
    found = climb(on_host(lambda x: jnp.log(x[0]) - x[0]), np.array([[-1.0], [0.2]], np.float32), np.eye(1), SETTINGS)
    assert found.converged.tolist() == [False, True]
    assert found.x[0] == -1.0
    np.testing.assert_allclose(found.x[1], 1.0, atol=0.02)


def test_no_optimum():
    """A density that grows for ever: the climb ends, and says that it did not arrive."""
    found = climb(on_host(lambda x: jax.nn.log_sigmoid(x[0]) + x[0]), np.zeros((1, 1), np.float32), np.eye(1), SETTINGS)
    assert not found.converged[0]


def test_a_curvature_that_serves_several_steps(x64):
    """The same optima and curvatures, with a third fewer gradients."""
    rng = np.random.default_rng(0)
    rows = jnp.asarray(rng.normal(size=(1_000, 50)) * np.geomspace(0.2, 5.0, 50))
    labels = jnp.asarray(rng.uniform(size=1_000) < 0.5, float)

    def log_density(x):
        logits = rows @ x
        return jnp.sum(labels * logits - jax.nn.softplus(logits)) - 0.5 * jnp.sum((x / 2.0) ** 2)

    starts = rng.uniform(-2, 2, (2, 50))
    every, kept = Counted(on_host(log_density)), Counted(on_host(log_density))
    new = climb(every, starts, np.eye(50), SETTINGS)
    some = climb(kept, starts, np.eye(50), FlowVISettings(keep_curvature=True))
    assert new.converged.all()
    assert some.converged.all()
    assert kept.num < 0.67 * every.num
    np.testing.assert_allclose(some.log_density, new.log_density, atol=1e-3)
    widths, expected = (np.linalg.slogdet(climbs.factor)[1] for climbs in (some, new))
    np.testing.assert_allclose(widths, expected, atol=0.1)


def test_a_saddle_is_left_with_a_kept_curvature(x64):
    settings = FlowVISettings(keep_curvature=True)
    found = climb(
        on_host(lambda x: x[0] ** 2 - 0.1 * x[0] ** 4 - jnp.sum(x[1:] ** 2)),
        np.array([[1e-3, 1.0, 1.0, 1.0, 1.0, 1.0]]),
        np.eye(6),
        settings,
    )
    assert found.converged[0]
    np.testing.assert_allclose(abs(found.x[0]), [np.sqrt(5.0), *[0.0] * 5], atol=1e-2)
