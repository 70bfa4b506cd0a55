"""The exact or estimated divergence of a vector field: the rate at which the log density falls along a trajectory."""

from abc import abstractmethod
from typing import Literal, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray, Scalar

from numpyro_flows.arguments import require_choice, require_counts
from numpyro_flows.bijections.noise import AbstractEstimator, EventNoise
from numpyro_flows.bijections.sweeps import Vector
from numpyro_flows.continuous.fields import AbstractField, AbstractFieldWithDivergence

Probes = Float[Array, "num_probes dim"] | None


class Velocity(NamedTuple):
    """The velocity and its divergence at one point of a field.

    value: `v`.
    divergence: `tr dv/dx`, or an estimate.
    squared_norm: `||dv/dx||_F^2`, or an estimate.
    """

    value: Vector
    divergence: Scalar
    squared_norm: Scalar


class AbstractDivergence(AbstractEstimator):
    """A method to compute `div v = tr dv/dx`. Probes are drawn once for a trajectory, and fixed along it.

    Example:
        >>> import jax.numpy as jnp
        >>> from numpyro_flows.continuous import AbstractDivergence, LinearField
        >>> from numpyro_flows.continuous.divergence import Velocity
        >>> class Incompressible(AbstractDivergence):
        ...     estimate = ""
        ...     def probes(self, x):
        ...         return None
        ...     def __call__(self, field, t, x, condition, probes):
        ...         return Velocity(field(t, x, condition), jnp.zeros(()), jnp.zeros(()))
        >>> float(Incompressible()(LinearField(2), 0.0, jnp.ones(2), None, None).divergence)
        0.0
    """

    @abstractmethod
    def probes(self, x: Vector) -> Probes:
        """The random probes for the trajectory from `x`."""

    @abstractmethod
    def __call__(
        self, field: AbstractField, t: Scalar, x: Vector, condition: Array | None, probes: Probes
    ) -> Velocity: ...


class Exact(AbstractDivergence):
    """`tr dv/dx` from all `dim` columns of the Jacobian, by forward mode, or from the field's closed form.

    It costs `dim` times the field. Certificates and importance weights need it: noise of variance `s^2` in a log
    density multiplies an estimate of the evidence by about `exp(s^2 / 2)`.

    Example:
        >>> import equinox as eqx, jax.numpy as jnp
        >>> from numpyro_flows.continuous import Exact, LinearField
        >>> field = eqx.tree_at(lambda f: f.weight, LinearField(2), jnp.array([[1.0, 2.0], [3.0, 4.0]]))
        >>> float(Exact()(field, 0.0, jnp.ones(2), None, None).divergence)
        5.0
    """

    @property
    def estimate(self) -> str:
        return ""

    def probes(self, x: Vector) -> Probes:
        return None

    def __call__(self, field: AbstractField, t: Scalar, x: Vector, condition: Array | None, probes: Probes) -> Velocity:
        value, columns = _products(field, t, x, condition, jnp.eye(x.size, dtype=x.dtype))
        squared_norm = (columns**2).sum()  # computed only if a penalty uses it
        if isinstance(field, AbstractFieldWithDivergence):
            value, divergence = field.velocity_and_divergence(t, x, condition)
            return Velocity(value, divergence, squared_norm)
        return Velocity(value, jnp.trace(columns), squared_norm)


class Hutchinson(AbstractDivergence):
    """The mean of `e . (dv/dx) e` over random probes `e` of mean 0 and covariance `I`: unbiased and cheap, but noisy.

    With `A = (J + J^T) / 2` the variance of one probe is `2 (||A||_F^2 - sum_i A_ii^2)` for Rademacher probes and
    `2 ||A||_F^2` for Gaussian ones. Probes depend on the event's bits and a stored seed, so that an event always has
    the same value. Training replaces the seed at each step. With a fixed probe the flow would overfit to it (0.64 nats
    of error in a published example).

    Args:
        key: random key of the seed.
        num_probes: number of probes.
        distribution: "rademacher", with the smallest variance, or "gaussian".

    Raises:
        ValueError: if `num_probes` is below 1 or `distribution` is unknown.

    Source: Hutchinson 1990, Commun. Stat. Simul. Comput. 19(2); for flows: arXiv 1810.01367.

    Example:
        >>> import jax
        >>> from numpyro_flows.continuous import ContinuousFlow, Hutchinson, MLPField
        >>> estimated = Hutchinson(jax.random.key(0), num_probes=4)
        >>> ContinuousFlow(MLPField(jax.random.key(1), 50), divergence=estimated).estimate
        "Hutchinson's estimator with 4 rademacher probes"
    """

    noise: EventNoise
    num_probes: int = eqx.field(static=True)
    distribution: str = eqx.field(static=True)

    def __init__(
        self, key: PRNGKeyArray, *, num_probes: int = 1, distribution: Literal["rademacher", "gaussian"] = "rademacher"
    ):
        require_counts(num_probes=num_probes)
        require_choice(_DRAW, distribution=distribution)
        self.noise = EventNoise(key)
        self.num_probes, self.distribution = num_probes, distribution

    @property
    def estimate(self) -> str:
        return f"Hutchinson's estimator with {self.num_probes} {self.distribution} probes"

    def probes(self, x: Vector) -> Probes:
        key = self.noise.key(jax.lax.stop_gradient(x))
        return _DRAW[self.distribution](key, (self.num_probes, x.size), x.dtype)

    def __call__(self, field: AbstractField, t: Scalar, x: Vector, condition: Array | None, probes: Probes) -> Velocity:
        assert probes is not None
        value, products = _products(field, t, x, condition, probes)
        return Velocity(value, _mean_product(probes, products), _mean_product(products, products))


