"""Recipes of continuous flows: solutions of a differential equation, by a solver or in closed form."""

from typing import Protocol, runtime_checkable

import diffrax
from jaxtyping import PRNGKeyArray

from numpyro_flows.arguments import require_callable, require_counts, require_key
from numpyro_flows.bijections import MatrixExponential, Scan
from numpyro_flows.bijections.matrix_exponential import Gate
from numpyro_flows.continuous import AbstractDivergence, AbstractField, ContinuousFlow, Hutchinson, MLPField, Training
from numpyro_flows.flows.stack import stacked

_MAX_EXACT_DIM = 32  # coordinates above which training estimates the divergence


@runtime_checkable
class FieldRecipe(Protocol):
    """`field(key, dim, cond_dim=...)`, such as `MLPField`, or `functools.partial` of it with other options."""

    def __call__(self, key: PRNGKeyArray, dim: int, *, cond_dim: int | None = None) -> AbstractField: ...


def ffjord(
    key: PRNGKeyArray,
    dim: int,
    *,
    cond_dim: int | None = None,
    field: FieldRecipe = MLPField,
    divergence: AbstractDivergence | None = None,
    solver: diffrax.AbstractSolver | None = None,
    stepsize_controller: diffrax.AbstractStepSizeController | None = None,
    adjoint: diffrax.AbstractAdjoint | None = None,
    interval: tuple[float, float] = (0.0, 1.0),
    training: Training | None = None,
) -> ContinuousFlow:
    """Free-form continuous flow: `dx/dt = v(t, x)` from base to target, `log |det dy/dx| = int tr(dv/dx) dt`.

    It has no layers: every coordinate may depend on all others. A density or a draw takes one solution of the equation,
        with the exact divergence `dim` times as much. Train it on data by
        `fit_density(..., objective="flow_matching")`, which needs no solver, and as a guide by `FlowVI`. As a guide, a
        smaller field is enough and faster, for example `functools.partial(MLPField, hidden=(32, 32))`.

    Args:
        key: random key.
        dim: number of coordinates.
        cond_dim: length of a condition, None without one.
        field: recipe `(key, dim, cond_dim=...)` of the vector field.
        divergence: divergence of the field, as for `ContinuousFlow`; exact by default.
        solver: a diffrax solver; `Tsit5` by default.
        stepsize_controller: a diffrax controller; by default `continuous.adaptive(1e-4)`, whose steps have errors below
            1e-5.
        adjoint: a diffrax adjoint; by default one with recursive checkpoints.
        interval: times of the base and the target.
        training: how the equation is solved in training. By default the divergence is exact up to 32 coordinates, and
            above that estimated by Hutchinson's estimator with one probe.

    Raises:
        ValueError: if `dim` is below 1 or the interval is empty.
        RuntimeError: (from `eqx.error_if`) if the solver fails.

    Source: Grathwohl, Chen, Bettencourt, Sutskever, Duvenaud 2019, arXiv 1810.01367.

    Example:
        >>> import jax
        >>> from numpyro_flows import flows
        >>> flows.ffjord(jax.random.key(0), 3).shape
        (3,)
    """
    require_key(key, "key")
    require_counts(dim=dim)
    require_callable("continuous.MLPField", field=field)
    if training is None:
        training = Training(divergence=Hutchinson(key) if dim > _MAX_EXACT_DIM else None)
    return ContinuousFlow(
        field(key, dim, cond_dim=cond_dim),
        divergence=divergence,
        solver=solver,
        stepsize_controller=stepsize_controller,
        adjoint=adjoint,
        interval=interval,
        training=training,
    )


def matrix_exponential(
    key: PRNGKeyArray,
    dim: int,
    *,
    cond_dim: int | None = None,
    num_layers: int = 1,
    time: float = 1.0,
    gate: Gate = "linear",
) -> Scan:
    """Linear flow in time: layers that solve `dx/dt = g'(t) (W x + b)` in closed form, by a matrix exponential.

    The flow is exact and needs no solver; at time 0 it is the identity. One layer can map the base to any Gaussian. Two
    layers with their own matrices can be any linear map with a positive determinant.

    Args:
        key: random key.
        dim: number of coordinates.
        cond_dim: 1 if the time is the condition; None if it is `time`.
        num_layers: number of layers.
        time: the time.
        gate: "linear" for `g(t) = t`, or "tanh" for `g(t) = tanh(rate t)` with a trained rate.

    Raises:
        ValueError: if `dim` or `num_layers` is below 1, `cond_dim` is neither None nor 1, `time` is not finite, or
            `gate` is unknown.

    Source: Xiao, Liu 2020, arXiv 2007.09651; Bilos, Sommer, Rangapuram, Januschowski, Gunnemann 2021 ("Neural flows"),
        arXiv 2110.13040.

    Example:
        >>> import jax
        >>> from numpyro_flows import flows
        >>> flow = flows.matrix_exponential(jax.random.key(0), 3, cond_dim=1)
        >>> flow.transform(jax.numpy.ones(3), jax.numpy.array([0.5])).shape
        (3,)
    """

    def layer(key: PRNGKeyArray) -> MatrixExponential:
        return MatrixExponential(key, dim, bias=True, time=time, cond_dim=cond_dim, gate=gate)

    return stacked(key, dim, num_layers, layer)
