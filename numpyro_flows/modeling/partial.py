"""Some coordinates of a joint distribution, given others, with the rest integrated out by importance sampling."""

import math
from functools import partial
from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jax.scipy.special import logsumexp
from jaxtyping import Array, Float, PRNGKeyArray, UInt32
from numpyro.distributions import constraints

from numpyro_flows.arguments import require_key, require_shape_of_sample
from numpyro_flows.files.rules import InFiles
from numpyro_flows.modeling.student_mixture import Noise, StudentMixture

_DRAWS_TO_FIT = 4_000
_CANDIDATES = 10  # for each draw of a conditional distribution
_AT_ONCE = 2**22  # numbers of a proposal's components in memory at a time


class Estimate(NamedTuple):
    """A log density by importance sampling; every field has the batch's shape.

    log_prob: logarithm of an unbiased estimate of the density, in nats. On average it is below the truth by about
        `error^2 / 2`.
    error: its standard error, by the delta method; 0 if the density is exact.
    ess: effective sample size of the weights, as a share of the particles, from 0 to 1.
    """

    log_prob: Float[Array, "*batch"]
    error: Float[Array, "*batch"]
    ess: Float[Array, "*batch"]


class PartialDistribution(dist.Distribution, InFiles):
    """`p(kept | given = values)` of real vectors with density `p(kept, given, rest)`, for any split of coordinates.

    `p(kept, given)` is the mean of `p(kept, given, rest) / q(rest | kept, given)` over draws of `q`, a mixture of t
    distributions fitted to draws of the joint; `p(given)` is computed in the same way. All values use the same random
    numbers, so `log_prob` is a function. Its gradient is the weighted mean of those of the joint (Fisher's identity).

    Args:
        joint: distribution of real vectors `(dim,)`.
        kept: coordinates, in this order.
        given: other coordinates, possibly none.
        values: values of `given`, of shape `(*batch, len(given))`; `batch` broadcasts with the joint's.
        proposal: a mixture for all coordinates of the joint.
        seed: seed of the random numbers, two integers.
        num_particles: draws for each value.
        evidence: the estimate of `p(given)`.
    """

    FILE_KINDS: ClassVar = {
        "joint": dist.Distribution,
        "kept": tuple[int, ...],
        "given": tuple[int, ...],
        "values": Array,
        "proposal": StudentMixture,
        "seed": Array,
        "num_particles": int,
        "evidence": Estimate,
    }
    pytree_data_fields = ("joint", "values", "proposal", "seed", "evidence")
    pytree_aux_fields = ("kept", "given", "num_particles")

    def __init__(
        self,
        joint: dist.Distribution,
        kept: tuple[int, ...],
        given: tuple[int, ...],
        values: Float[Array, "*batch given"],
        proposal: StudentMixture,
        seed: UInt32[Array, " 2"],
        num_particles: int,
        evidence: Estimate,
    ):
        self.joint, self.kept, self.given, self.values = joint, kept, given, values
        self.proposal, self.seed, self.num_particles, self.evidence = proposal, seed, num_particles, evidence
        batch = jnp.broadcast_shapes(joint.batch_shape, values.shape[:-1])
        super().__init__(batch, (len(kept),), validate_args=False)

    @classmethod
    def of(cls, joint: dist.Distribution, rng_key: PRNGKeyArray, num_particles: int) -> "PartialDistribution":
        """All coordinates of the joint, as a start for marginals and conditionals."""
        of_draws, of_seed = jax.random.split(rng_key)
        proposal = _fitted(joint, of_draws)
        seed = jax.random.bits(of_seed, (2,), jnp.uint32)
        nothing = jnp.zeros(joint.batch_shape, proposal.loc.dtype)
        values, evidence = nothing[..., None][..., :0], Estimate(nothing, nothing, nothing + 1.0)
        every = tuple(range(joint.event_shape[0]))
        return cls(joint, every, (), values, proposal, seed, num_particles, evidence)

    def marginal(self, places: tuple[int, ...]) -> "PartialDistribution":
        """The distribution of the kept coordinates at these places."""
        kept = tuple(self.kept[place] for place in places)
        own = self.proposal, self.seed, self.num_particles, self.evidence
        return PartialDistribution(self.joint, kept, self.given, self.values, *own)

    def conditional(
        self, places: tuple[int, ...], given: tuple[int, ...], values: Float[Array, "*batch more"]
    ) -> "PartialDistribution":
        """The distribution of the kept coordinates at these places, given the values of others."""
        kept, more = (tuple(self.kept[place] for place in some) for some in (places, given))
        batch = jnp.broadcast_shapes(self.values.shape[:-1], values.shape[:-1])
        both = jnp.concatenate([jnp.broadcast_to(a, (*batch, a.shape[-1])) for a in (self.values, values)], axis=-1)
        given = (*self.given, *more)
        evidence = _estimate(self, given, both)
        own = self.proposal, self.seed, self.num_particles, evidence
        return PartialDistribution(self.joint, kept, given, both, *own)

    @property
    def support(self) -> constraints.Constraint:  # pyright: ignore[reportIncompatibleVariableOverride]
        return constraints.real_vector

    def estimate(self, value: Float[Array, "*batch kept"]) -> Estimate:
        """The log density with its standard error."""
        batch = jnp.broadcast_shapes(self.values.shape[:-1], value.shape[:-1])
        parts = [jnp.broadcast_to(a, (*batch, a.shape[-1])) for a in (value, self.values)]
        both = _estimate(self, (*self.kept, *self.given), jnp.concatenate(parts, axis=-1))
        error = jnp.hypot(both.error, self.evidence.error)
        return Estimate(both.log_prob - self.evidence.log_prob, error, both.ess)

    def log_prob(self, value: Float[Array, "*batch kept"]) -> Float[Array, "*batch"]:  # pyright: ignore
        """The logarithm of the estimate, which on average is below the truth by half the squared error."""
        return self.estimate(jnp.asarray(value)).log_prob

    def sample(self, key: PRNGKeyArray, sample_shape: tuple[int, ...] = ()) -> Array:  # pyright: ignore
        """Exact draws of a marginal distribution; draws of a conditional one by sampling-importance-resampling.

        For the latter, 10 candidates for each draw, and at least `num_particles`, are resampled by their weights.
        """
        require_key(key, "key")
        require_shape_of_sample(sample_shape)
        if not self.given:
            return jnp.asarray(self.joint.sample(key, sample_shape))[..., np.asarray(self.kept)]
        num, batch = math.prod(sample_shape), self.batch_shape
        of_candidates, of_choice = jax.random.split(key)
        num_candidates = max(self.num_particles, _CANDIDATES * num)
        candidates, log_weights = self.sample_weighted(of_candidates, num_candidates)
        total = jnp.cumsum(jnp.exp(log_weights.reshape(num_candidates, -1)), axis=0)
        at = jax.random.uniform(of_choice, (num, total.shape[1]), total.dtype) * total[-1]
        chosen = jax.vmap(partial(jnp.searchsorted, side="right"), in_axes=1, out_axes=1)(total, at)
        chosen = jnp.minimum(chosen, num_candidates - 1).reshape(num, *batch, 1)
        return jnp.take_along_axis(candidates, chosen, axis=0).reshape(*sample_shape, *batch, len(self.kept))

    def sample_weighted(
        self, key: PRNGKeyArray, num_samples: int
    ) -> tuple[Float[Array, "num *batch kept"], Float[Array, "num *batch"]]:
        """Draws, and logarithms of their weights, which sum to 1 for each of the batch."""
        if not self.given:
            even = jnp.full((num_samples, *self.batch_shape), -jnp.log(num_samples), self.values.dtype)
            return self.sample(key, (num_samples,)), even
        values = jnp.broadcast_to(self.values, (*self.batch_shape, len(self.given)))
        x, log_weights = _particles(self, key, num_samples, self.given, values)
        return x[..., np.asarray(self.kept)], jax.nn.log_softmax(log_weights, axis=0)


