"""Linear measurements with Gaussian noise: the likelihood of an inverse problem."""

import math
from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jax.core import Tracer
from jaxtyping import Array, ArrayLike, Float

from numpyro_flows.arguments import as_array, as_numbers, described, require_counts
from numpyro_flows.precision import full_precision

_FAR = 1_000.0  # a second scale at which a function must be linear
_TOLERANCE = 1e-3  # rounding error, as a share of the terms of a sum
_ROUNDING = 1e-5  # the same, as a share of the largest output


@runtime_checkable
class LinearOperator(Protocol):
    """The methods of a linear operator of lineax."""

    def mv(self, vector: Any) -> Any: ...
    def in_structure(self) -> Any: ...


class LinearMeasurement:
    """The distribution of `y = A x + noise * e`, with `e` standard normal: a likelihood for inverse problems.

    `LinearMeasurement(operator, noise)(x)` is a NumPyro distribution of `y`, for use in
    `numpyro.sample("y", LinearMeasurement(operator, noise)(x), obs=y)`. All axes of one measurement are its event.

    Args:
        operator: `A`. A matrix `(measured, size)` multiplies one event of `x` as a flat vector. A linear operator of
            lineax acts on one array. A linear function acts on one event of `x`, such as `lambda x: x[observed]` or a
            convolution; it is mapped over all further axes of `x`.
        noise: standard deviation of the noise, in units of `y`: a number, or an array that broadcasts with `y`, for
            example one value for each measured number. It may be a site of the model.
        event_dim: number of axes of one event of `x`: 1 for vectors and series, 2 for images. A lineax operator defines
            its own.

    Raises:
        TypeError: if `operator` is not a matrix, operator or function, or `noise` is not a number.
        ValueError: if a matrix does not have two axes, or `noise` is not positive and finite. When called: if `x` has
            the wrong shape, a function is not linear, or the shape of `noise` does not fit.

    A function is checked at random points. There is no check if the function uses other latent sites, such as the width
    of a blur.

    Source: Bora, Jalal, Price, Dimakis 2017, arXiv 1703.03208; for flows Asim et al. 2020, arXiv 1905.11672.

    Example:
        >>> import jax.numpy as jnp, numpyro, numpyro.distributions as dist
        >>> from numpyro_flows import LinearMeasurement
        >>> halves = LinearMeasurement(lambda image: image[:, :4], 0.1, event_dim=2)
        >>> y = halves(jnp.ones((20, 8, 8)))
        >>> y.batch_shape, y.event_shape
        ((20,), (8, 4))
        >>> def model(y=None):
        ...     x = numpyro.sample("x", dist.Normal(0, 1).expand([3]).to_event(1))
        ...     differences = jnp.array([[-1.0, 1.0, 0.0], [0.0, -1.0, 1.0]])
        ...     numpyro.sample("y", LinearMeasurement(differences, 0.5)(x), obs=y)
    """

    def __init__(self, operator: Any, noise: ArrayLike, *, event_dim: int = 1):
        require_counts(0, event_dim=event_dim)
        message = "noise expected positive and finite standard deviations"
        if isinstance(noise, Tracer):
            scale = as_array(noise, "noise").astype(float)
            self.noise = eqx.error_if(scale, ~(jnp.isfinite(scale) & (scale > 0)).all(), message)
        else:
            values = as_numbers(noise, "noise").astype(jnp.result_type(float))
            if not np.all((values > 0) & np.isfinite(values)):
                raise ValueError(f"{message} in {values.dtype}, got {noise}")
            self.noise = jnp.asarray(values)
        self._event_shape: tuple[int, ...] | None = None
        self._apply: Callable[[Array], Any]
        self._is_function = callable(operator) and not isinstance(operator, LinearOperator)
        if isinstance(operator, LinearOperator):
            structure = operator.in_structure()
            if not isinstance(structure, jax.ShapeDtypeStruct):
                raise ValueError(f"operator expected a linear operator of one array, got one of {structure}")
            self._event_shape, self._apply = structure.shape, operator.mv
            event_dim = len(structure.shape)
        elif callable(operator):
            self._apply = operator
        else:
            matrix = as_array(operator, "operator")
            if matrix.ndim != 2:
                raise ValueError(f"operator expected a matrix (measured, size), got shape {matrix.shape}")
            self._apply = lambda x: matrix @ _flat(x, matrix.shape[1])
        self.operator, self.event_dim = operator, event_dim

    @full_precision()
    def __call__(self, x: ArrayLike) -> dist.Distribution:
        """The distribution of the measurement of `x`, whose mean is `A x`."""
        x = as_array(x, "x")
        x = x.astype(jnp.result_type(x, float))
        if x.ndim < self.event_dim:
            raise ValueError(f"x expected at least {self.event_dim} axes, got shape {x.shape}")
        batch, event = x.shape[: x.ndim - self.event_dim], x.shape[x.ndim - self.event_dim :]
        if self._event_shape is not None and event != self._event_shape:
            raise ValueError(f"x expected a shape that ends in {self._event_shape}, got {x.shape}")
        if self._is_function:
            _require_linear(self._apply, event)
        measured = jax.vmap(self._apply)(x.reshape(math.prod(batch), *event))
        shape = measured.shape[1:]
        mean = measured.reshape(*batch, *shape)
        if not _fits(self.noise.shape, mean.shape):
            raise ValueError(
                f"noise expected a number or an array that broadcasts with y of shape {mean.shape}, got shape "
                f"{self.noise.shape}"
            )
        return dist.Normal(mean, self.noise).to_event(len(shape))


def _flat(x: Float[Array, "*event"], size: int) -> Float[Array, " size"]:
    if x.size != size:
        raise ValueError(f"x expected {size} numbers in an event, one for each column, got shape {x.shape}")
    return x.reshape(size)


def _fits(noise: tuple[int, ...], mean: tuple[int, ...]) -> bool:
    """Whether noise of this shape broadcasts with the mean, and adds no axes to it."""
    try:
        return jnp.broadcast_shapes(noise, mean) == mean
    except ValueError:
        return False


def _require_linear(function: Callable[[Array], Any], event: tuple[int, ...]) -> None:
    """Raise a ValueError if `f(x + s z)` is not `f(x) + s f(z)`; a TypeError if `f` does not return an array."""
    with jax.ensure_compile_time_eval():  # a number, within jit too
        x, z = jax.random.normal(jax.random.key(0), (2, *event))
        found = function(x)
        if not isinstance(found, jax.Array):
            raise TypeError(f"operator expected a function that returns an array, got {described(found)}")
        if isinstance(found, Tracer):  # it uses values that jit, vmap or grad traces
            return
        if jnp.iscomplexobj(found):
            raise TypeError("operator expected a function that returns real numbers: stack real and imaginary parts")
        other, at_zero = function(z), function(jnp.zeros(event))
        linear = bool(jnp.all(at_zero == 0))
        for scale in (1.0, -_FAR):
            joint, size = function(x + scale * z), jnp.abs(found) + abs(scale) * jnp.abs(other)
            error, largest = jnp.abs(joint - found - scale * other), jnp.max(size, initial=0.0)
            # each output by its own terms; sums that cancel are as exact as the largest numbers in them
            linear &= bool(jnp.all(error <= _TOLERANCE * size + _ROUNDING * largest))  # NaN is not
        if not linear:
            raise ValueError(
                "operator expected a linear function, got one for which f(0) is not 0, or f(x + s z) is not "
                "f(x) + s f(z). Write a non-linear measurement as "
                'numpyro.sample("y", dist.Normal(f(x), noise), obs=y). '
                "Overflow and rounding in single precision look alike: try float64"
            )
