"""Marginal and conditional distributions of flows: in closed form if there is one, else by importance sampling."""

import math
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jax.core import Tracer
from jaxtyping import Array, ArrayLike, Float, PRNGKeyArray
from numpyro.distributions import constraints

from numpyro_flows.arguments import described, require_counts, require_key
from numpyro_flows.bijections import AbstractBijection
from numpyro_flows.modeling.columns_of_events import EventColumns
from numpyro_flows.modeling.elementwise_tails import elementwise, peeled
from numpyro_flows.modeling.gaussian_blocks import GaussianBlocks
from numpyro_flows.modeling.independent_columns import IndependentColumns
from numpyro_flows.modeling.partial import Estimate, PartialDistribution
from numpyro_flows.modeling.scoring import parts_of_value
from numpyro_flows.modeling.supports import where_events

_LEAST_ESS = 0.1


class WithMarginals:
    """Marginal and conditional distributions of a `FlowDistribution`."""

    def marginal(
        self, columns: Sequence[int] | Sequence[str], *, num_particles: int = 1_000, rng_key: PRNGKeyArray | None = None
    ) -> Any:
        """`p(x_S)`: the marginal distribution of some columns or sites.

        It is exact in two cases. Either the flow is a linear map followed by elementwise maps, on a normal distribution
        or a mixture of normals (`fit_density` returns such flows if it keeps the mixture). Or the columns are
        independent. Draws are exact for every flow. The log density of any other flow is estimated by importance
        sampling. `log_prob_and_error` gives its standard error, which is 0 if the density is exact. On average the
        estimate of `log_prob` is too low by about half the squared error.

        Args:
            columns: indices of the columns, where negative ones count from the last, or names of sites. The result
                keeps their order.
            num_particles: draws for each value, if the density is estimated.
            rng_key: random key for these draws, which are the same for every value; a fixed key by default.

        Returns:
            A `FlowDistribution` of arrays `(len(columns),)`, or of a dict of the sites.

        Raises:
            TypeError: if `columns` is not a list of integers, or of names of sites.
            ValueError: if a column is unknown or repeated, events are neither vectors nor sites, or the flow lacks the
                condition that it needs. Also if a support ties columns together, such as a simplex, or the base is
                bounded and no layer mixes its columns.

        Example:
            >>> import jax.numpy as jnp
            >>> import numpyro.distributions as dist
            >>> from numpyro_flows import FlowDistribution, bijections
            >>> normal = dist.MultivariateNormal(jnp.zeros(2), jnp.array([[1.0, 0.9], [0.9, 4.0]]))
            >>> flow = FlowDistribution(bijections.Identity((2,)), normal)
            >>> found, known = flow.marginal([1]).log_prob(jnp.zeros(1)), dist.Normal(0, 2).log_prob(0)
            >>> f"{found:.3f} {known:.3f}"
            '-1.612 -1.612'
        """
        events = self._event_columns()
        columns = events.checked(columns, "columns")
        places, constrain = events.places(columns), events.constrain_of(columns)
        tail, joint = self._joint(num_particles, rng_key)
        return _flow(self, elementwise(tail, places), joint.marginal(places), constrain)

    def condition_on(
        self,
        values: Mapping[int, ArrayLike] | Mapping[str, ArrayLike],
        *,
        num_particles: int = 1_000,
        rng_key: PRNGKeyArray | None = None,
    ) -> Any:
        """`p(x_R | x_S)`: the distribution of all other columns or sites, given the values of some.

        It is exact in the same cases as `marginal`. For any other flow the log density is the exact joint one minus an
        estimate of the marginal one, and draws use importance resampling; `sample_weighted` gives the weights.

        Args:
            values: a dict. For columns the keys are indices, and the values numbers or arrays `(*batch,)`. For sites
                the keys are names, and the values arrays `(*batch, *site)`. The batch shapes broadcast to the batch
                shape of the result.
            num_particles: draws that estimate the density of `values`.
            rng_key: random key for these draws; a fixed key by default.

        Returns:
            A `FlowDistribution` of the other columns in their order, or of a dict of the other sites.

        Raises:
            TypeError: if `values` is not a dict.
            ValueError: as `marginal`. Also if values are outside the support, or no column is left.

        Warns:
            UserWarning: if the effective sample size of the particles is below 10%. Then increase `num_particles`.

        Example:
            >>> import jax.numpy as jnp
            >>> import numpyro.distributions as dist
            >>> from numpyro_flows import FlowDistribution, bijections
            >>> normal = dist.MultivariateNormal(jnp.zeros(2), jnp.array([[1.0, 0.9], [0.9, 4.0]]))
            >>> flow = FlowDistribution(bijections.Identity((2,)), normal)
            >>> means = flow.condition_on({0: jnp.array([1.0, 2.0])}).base_dist.loc
            >>> [f"{mean:.2f}" for mean in means[:, 0]]
            ['0.90', '1.80']
        """
        if not isinstance(values, Mapping):
            raise TypeError(f"values expected a dict by column or site, got {described(values)}")
        events = self._event_columns()
        given = events.checked(list(values), "values")
        others = events.others(given)
        if not others:
            raise ValueError(f"values expected some of the columns, got all of them: {list(values)}")
        seen, places = events.places(given), events.places(others)
        constrain = events.constrain_of(others)
        x = events.real(values, given)
        tail, joint = self._joint(num_particles, rng_key)
        to_core = jnp.vectorize(elementwise(tail, seen).inverse, signature="(n)->(n)")
        found = joint.conditional(places, seen, to_core(x))
        if isinstance(found, PartialDistribution):
            _warn_of_ess(found.evidence.ess)
        return _flow(self, elementwise(tail, places), found, constrain)

    def log_prob_and_error(self: Any, value: ArrayLike | Mapping[str, ArrayLike]) -> Estimate:
        """`log_prob` with its standard error, and the effective sample size of the particles behind it.

        The error is 0, and the effective sample size 1, if the density is exact. Only the results of `marginal` and
        `condition_on` can have estimated densities.

        Args:
            value: as for `log_prob`.
        """
        base = self._single_base
        if not isinstance(base, PartialDistribution):
            log_prob = self.log_prob(value)
            return Estimate(log_prob, jnp.zeros_like(log_prob), jnp.ones_like(log_prob))
        y = self._packed(value)
        flat = dist.ImproperUniform(constraints.real_vector, (), base.event_shape)  # of density 1
        outside, volume = parts_of_value(flat, self._flow, self.constrain, y, 1)
        possible = jnp.isfinite(outside)
        x = y if self.constrain is None else jnp.asarray(self.constrain.inv(y))
        found = base.estimate(self._flow.inverse(where_events(possible, x, jnp.zeros_like(x))))
        log_prob = jnp.where(possible, found.log_prob + volume, -jnp.inf)
        return Estimate(log_prob, jnp.where(possible, found.error, 0.0), jnp.where(possible, found.ess, 1.0))

    def sample_weighted(self: Any, key: PRNGKeyArray, num_samples: int) -> tuple[Any, Float[Array, "num *batch"]]:
        """Draws with the logarithms of their weights, which sum to 1 along the first axis.

        For a result of `condition_on` without a closed form, these are weighted draws of the proposal, before any
        resampling. Their effective sample size is `1 / sum(exp(2 log_weights))`. For other distributions the weights
        are equal.

        Args:
            key: random key.
            num_samples: number of draws, the first axis of both results.
        """
        require_key(key, "key")
        require_counts(num_samples=num_samples)
        base = self._single_base
        if not isinstance(base, PartialDistribution):
            even = jnp.full((num_samples, *self.batch_shape), -math.log(num_samples))
            return self.sample(key, (num_samples,)), even
        x, log_weights = base.sample_weighted(key, num_samples)
        y = self._flow(x)
        y = y if self.constrain is None else self.constrain(y)
        return y if self.sites is None or self._is_vector else self.sites.unpack(y), log_weights

    def _event_columns(self: Any) -> EventColumns:
        if self.bijection.cond_shape is not None and self.condition is None:
            raise ValueError(
                f"expected a condition of shape (..., *{self.bijection.cond_shape}), got none: "
                "call `.given(condition)` first"
            )
        if self._leading_shape:
            raise ValueError(f"expected a distribution without axes of vmap in front, got {self._leading_shape}")
        if len(self.bijection.shape) != 1:
            raise ValueError(f"expected a flow of vectors, got one of events of shape {self.bijection.shape}")
        return EventColumns.of(self.event_shape, self.sites, self.constrain)

    def _joint(self: Any, num_particles: int, rng_key: PRNGKeyArray | None) -> tuple[list[AbstractBijection], Any]:
        """Elementwise maps, and the distribution before them, which has `marginal` and `conditional` of coordinates."""
        require_counts(2, num_particles=num_particles)
        rng_key = jax.random.key(0) if rng_key is None else rng_key
        require_key(rng_key)
        core, tail = peeled(self.bijection)
        base = self._single_base
        support = base.support
        while isinstance(support, constraints.independent):
            support = support.base_constraint
        if core is None and support not in (constraints.real, constraints.real_vector):
            raise ValueError(
                f"expected a base on all real numbers, got one on {support}: put the support into constrain"
            )
        if core is None and isinstance(base, PartialDistribution):
            return tail, base
        exact = GaussianBlocks.of(core, base) or (IndependentColumns.of(base) if core is None else None)
        if exact is not None:
            return tail, exact
        joint = base if core is None else type(self)(core, base, self.condition)
        return tail, PartialDistribution.of(joint, rng_key, num_particles)


def _flow(like: Any, bijection: AbstractBijection, base: dist.Distribution, constrain: Any) -> Any:
    return type(like)(bijection, base, constrain=constrain)


def _warn_of_ess(ess: Float[Array, "*batch"]) -> None:
    if isinstance(ess, Tracer) or np.all(ess >= _LEAST_ESS):
        return
    warnings.warn(
        f"draws given these values have an effective sample size of {float(np.min(ess)):.1%}: densities and draws are "
        "inexact; increase num_particles, and see log_prob_and_error",
        UserWarning,
        stacklevel=3,
    )
