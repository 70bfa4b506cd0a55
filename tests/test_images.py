"""Images: patches of a TarFlow, noise that is added and taken off again, and guidance by a condition."""

from functools import partial
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
from numpyro.distributions import constraints

from numpyro_flows import FlowDistribution, denoise, flows, guided
from numpyro_flows.bijections import AffineUnivariate, Guided, Identity, RationalQuadraticSpline, masked_autoregressive
from numpyro_flows.density.observations import observe
from tests.bijections.common import drawn
from tests.test_density import fit

KEY = jax.random.key(0)
SMALL = {"num_layers": 2, "width": 8, "num_heads": 2, "num_blocks": 1}
DIM, COND_DIM = 3, 2


def moves(recipe) -> np.ndarray:
    """`[i, j]`: whether pixel `i` of the base depends on pixel `j`, by a flow of random parameters."""
    flow = drawn(lambda: recipe(KEY), 0.5)
    x = np.linspace(-1.0, 1.0, flow.shape[0])
    places = np.concatenate([x[None], x + np.eye(x.size)])
    first, *moved = np.asarray(eqx.filter_jit(lambda flow, places: jax.vmap(flow.inverse)(places))(flow, places))
    return (np.stack(moved) != first).T


def patch_of(shape, side) -> np.ndarray:
    """Of each pixel, raveled, the number of its patch, in raster order."""
    channels, height, width = shape
    rows, columns = np.arange(height) // side, np.arange(width) // side
    patches = rows[:, None] * (width // side) + columns
    return np.broadcast_to(patches, (channels, height, width)).ravel()


@pytest.mark.parametrize(
    ("shape", "side"), [((2, 2, 6), 2), pytest.param((1, 4, 4), 2, marks=pytest.mark.slow)], ids=["channels", "square"]
)
def test_a_pixel_depends_on_the_patches_before_and_on_itself(shape, side):
    dim, patch = int(np.prod(shape)), patch_of(shape, side)
    recipe = partial(flows.tarflow, dim=dim, image_shape=shape, patch_size=side, **(SMALL | {"num_layers": 1}))
    expected = (patch[:, None] > patch[None]) | np.eye(dim, dtype=bool)
    np.testing.assert_array_equal(moves(recipe), expected)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"image_shape": (4, 5)}, ValueError, r"with dim=16 numbers in all, got \(4, 5\)"),
        ({"image_shape": (16,)}, ValueError, r"expected \(height, width\) or .*, got \(16,\)"),
        ({"image_shape": (2.0, 8)}, TypeError, "image_shape expected an integer"),
        ({"image_shape": (4, 4), "patch_size": 3}, ValueError, r"a divisor of the sides of \(4, 4\), got 3"),
        ({"image_shape": (4, 4), "block_size": 4}, ValueError, "block_size expected None"),
        ({"image_shape": (4, 4), "order": "random"}, ValueError, "order expected 'alternating'"),
    ],
)
def test_images_that_do_not_fit(options, error, message):
    with pytest.raises(error, match=message):
        flows.tarflow(KEY, 16, **options)


def affine_flow(dim, fast, num_layers):
    options = {"cond_dim": COND_DIM, "hidden": (8,), "num_layers": num_layers}
    return flows.autoregressive(KEY, dim, univariate=AffineUnivariate(), fast=fast, **options)


@pytest.fixture(scope="module", params=["density", "sampling"])
def flow(request):
    """A conditional flow of random parameters, fast in one direction, as `fit_density` would wrap it."""
    bijection = drawn(lambda: affine_flow(DIM, request.param, num_layers=2), 0.3)
    return FlowDistribution(bijection)


@eqx.filter_jit
def drawn_by(bijection, condition):
    return bijection.transform_and_log_det(Z, condition)


@eqx.filter_jit
def both_ways(bijection, condition):
    x, log_det = bijection.transform_and_log_det(Z, condition)
    jacobian = jax.jacfwd(lambda x: bijection.inverse(x, condition))(x)
    return x, log_det, *bijection.inverse_and_log_det(x, condition), jacobian


