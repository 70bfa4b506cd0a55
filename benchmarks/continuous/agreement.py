"""Densities and draws of a continuous flow compared with zuko's with the same weights: largest differences.

    uv run --group benchmarks --group peers python -m benchmarks.continuous.agreement

Both have three layers of 32 SiLU units, the same time features and random weights, and the exact divergence. The
tolerance is 1e-8, in double precision. zuko's time runs from the data to the base; ours does so with an interval from 1
to 0.
"""

from typing import Any

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import torch  # pyright: ignore[reportMissingImports]
import zuko  # pyright: ignore[reportMissingImports]

from benchmarks.results import save
from numpyro_flows import FlowDistribution
from numpyro_flows.continuous import ContinuousFlow, MLPField, adaptive

HIDDEN, DIMS, ROWS, TOLERANCE = (32, 32, 32), (2, 8), 500, 1e-8


def pair(dim: int) -> tuple[FlowDistribution, Any]:
    """Our flow and zuko's, with the same weights."""
    theirs: Any = zuko.flows.CNF(dim, hidden_features=HIDDEN, activation=torch.nn.SiLU, atol=TOLERANCE, rtol=TOLERANCE)
    theirs = theirs.double().eval()
    layers = [layer for layer in theirs.transform.ode.children() if hasattr(layer, "weight")]
    weights = [layer.weight.detach().numpy().T for layer in layers]
    weights[0] = np.roll(weights[0], dim, axis=0)  # they have the time before the coordinates
    biases = [layer.bias.detach().numpy() for layer in layers]
    field = MLPField(jax.random.key(0), dim, hidden=HIDDEN)
    copied = tuple(map(jnp.asarray, weights)), tuple(map(jnp.asarray, biases))
    field = eqx.tree_at(lambda f: (f.network.weights, f.network.biases), field, copied)
    flow = ContinuousFlow(field, solver=diffrax.Dopri5(), stepsize_controller=adaptive(TOLERANCE), interval=(1.0, 0.0))
    return FlowDistribution(flow), theirs


def compare(dim: int) -> dict[str, Any]:
    torch.manual_seed(0)
    ours, theirs = pair(dim)
    rows = np.random.default_rng(0).normal(size=(ROWS, dim))
    with torch.no_grad():
        distribution = theirs()
        log_prob = distribution.log_prob(torch.tensor(rows)).numpy()
        draws = distribution.transform.inv(torch.tensor(rows)).numpy()
    found = np.asarray(jax.jit(ours.log_prob)(rows))
    moved = np.asarray(jax.jit(jax.vmap(ours.bijection.transform))(rows))
    normal = -0.5 * (rows**2).sum(1) - 0.5 * dim * np.log(2 * np.pi)
    return {
        "dim": dim,
        "rows": ROWS,
        "largest_difference_of_log_prob": f"{np.abs(found - log_prob).max():.1e}",
        "largest_difference_of_draws": f"{np.abs(moved - draws).max():.1e}",
        "from_a_normal": f"{np.abs(found - normal).max():.2f}",
    }


def main() -> None:
    jax.config.update("jax_enable_x64", True)
    save("continuous_agreement", [compare(dim) for dim in DIMS])


if __name__ == "__main__":
    main()
