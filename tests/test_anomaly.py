import jax
import jax.numpy as jnp
import numpy as np
import pytest

from numpyro_flows import FlowDistribution, anomaly_scores
from numpyro_flows.bijections import Affine

DIM = 50


@pytest.fixture(scope="module")
def flow():
    return FlowDistribution(Affine(jnp.zeros(DIM), 1.0))


def test_p_values_of_regular_rows_are_uniform(flow):
    reference, rows = (flow.sample(jax.random.key(seed), (2000,)) for seed in (0, 1))
    scores = anomaly_scores(flow, rows, reference)
    for p in (scores.p_density, scores.p_typicality):
        assert p.min() > 0
        assert p.max() <= 1
        for level in (0.01, 0.1, 0.5):
            # both the rows and the reference rows that make the threshold are draws
            assert np.mean(p <= level) == pytest.approx(level, abs=4 * np.sqrt(2 * level * (1 - level) / 2000))
    np.testing.assert_allclose(scores.log_prob, flow.log_prob(rows), rtol=1e-6)


def test_the_mode_is_no_typical_row(flow):
    reference = flow.sample(jax.random.key(0), (999,))
    scores = anomaly_scores(flow, np.stack([np.zeros(DIM), 3 * np.ones(DIM)]), reference)
    assert scores.p_density[0] == 1.0  # no density is larger than that of the mode
    assert scores.p_density[1] == 0.001
    np.testing.assert_array_equal(scores.p_typicality, [0.001, 0.001])


def test_errors(flow):
    with pytest.raises(ValueError, match="reference expected at least 2 rows"):
        anomaly_scores(flow, jnp.zeros((1, DIM)), jnp.zeros((0, DIM)))
    with pytest.raises(ValueError, match="expected rows of shape"):
        anomaly_scores(flow, jnp.zeros(DIM), jnp.zeros((3, DIM)))
