"""How a continuous flow is solved in training, and the penalties on its trajectories."""

from typing import NamedTuple

import diffrax
import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Int

from numpyro_flows.arguments import require_counts, require_instance
from numpyro_flows.continuous.divergence import AbstractDivergence

MAX_TRAINING_STEPS = 256


class Energies(NamedTuple):
    """Integrals along a trajectory, or their weights in the training loss: small energies need few solver steps.

    Attributes:
        kinetic: `int |v|^2 dt` (RNODE: Finlay, Jacobsen, Nurbekyan, Oberman 2020, arXiv 2002.02798).
        jacobian: `int ||dv/dx||_F^2 dt` (RNODE).
        path_length: `int |v| dt`, the length of an event's path (OT-Flow: Onken, Wu Fung, Li, Ruthotto 2021, arXiv
            2006.00104).

    Example:
        >>> from numpyro_flows.continuous import Energies, Training
        >>> Training(penalties=Energies(path_length=0.1)).penalties.kinetic
        0.0
    """

    kinetic: float | Array = 0.0
    jacobian: float | Array = 0.0
    path_length: float | Array = 0.0


_RNODE = Energies(
    kinetic=0.01, jacobian=0.01
)  # the paper's value: fields that need few steps, at little cost in likelihood


class Training(eqx.Module):
    """How a continuous flow is solved in training: in few steps of equal size, which training itself increases.

    Args:
        num_steps: solver steps at the start.
        solver: a diffrax solver.
        divergence: divergence of the field in training; the flow's own by default.
        penalties: weights of the energies in the maximum likelihood loss; by default, as in RNODE, 0.01 for the first
            two.

    Raises:
        ValueError: if `num_steps` is below 1 or above 256.

    Example:
        >>> import jax
        >>> from numpyro_flows.continuous import ContinuousFlow, Hutchinson, MLPField, Training
        >>> training = Training(num_steps=4, divergence=Hutchinson(jax.random.key(0)))
        >>> flow = ContinuousFlow(MLPField(jax.random.key(1), 2), training=training)
        >>> int(flow.training.num_steps)
        4
    """

    num_steps: Int[Array, "..."]
    solver: diffrax.AbstractSolver
    divergence: AbstractDivergence | None
    penalties: Energies = eqx.field(static=True)

    def __init__(
        self,
        *,
        num_steps: int = 8,
        solver: diffrax.AbstractSolver | None = None,
        divergence: AbstractDivergence | None = None,
        penalties: Energies = _RNODE,
    ):
        require_counts(0, num_steps=num_steps)
        if not 1 <= num_steps <= MAX_TRAINING_STEPS:
            raise ValueError(f"num_steps expected from 1 to {MAX_TRAINING_STEPS}, got {num_steps}")
        self.num_steps = jnp.asarray(num_steps, "int32")
        self.solver = diffrax.Bosh3() if solver is None else solver
        require_instance(diffrax.AbstractSolver, "diffrax.Bosh3()", solver=self.solver)
        self.divergence = divergence
        self.penalties = Energies(*map(float, penalties))