@jax.jit
def _fitted(joint: dist.Distribution, key: PRNGKeyArray) -> StudentMixture:
    return StudentMixture.fitted(jax.lax.stop_gradient(jnp.asarray(joint.sample(key, (_DRAWS_TO_FIT,)))))


@partial(jax.jit, static_argnames="seen")
def _estimate(which: PartialDistribution, seen: tuple[int, ...], values: Float[Array, "*batch seen"]) -> Estimate:
    """The density of some coordinates of the joint."""
    num = which.num_particles
    if len(seen) == which.joint.event_shape[0]:
        order = np.argsort(seen)
        log_prob = jnp.asarray(which.joint.log_prob(values[..., order]))
        return Estimate(log_prob, jnp.zeros_like(log_prob), jnp.ones_like(log_prob))
    key = jax.random.fold_in(jax.random.wrap_key_data(which.seed, impl="threefry2x32"), len(seen))
    log_weights = _particles(which, key, num, seen, values)[1]
    total, of_squares = logsumexp(log_weights, axis=0), logsumexp(2.0 * log_weights, axis=0)
    ess = jnp.exp(2.0 * total - of_squares) / num
    ess = jnp.where(jnp.isfinite(total), ess, 0.0)
    error = jnp.sqrt(jnp.maximum(1.0 / ess - 1.0, 0.0) / (num - 1))
    return Estimate(total - jnp.log(num), *jax.lax.stop_gradient((error, ess)))


@partial(jax.jit, static_argnames=("num", "seen"))
def _particles(
    which: PartialDistribution, key: PRNGKeyArray, num: int, seen: tuple[int, ...], values: Float[Array, "*batch seen"]
) -> tuple[Float[Array, "num *batch dim"], Float[Array, "num *batch"]]:
    """Whole vectors with the values at the coordinates `seen`, and logarithms of `p(vector) / q(rest | values)`."""
    dim = which.joint.event_shape[0]
    rest = tuple(place for place in range(dim) if place not in seen)
    batch = jnp.broadcast_shapes(which.joint.batch_shape, values.shape[:-1])
    values = jnp.broadcast_to(values, (*batch, len(seen)))
    proposal = which.proposal.given(rest, seen, jax.lax.stop_gradient(values))
    order = np.argsort((*seen, *rest))

    @jax.checkpoint
    def one(noise: Noise) -> tuple[Array, Array]:
        # the gradient at fixed particles and proposal is the weighted mean of the joint's: Fisher's identity
        drawn = jax.lax.stop_gradient(proposal.draw(noise))
        log_proposal = jax.lax.stop_gradient(proposal.log_prob(drawn))
        x = jnp.concatenate([values, drawn], axis=-1)[..., order]
        return x, jnp.asarray(which.joint.log_prob(x)) - log_proposal

    noise = proposal.noise(key, num)
    at_once = max(1, _AT_ONCE // max(1, math.prod(batch) * len(proposal.dof) * len(rest)))
    if num <= at_once:
        return jax.vmap(one)(noise)
    num_rounds = -(-num // at_once)
    index = np.arange(num_rounds * -(-num // num_rounds)).reshape(num_rounds, -1) % num  # the last round repeats some
    each = jax.lax.map(lambda some: jax.vmap(one)(jax.tree.map(lambda a: a[some], noise)), index)
    return jax.tree.map(lambda a: a.reshape(index.size, *a.shape[2:])[:num], each)
