"""What the tests of continuous flows share: small fields with parameters of everyday size."""

from functools import partial

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from numpyro_flows.continuous import LinearField, MLPField, OTFlowField, PotentialField

KEY = jax.random.PRNGKey(0)
DIM, COND_DIM = 3, 2
X = np.array([0.5, -1.0, 0.3])
CONDITION = np.array([0.7, -0.4])
FIELDS = {
    "mlp": partial(MLPField, hidden=(8, 8)),
    "mlp with time beside": partial(MLPField, hidden=(8,), time="concatenated"),
    "potential": partial(PotentialField, hidden=(8, 8)),
    "ot-flow": partial(OTFlowField, width=8),
}

# a solver of little accuracy, the quickest to compile
COARSE = {"solver": diffrax.Euler(), "stepsize_controller": diffrax.ConstantStepSize(), "num_steps": 8}


def with_random_parameters(make, scale: float = 0.4):
    """What `make` gives of a key, all its parameters random: by NumPy, which compiles nothing."""
    shapes, rng = eqx.filter_eval_shape(make, KEY), np.random.default_rng(0)
    return jax.tree.map(lambda leaf: jnp.asarray(scale * rng.normal(size=leaf.shape), leaf.dtype), shapes)


def trained_field(name: str = "mlp", dim: int = DIM, cond_dim: int | None = None):
    return with_random_parameters(partial(FIELDS[name], dim=dim, cond_dim=cond_dim))


def linear_field(weight, bias=None) -> LinearField:
    weight = jnp.asarray(weight)
    bias = jnp.zeros(len(weight)) if bias is None else jnp.asarray(bias)
    return eqx.tree_at(lambda f: (f.weight, f.bias), LinearField(len(weight)), (weight, bias))


def within_standard_errors(values, expected: float, num: float = 4.0) -> bool:
    """Whether the mean of independent values is within so many standard errors of what it should be."""
    values = np.asarray(values, float)
    return abs(values.mean() - expected) <= num * values.std(ddof=1) / np.sqrt(values.size)
