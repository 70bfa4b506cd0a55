"""The networks of a latent ODE: the encoder of a series, and the field that the latent path follows."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, PRNGKeyArray

from numpyro_flows.networks import MLP

_FIRST_LOG_SCALE = -2.0  # of q(z0 | series): narrow, so that the decoder has something to see from the first step on
_FIRST_TURN = 2.0  # deviation of the field's matrix at the start, in radians a window


class Encoder(eqx.Module):
    """Mean and deviation of `q(z0 | series)`: a gated recurrent network that reads a series from its end to its start.

    At each observation it sees the value and the time to the next later one. What is masked leaves it as it was, so
    padding changes nothing. The network's state has `width` numbers.
    """

    cell: eqx.nn.GRUCell
    head: MLP

    def __init__(self, key: PRNGKeyArray, obs_dim: int, latent_dim: int, width: int):
        cell_key, head_key = jax.random.split(key)
        self.cell = eqx.nn.GRUCell(obs_dim + 1, width, key=cell_key)
        self.head = MLP(head_key, width + 1, 2 * latent_dim, (width,))

    def __call__(
        self, times: Float[Array, " length"], values: Float[Array, "length obs_dim"], mask: Bool[Array, " length"]
    ) -> tuple[Float[Array, " latent_dim"], Float[Array, " latent_dim"]]:
        """Of times since the path's start, sorted even where masked, and standardised values."""

        def step(carry: tuple[Array, Array], inputs: tuple[Array, Array, Array]) -> tuple[tuple[Array, Array], None]:
            state, later = carry
            time, value, there = inputs
            new_state = self.cell(jnp.append(value, later - time), state)
            return (jnp.where(there, new_state, state), jnp.where(there, time, later)), None

        last = jnp.max(jnp.where(mask, times, 0.0))
        state = jnp.zeros(self.cell.hidden_size, values.dtype)
        (state, first), _ = jax.lax.scan(step, (state, last), (times, values, mask), reverse=True)
        loc, log_scale = jnp.split(self.head(jnp.append(state, first)), 2)
        return loc, jnp.exp(log_scale + _FIRST_LOG_SCALE)


class LatentField(eqx.Module):
    """`f(z) = W z + MLP(z)`: at the start only `W`, antisymmetric, so that latent paths turn, by a radian or several.

    From `W = 0` on, the error of spirals beyond the window was more than twice as large. There are two hidden layers.
    """

    linear: Float[Array, "dim dim"]
    network: MLP

    def __init__(self, key: PRNGKeyArray, dim: int, width: int):
        linear_key, network_key = jax.random.split(key)
        normal = jax.random.normal(linear_key, (dim, dim))
        self.linear = _FIRST_TURN * (normal - normal.T) / np.sqrt(2)
        self.network = MLP(network_key, dim, dim, (width, width))

    def __call__(self, z: Float[Array, " dim"]) -> Float[Array, " dim"]:
        return self.linear @ z + self.network(z)


def thinned(key: PRNGKeyArray, mask: Bool[Array, "num length"], dropout: float) -> Bool[Array, "num length"]:
    """`mask` without a random share of each series, from 0 to `dropout`; a series keeps something, or everything."""
    share_key, key = jax.random.split(key)
    share = dropout * jax.random.uniform(share_key, (len(mask), 1))
    kept = mask & (jax.random.uniform(key, mask.shape) >= share)
    return jnp.where(kept.any(1, keepdims=True), kept, mask)
