"""The posterior of one observation by rounds: the exact one, and better than by one round of as many simulations."""

from typing import Any

import jax
import numpy as np
import numpyro.distributions as dist
import pytest
from scipy import stats

from numpyro_flows import fit_sequentially

SD, CENTRE = 0.05, np.array([1.0, -2.0, 2.95])
PRIOR = dist.Uniform(-3, 3).expand([3]).to_event(1)


def divergence(seed: int, **options: Any) -> float:
    """`KL(exact || flow)` of a normal measurement under a uniform prior, whose edge cuts the third coordinate."""
    rng = np.random.default_rng(seed)
    flow = fit_sequentially(
        jax.random.key(seed),
        PRIOR,
        lambda theta: theta + SD * rng.normal(size=theta.shape),
        CENTRE,
        progress_bar=False,
        **options,
    )
    exact = CENTRE + SD * rng.normal(size=(40_000, 3))
    exact = exact[(np.abs(exact) < 3).all(1)]
    log_prob = stats.norm.logpdf(exact, CENTRE, SD).sum(1) - stats.norm.logcdf(3, CENTRE, SD).sum()
    return float((log_prob - np.asarray(flow.log_prob(exact.astype(np.float32)))).mean())


@pytest.mark.slow
@pytest.mark.optimized  # by other rounding, trainings on so few rows end elsewhere
@pytest.mark.parametrize("seed", [0, 1])
def test_rounds_are_better_than_one(seed):
    """The flow is close to the exact posterior under the whole prior, although later rounds drew from a cut one."""
    by_rounds = divergence(seed, num_rounds=4, num_simulations=500)
    assert by_rounds < 0.5 * divergence(seed, num_rounds=1, num_simulations=2_000)
    assert by_rounds < 0.2


def simulate(theta):
    return theta


def test_data_beyond_all_simulations_bring_a_warning():
    data = np.array([0.0, 0.0, 9.0])
    options: dict[str, Any] = {"num_rounds": 1, "num_simulations": 100, "num_steps": 1, "progress_bar": False}
    with pytest.warns(UserWarning, match=r"got 9 at place 2, where all simulations lie between -2\.\d+ and 2\.\d+"):
        fit_sequentially(jax.random.key(0), PRIOR, simulate, data, **options)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"prior": 3.0}, TypeError, "prior expected"),
        ({"prior": dist.Normal(0, 1).expand([2])}, ValueError, r"batch shape \(2,\) and event shape \(\): .to_event"),
        ({"simulate": 1.0}, TypeError, "simulate expected"),
        ({"num_rounds": 0}, ValueError, "num_rounds expected at least 1, got 0"),
        ({"num_simulations": 10}, ValueError, "num_simulations expected at least 100, got 10"),
        ({"data": np.ones(2)}, ValueError, r"got \(1000, 3\) for 1000 parameters, and \(2,\)"),
        ({"data": np.array([1.0, np.nan, 0.0])}, ValueError, "data expected finite numbers"),
        ({"data": np.ones((3, 1))}, ValueError, r"data expected finite numbers of the shape \(size,\)"),
        ({"simulate": lambda theta: theta[:5]}, ValueError, r"got \(5, 3\) for 1000 parameters"),
    ],
)
def test_errors(change, error, message):
    arguments = {"prior": PRIOR, "simulate": simulate, "data": CENTRE} | change
    with pytest.raises(error, match=message):
        fit_sequentially(jax.random.key(0), **arguments)
