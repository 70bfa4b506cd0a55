"""Linear measurements: posteriors with known answers, by every kind of operator."""

from typing import Any

import jax
import jax.numpy as jnp
import lineax
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro.infer import Predictive
from numpyro.infer.util import log_density
from scipy import stats

from numpyro_flows import FlowDistribution, LinearMeasurement, bijections, fit_density

multivariate_normal: Any = stats.multivariate_normal  # whose types know integers only

RNG = np.random.default_rng(0)
MATRIX = RNG.normal(size=(3, 4)).astype(np.float32)
NOISE = np.array([0.5, 1.0, 2.0], np.float32)
ROOT = np.tril(RNG.normal(size=(4, 4)), -1) + np.diag([0.5, 1.0, 2.0, 3.0])
PRIOR = dist.MultivariateNormal(jnp.arange(4.0), scale_tril=jnp.asarray(ROOT, jnp.float32))
Y = np.array([1.0, -2.0, 0.5], np.float32)
OPERATORS = {
    "matrix": MATRIX,
    "function": lambda x: MATRIX @ x,
    "lineax": lineax.MatrixLinearOperator(jnp.asarray(MATRIX)),
    "list": MATRIX.tolist(),
}


def model(operator, y=None):
    x = numpyro.sample("x", PRIOR)
    numpyro.sample("y", LinearMeasurement(operator, NOISE)(x), obs=y)


@pytest.mark.parametrize("operator", OPERATORS.values(), ids=OPERATORS.keys())
def test_the_joint_density_is_that_of_prior_and_noise(operator):
    x = RNG.normal(size=4).astype(np.float32)
    found, _ = log_density(model, (operator, Y), {}, {"x": jnp.asarray(x)})
    noise = multivariate_normal(MATRIX @ x, np.diag(NOISE**2)).logpdf(Y)
    prior = multivariate_normal(np.arange(4.0), ROOT @ ROOT.T).logpdf(x)
    assert np.allclose(float(found), noise + prior, rtol=1e-5)


def test_the_posterior_of_a_gaussian_prior_is_the_closed_form():
    """By Bayes' theorem in closed form: the joint density over the posterior's is the evidence, at every `x`."""
    precision = MATRIX.T @ np.diag(NOISE**-2.0) @ MATRIX + np.linalg.inv(ROOT @ ROOT.T)
    mean = np.linalg.solve(precision, MATRIX.T @ (Y / NOISE**2) + np.linalg.solve(ROOT @ ROOT.T, np.arange(4.0)))
    posterior = multivariate_normal(mean, np.linalg.inv(precision))
    evidence = multivariate_normal(MATRIX @ np.arange(4.0), MATRIX @ ROOT @ ROOT.T @ MATRIX.T + np.diag(NOISE**2))
    at = jnp.asarray(RNG.normal(size=(5, 4)), jnp.float32)
    joint = jax.vmap(lambda x: log_density(model, (MATRIX, Y), {}, {"x": x})[0])(at)
    assert np.allclose(joint - posterior.logpdf(at), evidence.logpdf(Y), atol=1e-3)


@pytest.mark.parametrize("operator", OPERATORS.values(), ids=OPERATORS.keys())
def test_batches_of_events_are_measured_one_by_one(operator):
    x = RNG.normal(size=(2, 5, 4)).astype(np.float32)
    y = LinearMeasurement(operator, NOISE)(x)
    assert (y.batch_shape, y.event_shape) == ((2, 5), (3,))
    assert np.allclose(y.mean, x @ MATRIX.T, atol=1e-5)
    assert LinearMeasurement(operator, 1.0)(np.zeros((0, 4))).batch_shape == (0,)


@pytest.mark.slow
def test_images_are_measured_by_functions_and_by_matrices_of_flat_pixels():
    images = RNG.normal(size=(5, 8, 8)).astype(np.float32)
    half = LinearMeasurement(lambda image: image[:, :4], 0.1, event_dim=2)(images)
    total = LinearMeasurement(np.ones((1, 64)), 0.1, event_dim=2)(images)
    whole = LinearMeasurement(lambda image: image.sum(), 0.1, event_dim=2)(images)
    assert (half.batch_shape, half.event_shape) == ((5,), (8, 4))
    assert np.array_equal(half.mean, images[:, :, :4])
    assert (total.event_shape, whole.event_shape) == ((1,), ())
    assert np.allclose(whole.mean, images.sum((1, 2)), atol=1e-4)
    assert np.allclose(total.mean[:, 0], whole.mean, atol=1e-4)


