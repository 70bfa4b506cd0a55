"""Anomaly detection by a density, with conformal p-values."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import ArrayLike, Float

from numpyro_flows.arguments import as_numbers, described, require_finite_rows
from numpyro_flows.density.observations import sites_of
from numpyro_flows.modeling.distributions import FlowDistribution
from numpyro_flows.modeling.mixed import MixedDistribution
from numpyro_flows.modeling.sites import table_as_sites


class AnomalyScores(NamedTuple):
    """The log density of every row and two p-values: anomalies have small p-values.

    Attributes:
        log_prob: `log p(x)`, in nats.
        p_density: share of reference rows whose density is no larger. It finds rows with a small density.
        typicality: `|log p(x) - m| / s`, with the mean `m` and standard deviation `s` of the reference rows' log
            densities.
        p_typicality: share of reference rows that are no more typical. It also finds rows with far too large a density:
            in many dimensions, draws of a distribution are never near its mode.

    Example:
        >>> import jax, numpy as np  # doctest: +SLOW
        >>> from numpyro_flows import FlowDistribution, anomaly_scores, flows
        >>> flow = FlowDistribution(flows.realnvp(jax.random.key(0), 2))
        >>> reference = flow.sample(jax.random.key(1), (99,))
        >>> anomaly_scores(flow, np.zeros((3, 2)), reference).p_typicality.shape
        (3,)
    """

    log_prob: Float[np.ndarray, " num"]
    p_density: Float[np.ndarray, " num"]
    typicality: Float[np.ndarray, " num"]
    p_typicality: Float[np.ndarray, " num"]


def anomaly_scores(
    flow: FlowDistribution | MixedDistribution,
    data: ArrayLike | Mapping[str, ArrayLike],
    reference: ArrayLike | Mapping[str, ArrayLike],
) -> AnomalyScores:
    """Score rows by a density, with p-values from their ranks among reference rows.

    A p-value is `(1 + number of reference rows that are as anomalous) / (1 + number of reference rows)`. Suppose a row
    has the same distribution as the reference rows, and the flow was trained on none of them. Then the p-value is at
    most `a` with a probability of at most `a`, for every level `a` and however good the flow.

    Args:
        flow: a density, as `fit_density` returns it.
        data: rows to score, `(num, *event)`, or sites.
        reference: regular rows that the flow was not trained on. Training rows would make the p-values too small.

    Raises:
        TypeError: if `flow` is not a `FlowDistribution`, or rows are not numbers.
        ValueError: if there is no row, there are fewer than two reference rows, a row is not finite, or its shape is
            not that of the flow's events.

    Source: typicality: Nalisnick, Matsukawa, Teh, Lakshminarayanan 2019, arXiv 1906.02994; p-values: Bates, Candes,
    Lei, Romano, Sesia 2023, arXiv 2104.08279.

    Example:
        >>> import jax  # doctest: +SLOW
        >>> from numpyro_flows import FlowDistribution, anomaly_scores, flows
        >>> flow = FlowDistribution(flows.realnvp(jax.random.key(0), 2))
        >>> regular = flow.sample(jax.random.key(1), (999,))
        >>> scores = anomaly_scores(flow, jax.numpy.array([[0.5, -1.0], [9.0, 9.0]]), regular)
        >>> [bool(p < 0.01) for p in scores.p_density]
        [False, True]
    """
    if not isinstance(flow, FlowDistribution | MixedDistribution):
        raise TypeError(f"flow expected a FlowDistribution, got {described(flow)}")
    if flow.sites is not None:
        data, reference = table_as_sites(data), table_as_sites(reference)
    parts = _checked(data, "data", least=1), _checked(reference, "reference", least=2)
    log_prob, usual = (_log_prob(flow, rows) for rows in parts)
    mean, deviation = usual.mean(), usual.std()
    typicality, reference_typicality = (np.abs(values - mean) / deviation for values in (log_prob, usual))
    return AnomalyScores(
        log_prob=log_prob,
        p_density=_p_value(-log_prob, -usual),
        typicality=typicality,
        p_typicality=_p_value(typicality, reference_typicality),
    )


def _checked(rows: Any, name: str, *, least: int) -> np.ndarray | dict[str, np.ndarray]:
    sites = sites_of(rows)
    parts = {name: rows} if sites is None else {f"site {site!r} of {name}": value for site, value in sites.items()}
    arrays = [as_numbers(value, part) for part, value in parts.items()]
    for part, array in zip(parts, arrays):
        if array.ndim == 0 or len(array) < least:
            raise ValueError(f"{part} expected at least {least} rows, got an array of shape {array.shape}")
        require_finite_rows(part, array)
    return arrays[0] if sites is None else dict(zip(sites, arrays))


def _log_prob(
    flow: FlowDistribution | MixedDistribution, rows: np.ndarray | dict[str, np.ndarray]
) -> Float[np.ndarray, " num"]:
    log_prob = np.asarray(jax.jit(flow.log_prob)(rows), np.float64)
    if log_prob.ndim != 1:
        raise ValueError(f"expected rows of shape (num, *{flow.event_shape}), got scores of shape {log_prob.shape}")
    return log_prob


def _p_value(score: Float[np.ndarray, " num"], reference: Float[np.ndarray, " rows"]) -> Float[np.ndarray, " num"]:
    as_anomalous = len(reference) - np.searchsorted(np.sort(reference), score, side="left")
    return (1 + as_anomalous) / (1 + len(reference))
