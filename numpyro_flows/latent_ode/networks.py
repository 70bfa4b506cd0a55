"""The networks of a latent ODE: the encoder of a series, and the field that the latent path follows."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, PRNGKeyArray

from numpyro_flows.networks import MLP
from numpyro_flows.training.seeds import named_key

_FIRST_LOG_SCALE = -2.0  # of q(z0 | series): narrow, so that the decoder has something to see from the first step on
_FIRST_TURN = 2.0  # standard deviation of the field's matrix at the start, in radians a window


class MLPWithCovariates(eqx.Module):
    """An `MLP` of an input and of covariates, which a matrix of their own adds to the first hidden layer.

    It starts with the same weights of the input whether or not there are covariates.
    """

    network: MLP
    matrix: Float[Array, "cov_dim first_width"]

    def __init__(self, key: PRNGKeyArray, in_size: int, out_size: int, hidden: tuple[int, ...], cov_dim: int):
        self.network = MLP(named_key(key, "network"), in_size, out_size, hidden)
        normal = jax.random.normal(named_key(key, "covariates"), (cov_dim, hidden[0]))
        self.matrix = normal / np.sqrt(max(cov_dim, 1))

    def __call__(self, x: Float[Array, " in_size"], covariates: Float[Array, " cov_dim"]) -> Float[Array, " out_size"]:
        none, num_later = jnp.zeros((), x.dtype), len(self.network.weights) - 2
        return self.network(x, modulation=[(none, covariates @ self.matrix), *[(none, none)] * num_later])


class Encoder(eqx.Module):
    """Mean and standard deviation of `q(z0 | series)`: a recurrent network reads a series from its end to its start.

    At each observed time the network sees the values (0 where missing), the mask and the time to the next later
    observation. A time where nothing is there leaves its state as it was, so padding changes nothing. The state has
    `width` numbers. The head sees the state, the first observed time and the covariates.
    """

    cell: eqx.nn.GRUCell
    head: MLPWithCovariates

    def __init__(self, key: PRNGKeyArray, obs_dim: int, latent_dim: int, width: int, cov_dim: int):
        self.cell = eqx.nn.GRUCell(2 * obs_dim + 1, width, key=named_key(key, "cell"))
        self.head = MLPWithCovariates(named_key(key, "head"), width + 1, 2 * latent_dim, (width,), cov_dim)

    def __call__(
        self,
        times: Float[Array, " length"],
        values: Float[Array, "length obs_dim"],
        mask: Bool[Array, "length obs_dim"],
        covariates: Float[Array, " cov_dim"],
    ) -> tuple[Float[Array, " latent_dim"], Float[Array, " latent_dim"]]:
        """Of times since the path's start, sorted even where masked, and standardised values and covariates."""

        def step(carry: tuple[Array, Array], inputs: tuple[Array, Array, Array]) -> tuple[tuple[Array, Array], None]:
            state, later = carry
            time, value, there = inputs
            seen = jnp.concatenate([jnp.where(there, value, 0.0), there.astype(value.dtype), (later - time)[None]])
            new_state = self.cell(seen, state)
            return (jnp.where(there.any(), new_state, state), jnp.where(there.any(), time, later)), None

        last = jnp.max(jnp.where(mask.any(-1), times, 0.0))
        state = jnp.zeros(self.cell.hidden_size, values.dtype)
        (state, first), _ = jax.lax.scan(step, (state, last), (times, values, mask), reverse=True)
        loc, log_scale = jnp.split(self.head(jnp.append(state, first), covariates), 2)
        return loc, jnp.exp(log_scale + _FIRST_LOG_SCALE)


class LatentField(eqx.Module):
    """`f(z, c) = W z + MLP(z, c)`: at the start only `W`, antisymmetric, so that latent paths turn, by some radians.

    From `W = 0` on, the error of spirals beyond the window was more than twice as large. There are two hidden layers.
    """

    linear: Float[Array, "dim dim"]
    network: MLPWithCovariates

    def __init__(self, key: PRNGKeyArray, dim: int, width: int, cov_dim: int):
        normal = jax.random.normal(named_key(key, "linear"), (dim, dim))
        self.linear = _FIRST_TURN * (normal - normal.T) / np.sqrt(2)
        self.network = MLPWithCovariates(named_key(key, "network"), dim, dim, (width, width), cov_dim)

    def __call__(self, z: Float[Array, " dim"], covariates: Float[Array, " cov_dim"]) -> Float[Array, " dim"]:
        return self.linear @ z + self.network(z, covariates)


def thinned(
    key: PRNGKeyArray, mask: Bool[Array, "num length obs_dim"], dropout: float
) -> Bool[Array, "num length obs_dim"]:
    """`mask` without a random share of each series' times, from 0 to `dropout`; a series keeps some, or all."""
    share_key, key = jax.random.split(key)
    there = mask.any(-1)
    share = dropout * jax.random.uniform(share_key, (len(mask), 1))
    kept = there & (jax.random.uniform(key, there.shape) >= share)
    return mask & jnp.where(kept.any(1, keepdims=True), kept, there)[..., None]
