"""Many data sets of one model: as one by one, with one compilation."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest

from numpyro_flows import FlowVI

X = np.linspace(-1, 1, 20)
Y = np.random.default_rng(0).normal(2.0 + 3.0 * X, size=(3, 20))


def line(x, y, scale=1.0):
    a = numpyro.sample("a", dist.Normal(0, 10))
    b = numpyro.sample("b", dist.Normal(0, 10))
    numpyro.sample("y", dist.Normal(a + b * x, scale), obs=y)


@pytest.fixture(scope="module")
def fit():
    return FlowVI(line, progress_bar=False)


@pytest.fixture(scope="module")
def many(fit):
    return fit.run_many(jax.random.key(1), X, Y, in_axes=(None, 0))


def test_each_is_the_fit_of_its_own_data(fit, many):
    alone = fit.run(jax.random.split(jax.random.key(1), 3)[2], jnp.asarray(X), jnp.asarray(Y[2]))
    assert many.posteriors[2].certificate == alone.certificate
    assert many.table.loc[2, "log_evidence"] == alone.log_evidence
    assert many.table["certified"].tolist() == many.certified.tolist() == [True] * 3
    assert repr(many) == "ManyFits(3 of 3 certified)"


def test_posteriors_are_right(many):
    design = np.stack([np.ones(20), X], 1)
    precision = design.T @ design + np.eye(2) / 100
    for y, posterior in zip(Y, many.posteriors):
        mean, sd = np.linalg.solve(precision, design.T @ y), np.sqrt(np.diag(np.linalg.inv(precision)))
        draws = posterior.sample(jax.random.key(0), 4_000)
        for i, name in enumerate("ab"):
            assert abs(np.mean(draws[name]) - mean[i]) < 4.5 * sd[i] / np.sqrt(4_000)


def test_the_second_data_set_compiles_nothing(fit, many):
    with jax.log_compiles(), pytest.MonkeyPatch.context() as patch:
        compiled = []
        patch.setattr(jax.stages.Lowered, "compile", lambda *args: compiled.append(args))
        fit.run_many(jax.random.key(2), X, Y[:2], in_axes=(None, 0))
    assert not compiled


def test_a_data_set_that_fails_costs_only_its_own_row(fit):
    broken = np.stack([Y[0], np.full(20, np.nan)])
    with pytest.warns(UserWarning, match=r"1 of 2 fits are not certified \(1\): see the column `why` of `table`"):
        fits = fit.run_many(jax.random.key(0), X, broken, in_axes=(None, 0))
    assert fits.certified.tolist() == [True, False]
    assert fits.posteriors[1] is None
    assert "not finite" in fits.table.loc[1, "why"] or "NaN" in fits.table.loc[1, "why"]
    assert repr(fits) == "ManyFits(1 of 2 certified, 1 failed)"


@pytest.mark.parametrize(
    ("args", "in_axes", "match"),
    [
        ((X, Y), (0, 0), r"one number of data sets along in_axes=\(0, 0\), got the shapes \[\(20,\), \(3, 20\)\]"),
        ((X, Y), (0,), "one for each of 2 arguments"),
        ((X, Y), None, "one number of data sets"),
        ((X, Y), (None, 2), "one number of data sets"),
        ((X, Y[:0]), (None, 0), "one number of data sets"),
    ],
)
def test_arguments_without_data_sets(fit, args, in_axes, match):
    with pytest.raises(ValueError, match=match):
        fit.run_many(jax.random.key(0), *args, in_axes=in_axes)


def test_axes_are_integers(fit):
    with pytest.raises(TypeError, match="in_axes expected an integer or None"):
        fit.run_many(jax.random.key(0), X, Y, in_axes=(None, 0.0))


def test_all_may_fail(fit):
    with pytest.warns(UserWarning, match="2 of 2 fits are not certified"):
        fits = fit.run_many(jax.random.key(0), X, np.full((2, 20), np.nan), in_axes=(None, 0))
    assert fits.certified.tolist() == [False, False]
    assert {"khat", "log_evidence", "why"} <= set(fits.table.columns)


def test_a_checkpoint_is_of_one_fit(tmp_path):
    with pytest.raises(ValueError, match="checkpoint expected None"):
        FlowVI(line, checkpoint=tmp_path / "fit").run_many(jax.random.key(0), X, Y, in_axes=(None, 0))