def test_in_jit_vmap_plates_and_predictive():
    def images(num, y=None):
        with numpyro.plate("images", num):
            x = numpyro.sample("x", PRIOR)
            numpyro.sample("y", LinearMeasurement(lambda x: x[:2], 0.1)(x), obs=y)

    drawn = Predictive(images, num_samples=200)(jax.random.key(0), 50)
    assert drawn["y"].shape == (200, 50, 2)
    error = (drawn["y"] - drawn["x"][..., :2]).ravel()  # 20,000 of them, whose sd has a relative error of 1/200
    assert abs(error.std() - 0.1) < 4 * 0.1 / 200
    noise = jnp.full(2, 0.1)
    score = jax.jit(jax.vmap(lambda x: LinearMeasurement(lambda x: x[:2], noise)(x).log_prob(jnp.zeros(2))))
    assert np.allclose(score(jnp.zeros((3, 4))), 2 * dist.Normal(0, 0.1).log_prob(0.0))


def test_noise_and_operator_may_be_sites():
    def blur(width, x):
        return jnp.convolve(x, jnp.exp(-(jnp.arange(-1.0, 2.0) ** 2) / width), mode="same")

    def unknown(y=None):
        x = numpyro.sample("x", PRIOR)
        width = numpyro.sample("width", dist.HalfNormal(1.0))
        noise = numpyro.sample("noise", dist.HalfNormal(1.0))
        numpyro.sample("y", LinearMeasurement(lambda x: blur(width, x), noise)(x), obs=y)

    at = {"x": jnp.ones(4), "width": jnp.array(2.0), "noise": jnp.array(0.5)}
    found = jax.jit(lambda at: log_density(unknown, (jnp.ones(4),), {}, at)[0])
    slope = jax.grad(found)(at)
    assert np.isfinite(found(at))
    assert all(np.isfinite(part).all() and (part != 0).any() for part in slope.values())


NOT_LINEAR = {
    "square": jnp.square,
    "affine": lambda x: x + 1.0,
    "clip": lambda x: jnp.clip(x, -16.0, 16.0),
    "log": jnp.log,
    "sort": jnp.sort,
    "beside a large output": lambda x: jnp.concatenate([1e6 * x[:1], jnp.abs(x[1:])]),
    "a small offset": lambda x: x + 1e-4,
}
LINEAR = {
    "sums": jnp.cumsum,
    "zero": jnp.zeros_like,
    "blur": lambda x: jnp.convolve(x, jnp.array([0.2, 0.5, 0.3])),
    "slice": lambda x: x[::2],
}


@pytest.mark.parametrize("function", NOT_LINEAR.values(), ids=NOT_LINEAR.keys())
def test_a_function_that_is_not_linear_is_refused(function):
    with pytest.raises(ValueError, match="expected a linear function"):
        LinearMeasurement(function, 1.0)(jnp.ones(3))
    with pytest.raises(ValueError, match="expected a linear function"):
        jax.jit(lambda x: LinearMeasurement(function, 1.0)(x).mean)(jnp.ones(3))


def test_complex_outputs_are_refused():
    with pytest.raises(TypeError, match="stack real and imaginary parts"):
        LinearMeasurement(jnp.fft.rfft, 1.0)(jnp.ones(4))


@pytest.mark.parametrize("noise", [0.0, -1.0, jnp.nan])
def test_noise_within_jit(noise):
    density = jax.jit(lambda noise: LinearMeasurement(MATRIX, noise)(jnp.ones(4)).log_prob(Y))
    assert np.isfinite(density(1.0))
    with pytest.raises(Exception, match="positive and finite standard deviations"):
        density(noise)


@pytest.mark.parametrize("function", LINEAR.values(), ids=LINEAR.keys())
def test_a_linear_function_is_taken(function, dtype):
    x = jnp.arange(300.0, dtype=dtype)
    y = LinearMeasurement(function, 1.0)(x)
    assert y.mean.dtype == dtype
    assert np.allclose(y.mean, function(x), rtol=1e-5)


