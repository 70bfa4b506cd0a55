"""What latent ODEs refuse."""

from typing import Any

import equinox as eqx
import jax
import numpy as np
import pytest
from numpyro.handlers import seed
from numpyro.infer import SVI, Trace_ELBO
from numpyro.optim import Adam

from numpyro_flows import flows
from tests.latent_odes import DOSES, fit_small, small, untrained, untrained_with_doses, waves


def _changed(array, index, value):
    array = array.astype(float).copy()
    array[index] = value
    return array


TIMES, VALUES = waves()
BAD_SERIES = {
    "strings": ((TIMES.astype(str), VALUES), TypeError, "times expected real numbers, got an array of type <U"),
    "two axes": ((TIMES, VALUES[..., 0]), ValueError, r"values expected the shape \(num, length, .*\), got \(6, 5\)"),
    "no series": ((TIMES[:0], VALUES[:0]), ValueError, "at least one series, time and coordinate"),
    "other times": ((TIMES[:, :3], VALUES), ValueError, r"times expected the shape \(6, 5\) of values, got \(6, 3\)"),
    "other mask": ((TIMES, VALUES, np.ones((6, 3), bool)), ValueError, r"mask expected the shape \(6, 5\)"),
    "numbers as mask": ((TIMES, VALUES, np.ones((6, 5))), TypeError, "mask expected booleans, got an array of float64"),
    "backwards": ((TIMES[:, ::-1], VALUES), ValueError, "times expected sorted along each series, .* 6 of 6 series"),
    "nan": ((TIMES, _changed(VALUES, (2, 1), np.nan)), ValueError, r"finite numbers.*mask=.* 1 of 6 series: 2"),
    "nan time": ((_changed(TIMES, (3, 4), np.nan), VALUES), ValueError, "times expected finite numbers.*: 3"),
    "mask of other features": (
        (TIMES, VALUES, np.ones((6, 5, 3), bool)),
        ValueError,
        r"mask expected the shape \(6, 5\) or \(6, 5, 2\), got \(6, 5, 3\)",
    ),
    "nothing": ((TIMES, VALUES, np.arange(6)[:, None] * np.ones(5) > 0), ValueError, "at least one value.*: 0"),
}


@pytest.mark.parametrize(("series", "error", "message"), BAD_SERIES.values(), ids=BAD_SERIES)
def test_bad_series(series, error, message):
    latent_ode = untrained()
    with pytest.raises(error, match=message):
        latent_ode.encode(*series)
    with pytest.raises(error, match=message):
        fit_small(jax.random.key(0), *series)
    with pytest.raises(error, match=message):
        SVI(latent_ode.model, latent_ode.guide, Adam(1e-3), Trace_ELBO()).run(jax.random.key(0), 1, *series)


def test_bad_covariates():
    plain, dosed = untrained(), untrained_with_doses()
    for covariates, message in (
        (None, r"covariates expected the shape \(6, 1\), got None"),
        (DOSES[:, 0], r"covariates expected the shape \(6, 1\), got \(6,\)"),
        (DOSES[:5], r"covariates expected the shape \(6, 1\), got \(5, 1\)"),
        (np.where(DOSES == 0, np.nan, DOSES), "covariates expected finite numbers, .* 1 of 6 series: 4"),
    ):
        for program in (dosed.encode, dosed.predict, dosed.solver_error, seed(dosed.model, 0), seed(dosed.guide, 0)):
            with pytest.raises(ValueError, match=message):
                program(TIMES, VALUES, None, covariates)
        for method in (
            lambda known=covariates: dosed.follow(np.zeros((6, 2)), [1.0], known),
            lambda known=covariates: dosed.sample(jax.random.key(0), 6, [1.0], known),
            lambda known=covariates: dosed.to_base(np.zeros((6, 2)), known),
        ):
            with pytest.raises(ValueError, match=message):
                method()
    with pytest.raises(ValueError, match=r"z0 expected the shape \(\*batch, num, 2\), got \(2,\)"):
        dosed.to_base(np.zeros(2), DOSES)
    with pytest.raises(ValueError, match=r"covariates expected None without cov_dim, got an array of .*cov_dim="):
        plain.encode(TIMES, VALUES, None, DOSES)
    for covariates, message in (
        (DOSES[:, 0], r"covariates expected the shape \(num, cov_dim\), got \(6,\)"),
        (DOSES[:5], r"covariates expected the shape \(6, 1\), got \(5, 1\)"),
        (0 * DOSES, r"covariates expected coordinates that vary, got constant ones: \[0\]"),
        (np.full((6, 1), np.nan), "covariates expected finite numbers"),
    ):
        with pytest.raises(ValueError, match=message):
            fit_small(jax.random.key(0), TIMES, VALUES, None, covariates)


