"""The benchmark's models against posteriordb's own draws."""

import os
from pathlib import Path

import jax
import numpy as np
import pytest

from benchmarks.posteriordb.models import flatten, load, names
from numpyro_flows.target import Target

DATABASE = Path(os.environ.get("POSTERIORDB", Path(__file__).parents[2] / "shared" / "posteriordb"))

pytestmark = pytest.mark.skipif(
    not (DATABASE / "posterior_database").is_dir(),
    reason=f"no posteriordb at {DATABASE}: set POSTERIORDB to a clone of it",
)


def site_values(target: Target, reference: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Reference draws as the model's latent sites."""
    theta_trans = {}
    if "theta_trans" in target.site_shapes:  # whose draws are not given
        theta = np.stack([reference[f"theta[{i}]"] for i in range(1, 9)])
        scaled = (theta - reference["mu"]) / reference["tau"]
        theta_trans = {f"theta_trans[{i}]": row for i, row in enumerate(scaled, 1)}
    known = reference | theta_trans
    return {
        name: np.stack([known[f"{name}[{i + 1}]"] for i in range(shape[0])], axis=1) if shape else known[name]
        for name, shape in target.site_shapes.items()
    }


@pytest.mark.parametrize("name", names())
def test_a_model_has_the_reference_sites_and_a_density_at_their_draws(name, x64):
    posterior = load(DATABASE, name)
    reference = {site: draws[::500] for site, draws in posterior.reference.items()}
    assert {draws.size for draws in posterior.reference.values()} == {10_000}
    target = Target(posterior.model, jax.random.key(0), posterior.args)

    @jax.jit
    @jax.vmap
    def evaluate(sites):
        x = target.unconstrain(sites)
        return target.log_density(x), target.constrain(x)

    log_density, sites = evaluate(site_values(target, reference))
    scalars = flatten(sites)
    assert reference.keys() <= scalars.keys()
    for site, draws in reference.items():
        np.testing.assert_allclose(scalars[site], draws, rtol=1e-6, atol=1e-9)
    # of draws of a near-Gaussian posterior its variance is dim / 2; a wrong model's is far larger
    assert np.isfinite(log_density).all()
    assert log_density.var() < 20 * target.dim / 2