Z, CONDITION = jnp.array([0.3, -1.2, 0.8]), jnp.array([1.0, -0.5])


def test_guidance_of_no_weight_is_the_flow(flow):
    x, log_det, *_ = both_ways(guided(flow, 0.0).bijection, CONDITION)
    expected = drawn_by(flow.bijection, CONDITION)
    np.testing.assert_array_equal(x, expected[0])
    np.testing.assert_array_equal(log_det, expected[1])


def test_guidance_under_the_null_condition_is_the_flow(flow):
    """There is then nothing to go further from."""
    null = jnp.array([0.5, 2.0])
    found = both_ways(guided(flow, 3.0, null=null).bijection, null)
    np.testing.assert_allclose(found[0], drawn_by(flow.bijection, null)[0], rtol=1e-5)


def test_a_guided_flow_is_a_bijection(flow):
    _, log_det, z, inverse_log_det, jacobian = both_ways(guided(flow, 1.5).bijection, CONDITION)
    np.testing.assert_allclose(z, Z, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(inverse_log_det, -log_det, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(np.linalg.slogdet(jacobian)[1], inverse_log_det, rtol=1e-4, atol=1e-4)


def test_a_guided_flow_in_a_file(flow, tmp_path):
    bijection = guided(flow, 1.5).bijection
    FlowDistribution(bijection).save(tmp_path / "flow")
    found = both_ways(FlowDistribution.load(tmp_path / "flow").bijection, CONDITION)
    np.testing.assert_array_equal(found[0], both_ways(bijection, CONDITION)[0])


@pytest.mark.parametrize("fast", ["density", "sampling"])
def test_guidance_extrapolates_means_and_log_scales(fast):
    """One coordinate: draws are `exp(a) z + m`, with `a` and `m` of the two conditions known from draws."""
    bijection = drawn(lambda: affine_flow(1, fast, num_layers=1), 0.5)
    flow, weight, null = FlowDistribution(bijection), 2.5, jnp.array([-1.0, 1.0])

    def mean_and_log_scale(bijection, condition):
        mean, log_scale = bijection.transform_and_log_det(jnp.zeros(1), condition)
        return np.array([mean[0], log_scale])

    here, there = (mean_and_log_scale(bijection, condition) for condition in (CONDITION, null))
    assert (np.abs(here - there) > 0.01).all()
    found = mean_and_log_scale(guided(flow, weight, null=null).bijection, CONDITION)
    np.testing.assert_allclose(found, here + weight * (here - there), rtol=1e-4, atol=1e-5)


def test_what_cannot_be_guided():
    with pytest.raises(ValueError, match="a flow with a condition"):
        guided(FlowDistribution(Identity((2,))), 1.0)
    splines: Any = drawn(lambda: masked_autoregressive(KEY, 2, RationalQuadraticSpline(), cond_dim=1, hidden=(8,)), 0.5)
    with pytest.raises(TypeError, match="expected affine autoregressive layers"):
        guided(FlowDistribution(splines), 1.0)
    with pytest.raises(TypeError, match="univariate expected"):
        Guided(splines, 1.0, jnp.zeros(1))


def test_weights_and_null_conditions_that_do_not_fit(flow):
    with pytest.raises(ValueError, match=r"null expected the shape of the condition, \(2,\), got \(1,\)"):
        guided(flow, 1.0, null=jnp.zeros(1))
    with pytest.raises(ValueError, match="weight expected"):
        guided(flow, -1.0)


LOC, SD, NOISE = np.array([1.0, -2.0]), np.array([0.5, 3.0]), 0.8


def test_denoising_a_normal_gives_the_posterior_mean():
    noisy = dist.Normal(LOC, np.sqrt(SD**2 + NOISE**2)).to_event(1)
    y = np.random.default_rng(0).normal(size=(4, 3, 2))
    expected = (y * SD**2 + LOC * NOISE**2) / (SD**2 + NOISE**2)
    np.testing.assert_allclose(denoise(noisy, y, NOISE), expected, rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(denoise(noisy, y, 0.0), np.float32(y))


def test_denoising_needs_events():
    with pytest.raises(ValueError, match=r"y expected a shape that ends in \(2,\), got \(3,\)"):
        denoise(dist.Normal(LOC, SD).to_event(1), np.zeros(3), NOISE)
    with pytest.raises(TypeError, match="distribution expected"):
        denoise(constraints.real, np.zeros(3), NOISE)  # pyright: ignore[reportArgumentType]


def test_noise_has_its_standard_deviation_and_smooths_what_repeats():
    """No warning of whole numbers, and no error for a constant pixel."""
    values = np.random.default_rng(0).integers(0, 2, size=(4_000, 1, 2)) * [0, 1]
    observations = observe(values, noise=NOISE)
    x, log_det = observations.rows(np.arange(4_000), np.random.default_rng(1))
    noise = x - values.reshape(-1, 2)
    np.testing.assert_allclose(noise.std(0), NOISE, rtol=4 / np.sqrt(2 * 4_000))
    assert np.abs(noise.mean(0)).max() < 4 * NOISE / np.sqrt(4_000)
    assert not log_det.any()


def test_noise_is_for_real_numbers():
    with pytest.raises(ValueError, match="noise expected 0 for data within"):
        observe(np.random.default_rng(0).random((50, 2)), constraints.positive, noise=0.1)
    with pytest.raises(ValueError, match="noise expected 0 for data with angles or whole numbers"):
        fit(KEY, np.ones((50, 2)), support=[constraints.circular, constraints.real], noise=0.1)


def test_a_condition_to_drop():
    with pytest.raises(ValueError, match="condition_dropout expected 0 without a condition"):
        fit(KEY, np.zeros((50, 2)), condition_dropout=0.1)


@pytest.fixture(scope="module")
def two_classes():
    """A flow of 2 x 2 images of two classes at -3 and 3, noise of 1 added, condition dropped."""
    rng = np.random.default_rng(0)
    label = np.repeat([0, 1], 500)
    images = 3.0 * (2 * label[:, None, None] - 1) + 0.5 * rng.normal(size=(1_000, 2, 2))
    recipe = partial(flows.tarflow, image_shape=(2, 2), patch_size=1, **SMALL)
    options = {"condition": np.eye(2)[label], "noise": 1.0, "condition_dropout": 0.3}
    return fit(KEY, images, recipe, **options)


@pytest.mark.slow
@pytest.mark.optimized
def test_a_fit_with_noise_and_dropout(two_classes):
    draws = np.asarray(two_classes.given(np.eye(2)[0]).sample(KEY, (2_000,)))
    assert draws.shape == (2_000, 2, 2)
    np.testing.assert_allclose(draws.std(0), np.sqrt(0.25 + 1.0), rtol=0.15)  # of the noisy data
    clean = denoise(two_classes.given(np.eye(2)[0]), draws, 1.0)
    np.testing.assert_allclose(np.mean(clean, axis=0), -3.0, atol=0.3)
    # exactly it would be a fifth; the score of a flow of few steps is rougher than its density
    assert (np.std(clean, axis=0) < 0.7 * draws.std(0)).all()
    of_none = np.asarray(two_classes.given(np.zeros(2)).sample(KEY, (2_000,)))
    assert 0.2 < (of_none.mean((1, 2)) > 0).mean() < 0.8  # without condition: both classes


@pytest.mark.slow
@pytest.mark.optimized
def test_guided_draws_go_further(two_classes):
    plain, further = (
        np.asarray(one.given(np.eye(2)[1]).sample(KEY, (500,))) for one in (two_classes, guided(two_classes, 1.0))
    )
    assert further.mean() > plain.mean() + 4 * plain.std() / np.sqrt(plain.size)