@pytest.mark.parametrize("noise", [0.0, -1.0, [1.0, 0.0], np.nan, np.inf])
def test_noise_must_be_positive(noise):
    with pytest.raises(ValueError, match="noise expected positive"):
        LinearMeasurement(MATRIX, noise)
    noise = jnp.asarray(noise)  # known outside of jit
    with pytest.raises(ValueError, match="noise expected positive"):
        jax.jit(lambda x: LinearMeasurement(MATRIX, noise)(x).mean)(jnp.ones(4))


@pytest.mark.parametrize(
    ("operator", "noise", "x", "error", "match"),
    [
        (MATRIX, 1.0, np.ones(5), ValueError, "x expected 4 numbers"),
        (MATRIX, 1.0, 1.0, ValueError, "at least 1 axes"),
        (MATRIX[0], 1.0, np.ones(4), ValueError, "operator expected a matrix"),
        (MATRIX, np.ones(2), np.ones(4), ValueError, "noise expected a number or an array"),
        (MATRIX, np.ones((5, 3)), np.ones((2, 4)), ValueError, "noise expected a number or an array"),
        (lambda x: x.sum(), np.ones(2), np.ones(4), ValueError, "noise expected a number or an array"),
        (OPERATORS["lineax"], 1.0, np.ones(5), ValueError, "x expected a shape that ends in"),
        (lambda x: (x, x), 1.0, np.ones(4), TypeError, "a function that returns an array"),
        ("blur", 1.0, np.ones(4), TypeError, "operator expected"),
        (None, 1.0, np.ones(4), TypeError, "operator expected"),
        (MATRIX, "small", np.ones(4), TypeError, "noise expected"),
        (MATRIX, 1.0, "image", TypeError, "x expected"),
    ],
)
def test_wrong_arguments_are_refused(operator, noise, x, error, match):
    with pytest.raises(error, match=match):
        LinearMeasurement(operator, noise)(x)


@pytest.mark.slow
def test_missing_pixels_under_a_mixture_prior_have_the_exact_posterior():
    """Of two kinds of images of 6 pixels the first 3 are blurred: pixels and measurements are one Gaussian mixture."""
    num, noise = 500, 0.3
    blur = np.array([[0.7, 0.3, 0.0], [0.3, 0.4, 0.3], [0.0, 0.3, 0.7]]) @ np.eye(3, 6)
    means = np.array([[0.0, 1.0, 2.0, 3.0, 2.0, 1.0], [3.0, 1.0, 0.0, 0.0, 1.0, 3.0]])
    near = 0.5 ** np.abs(np.subtract.outer(np.arange(6), np.arange(6)))
    shares = dist.Categorical(jnp.array([0.3, 0.7]))

    def pixels(y=None):
        prior = dist.MixtureSameFamily(shares, dist.MultivariateNormal(means, np.stack([near, 0.5 * near])))
        x = numpyro.sample("x", prior)
        numpyro.sample("y", LinearMeasurement(blur, noise)(x), obs=y)

    both = np.concatenate([np.eye(6)[3:], blur])
    covariances = [both @ c @ both.T + np.diag([0.0] * 3 + [noise**2] * 3) for c in (near, 0.5 * near)]
    joint = dist.MixtureSameFamily(shares, dist.MultivariateNormal(means @ both.T, np.stack(covariances)))
    drawn = Predictive(pixels, num_samples=20_000 + num)(jax.random.key(0))
    x, y = drawn["x"][:, 3:], drawn["y"]
    test = y[:num].T
    exact = FlowDistribution(bijections.Identity((6,)), joint).condition_on({3 + i: test[i] for i in range(3)})
    amortised = fit_density(jax.random.key(1), x[num:], condition=y[num:], num_steps=1_500, progress_bar=False).given(
        y[:num]
    )

    gap = exact.log_prob(x[:num]) - amortised.log_prob(x[:num])
    assert gap.mean() < 0.05 + 3 * gap.std() / num**0.5
    for posterior in (exact, amortised):
        low, high = np.quantile(posterior.sample(jax.random.key(2), (1_000,)), [0.05, 0.95], axis=0)
        inside = ((x[:num] >= low) & (x[:num] <= high)).mean(1)
        assert abs(inside.mean() - 0.9) < 4 * inside.std() / num**0.5