class HutchPlusPlus(AbstractDivergence):
    """The exact trace on the range that random probes find, plus Hutchinson's estimate of the rest; it is unbiased.

    A third of the probes find an orthonormal basis `Q` of most of the Jacobian's range. A third compute `tr(Q^T J Q)`
    exactly. The last third estimate the trace of `(I - Q Q^T) J (I - Q Q^T)`. If a few directions dominate the
    Jacobian, the variance is far smaller than that of `Hutchinson` with as many products.

    Args:
        key: random key of the seed.
        num_probes: total number of products of the Jacobian, a multiple of 3; a third of it is at most the field's
            `dim`.

    Raises:
        ValueError: if `num_probes` is not a positive multiple of 3 or, when used, too large for the field.

    Source: Meyer, Musco, Musco, Woodruff 2021, arXiv 2010.09649.

    Example:
        >>> import jax
        >>> from numpyro_flows.continuous import ContinuousFlow, HutchPlusPlus, MLPField
        >>> estimated = HutchPlusPlus(jax.random.key(0), num_probes=6)
        >>> ContinuousFlow(MLPField(jax.random.key(1), 50), divergence=estimated).estimate
        'the Hutch++ estimator with 6 products'
    """

    noise: EventNoise
    num_probes: int = eqx.field(static=True)

    def __init__(self, key: PRNGKeyArray, *, num_probes: int = 3):
        require_counts(num_probes=num_probes)
        if num_probes % 3:
            raise ValueError(f"num_probes expected a positive multiple of 3, got {num_probes}")
        self.noise = EventNoise(key)
        self.num_probes = num_probes

    @property
    def estimate(self) -> str:
        return f"the Hutch++ estimator with {self.num_probes} products"

    def probes(self, x: Vector) -> Probes:
        if self.num_probes > 3 * x.size:
            raise ValueError(f"num_probes expected at most 3 * {x.size} for so many coordinates, got {self.num_probes}")
        key = self.noise.key(jax.lax.stop_gradient(x))
        return jax.random.rademacher(key, (2 * self.num_probes // 3, x.size), x.dtype)

    def __call__(self, field: AbstractField, t: Scalar, x: Vector, condition: Array | None, probes: Probes) -> Velocity:
        assert probes is not None
        of_range, of_rest = jnp.split(probes, 2)
        # the range needs no gradient: the estimate is unbiased for any range
        _, images = _products(field, t, jax.lax.stop_gradient(x), condition, of_range)
        basis = jnp.linalg.qr(jax.lax.stop_gradient(images).T)[0].T
        of_rest = of_rest - (of_rest @ basis.T) @ basis
        value, products = _products(field, t, x, condition, jnp.concatenate([basis, of_rest]))
        within, beyond = products[: len(basis)], products[len(basis) :]
        return Velocity(
            value,
            jnp.sum(basis * within) + _mean_product(of_rest, beyond),
            jnp.sum(within**2) + _mean_product(beyond, beyond),
        )


_DRAW = {"rademacher": jax.random.rademacher, "gaussian": jax.random.normal}


def _products(
    field: AbstractField, t: Scalar, x: Vector, condition: Array | None, directions: Float[Array, "n dim"]
) -> tuple[Vector, Float[Array, "n dim"]]:
    """`v`, and the Jacobian times each direction."""

    def product(direction: Vector) -> tuple[Array, Array]:
        return jax.jvp(lambda x: field(t, x, condition), (x,), (direction,))

    return jax.vmap(product, out_axes=(None, 0))(directions)


def _mean_product(a: Float[Array, "n dim"], b: Float[Array, "n dim"]) -> Scalar:
    return jnp.sum(a * b) / len(a)