def test_other_bad_arguments():
    latent_ode = untrained()
    with pytest.raises(ValueError, match=r"times expected from 1.0 on, where the latent path starts, got 0"):
        latent_ode.encode(TIMES - 1, VALUES)
    with pytest.raises(ValueError, match=r"values expected the shape \(num, length, 2\), got \(6, 5, 1\)"):
        latent_ode.encode(TIMES, VALUES[..., :1])
    with pytest.raises(ValueError, match=r"z0 expected the shape \(num, 2\), got \(3,\)"):
        latent_ode.follow(np.zeros(3), [1.0])
    with pytest.raises(ValueError, match=r"at expected the shape \(at,\) or \(6, at\), got \(2, 5\)"):
        latent_ode.predict(TIMES, VALUES, at=TIMES[:2])
    for at in ([2.0, 1.0], [0.5], [np.nan]):
        with pytest.raises(ValueError, match=r"at expected sorted, finite times from 1.0 on"):
            latent_ode.predict(TIMES, VALUES, at=at)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"latent_dim": 0}, "latent_dim expected at least 1, got 0"),
        ({"window": (3.0, 1.0)}, r"window expected two finite times, the later one second, got \(3.0, 1.0\)"),
        ({"dropout": 1.0}, r"dropout expected a number in \[0, 1\), got 1.0"),
        ({"center": [0.0]}, r"center expected 2 finite numbers, got \[0.0\]"),
        ({"spread": [1.0, 0.0]}, "spread expected positive numbers"),
        ({"cov_dim": 0}, "cov_dim expected at least 1, got 0"),
        ({"cov_dim": 2, "cov_spread": [1.0, -1.0]}, "cov_spread expected positive numbers"),
        ({"cov_center": [1.0]}, r"cov_center expected 0 finite numbers, got \[1.0\]"),
        (
            {"cov_dim": 2, "flow": lambda key, dim, cond_dim: flows.realnvp(key, 2)},
            r"bijection of shape \(2,\) and cond_shape \(2,\), got shape \(2,\) and cond_shape None",
        ),
        (
            {"flow": lambda key, dim: flows.realnvp(key, 3)},
            r"bijection of shape \(2,\) and cond_shape None, got shape \(3,\)",
        ),
    ],
    ids=lambda case: str(list(case)) if isinstance(case, dict) else "",
)
def test_bad_latent_odes(options, message):
    with pytest.raises(ValueError, match=message):
        eqx.filter_eval_shape(lambda: small(jax.random.key(0), 2, **options))


@pytest.mark.parametrize("name", ["num_steps", "batch_size", "learning_rate", "validation"])
def test_bad_numbers_of_a_fit(name):
    options: dict[str, Any] = {name: 0}
    with pytest.raises(ValueError, match=f"{name} expected .*, got 0"):
        fit_small(jax.random.key(0), TIMES, VALUES, **options)


@pytest.mark.parametrize("batch_size", [0, -1, 7, 2.5, "2", True])
@pytest.mark.parametrize("method", ["model", "guide"])
def test_bad_batches_of_model_and_guide(method, batch_size):
    program = seed(getattr(untrained(), method), 0)
    error = ValueError if type(batch_size) is int else TypeError
    with pytest.raises(error, match=r"batch_size expected (at least 1|at most the 6 series|an integer), got "):
        program(TIMES, VALUES, batch_size=batch_size)


def test_data_that_cannot_be_fitted():
    with pytest.raises(ValueError, match="at least 2 series, one of them to choose by, got 1"):
        fit_small(jax.random.key(0), TIMES[:1], VALUES[:1])
    with pytest.raises(ValueError, match=r"each coordinate in at least one series, got none of: \[1\]"):
        fit_small(jax.random.key(0), TIMES, VALUES * [1.0, np.nan], np.isfinite(VALUES * [1.0, np.nan]))
    with pytest.raises(ValueError, match=r"coordinates that vary, got constant ones: \[1\]"):
        fit_small(jax.random.key(0), TIMES, VALUES * [1.0, 0.0])
    with pytest.raises(ValueError, match=r"times expected at least two different ones, got 2\.0 alone"):
        fit_small(jax.random.key(0), np.full((6, 1), 2.0), VALUES[:, :1])
