"""What holds of flows: what they make of a density is one, and who depends on whom."""

import jax
import numpy as np
import pytest
from scipy.stats import norm

from numpyro_flows import flows
from tests.bijections.cases import perturbed


@pytest.mark.slow
@pytest.mark.parametrize(("dim", "grid_size"), [(1, 16001), (2, 401)])
@pytest.mark.parametrize("recipe", [flows.realnvp, flows.nsf_coupling])
def test_density_integrates_to_one(recipe, dim, grid_size):
    grid = np.linspace(-12.0, 12.0, grid_size, dtype="float32")
    points = np.stack(np.meshgrid(*[grid] * dim), axis=-1).reshape(-1, dim)

    @jax.jit
    def log_density(key, y):
        bijection = perturbed(recipe(key, dim), scale=0.2 if dim == 1 else 0.07)
        x, log_det = jax.vmap(bijection.inverse_and_log_det)(y)
        return jax.scipy.stats.norm.logpdf(x).sum(-1) + log_det

    density = np.exp(np.float64(log_density(jax.random.key(0), points)))
    normal = norm.pdf(points).prod(-1)
    cell = (grid[1] - grid[0]) ** dim
    assert abs(density.sum() * cell - 1) < 1e-3
    assert 0.5 * np.abs(density - normal).sum() * cell > 0.1  # not the density that the flow started from


def test_every_coordinate_conditions_and_is_conditioned():
    @jax.jit
    def jacobian(key):
        return jax.jacfwd(perturbed(flows.realnvp(key, 7)).transform)(np.ones(7))

    assert (np.abs(jacobian(jax.random.key(0))) > 0).all()
