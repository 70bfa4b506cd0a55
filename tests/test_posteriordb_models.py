"""The benchmark's models: densities by hand on small data, and posteriordb's own draws where there is a clone of it."""

import os
from pathlib import Path

import jax
import numpy as np
import pytest
from numpyro.infer.util import log_density
from scipy import stats

from benchmarks.posteriordb.models import POSTERIORS, flatten, load, names
from numpyro_flows.inference.target import Target

DATABASE = Path(os.environ.get("POSTERIORDB", Path(__file__).parents[2] / "shared" / "posteriordb"))


def density(name, fields, sites):
    """The log density of a model's sites, given the fields of a small data set."""
    model, arguments = POSTERIORS[name]
    return jax.jit(lambda sites: log_density(model, arguments(fields), {}, sites)[0])(sites)


def test_a_regression_by_hand(x64):
    """`mom_work` of 1 to 4 becomes three indicators; the priors are flat."""
    fields = {"mom_work": np.array([1.0, 2.0, 3.0, 4.0, 4.0]), "kid_score": np.array([60.0, 80.0, 75.0, 90.0, 85.0])}
    sites = {"beta": np.array([70.0, 5.0, 3.0, 15.0]), "sigma": 4.0}
    mean = np.array([70.0, 75.0, 73.0, 85.0, 85.0])
    expected = stats.norm.logpdf(fields["kid_score"], mean, 4.0).sum()
    name = "kidiq_with_mom_work-kidscore_mom_work"
    np.testing.assert_allclose(density(name, fields, sites), expected, rtol=1e-10)


def test_a_garch_by_hand(x64):
    y = np.array([0.3, -1.2, 0.8, 2.1])
    sites = {"mu": 0.1, "alpha0": 0.4, "alpha1": 0.3, "beta1": 0.2}
    variance, expected = 1.5**2, 0.0
    for now in y:
        expected += stats.norm.logpdf(now, 0.1, np.sqrt(variance))
        variance = 0.4 + 0.3 * (now - 0.1) ** 2 + 0.2 * variance
    np.testing.assert_allclose(density("garch-garch11", {"y": y, "sigma1": 1.5}, sites), expected, rtol=1e-10)


def test_an_autoregression_by_hand(x64):
    fields = {"K": 2, "y": np.array([1.0, 0.5, -0.3, 0.8, 1.1])}
    sites = {"alpha": 0.2, "beta": np.array([0.5, -0.4]), "sigma": 0.7}
    y = fields["y"]
    mean = [0.2 + 0.5 * y[t - 1] - 0.4 * y[t - 2] for t in range(2, 5)]
    expected = stats.norm.logpdf(y[2:], mean, 0.7).sum()
    expected += stats.norm.logpdf([0.2, 0.5, -0.4], 0, 10).sum() + stats.halfcauchy.logpdf(0.7, scale=2.5)
    np.testing.assert_allclose(density("arK-arK", fields, sites), expected, rtol=1e-10)


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


@pytest.mark.slow
@pytest.mark.skipif(
    not (DATABASE / "posterior_database").is_dir(),
    reason=f"no posteriordb at {DATABASE}: set POSTERIORDB to a clone of it",
)
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

    log_densities, sites = evaluate(site_values(target, reference))
    scalars = flatten(sites)
    assert reference.keys() <= scalars.keys()
    for site, draws in reference.items():
        np.testing.assert_allclose(scalars[site], draws, rtol=1e-6, atol=1e-9)
    # of draws of a near-Gaussian posterior its variance is dim / 2; a wrong model's is far larger
    assert np.isfinite(log_densities).all()
    assert log_densities.var() < 20 * target.dim / 2
