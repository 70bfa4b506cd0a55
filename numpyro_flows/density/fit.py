"""Density estimation: data in, a flow that was trained on them by maximum likelihood out."""

import os
from collections.abc import Callable
from typing import Any

import numpyro.distributions as dist
from jax.sharding import Mesh
from jaxtyping import ArrayLike, PRNGKeyArray

from numpyro_flows import flows
from numpyro_flows.arguments import described, require_counts, require_key, require_numbers
from numpyro_flows.continuous import FlowMatching
from numpyro_flows.density.angles import require_real
from numpyro_flows.density.base import checked_base
from numpyro_flows.density.conditions import checked_conditions
from numpyro_flows.density.defaults import (
    CONDITIONAL_RATE,
    LIKELIHOOD_ROUND,
    LIKELIHOOD_STEPS,
    USUAL_RATE,
    Options,
    split,
    usual_batch,
)
from numpyro_flows.density.estimation import estimate
from numpyro_flows.density.fitting import Settings
from numpyro_flows.density.losses import checked_matching
from numpyro_flows.density.mixed import fit_mixed, require_likelihood
from numpyro_flows.density.observations import (
    Dequantize,
    Support,
    checked_weights,
    observe,
    table_of_sites,
)
from numpyro_flows.density.outliers import near_rows
from numpyro_flows.density.resuming import base_of, observe_for, require_condition_of, require_not_distilled
from numpyro_flows.density.table import Table
from numpyro_flows.flows import Recipe
from numpyro_flows.modeling.columns import is_mixed
from numpyro_flows.modeling.distributions import FlowDistribution
from numpyro_flows.modeling.mixed import MixedDistribution
from numpyro_flows.modeling.transforms import Condition
from numpyro_flows.training.devices import Devices
from numpyro_flows.training.seeds import Seeds
from numpyro_flows.training.watch import Callback, Watch

_MATCHING_STEPS = 20_000
_MATCHING_ROUND = 1_000  # least number of steps between two looks at the validation rows
_MATCHING_BATCH = 256  # small ones are no help there: times and draws of the base are noise enough


def fit_density(
    rng_key: PRNGKeyArray,
    data: Any,
    *,
    flow: Recipe | FlowDistribution = flows.nsf_coupling,
    base: dist.Distribution | None = None,
    condition: Condition | None = None,
    embedding: Callable[..., Any] | None = None,
    objective: str | FlowMatching = "maximum_likelihood",
    support: Support = None,
    weights: ArrayLike | None = None,
    dequantize: Dequantize = False,
    noise: float = 0.0,
    condition_dropout: float = 0.0,
    num_steps: int | None = None,
    batch_size: int | None = None,
    learning_rate: float | None = None,
    patience: int | None = None,
    validation: float | None = None,
    test: float = 0.0,
    num_restarts: int = 1,
    progress_bar: bool = True,
    callback: Callback | None = None,
    checkpoint: str | os.PathLike | None = None,
    mesh: Mesh | None = None,
) -> FlowDistribution | Any:
    """Fit a flow to data, by default by maximum likelihood: the density whose mean negative log likelihood is least.

    The data are made unconstrained, and split. Skewed columns are made nearly normal by power transforms, and all are
    whitened by standard deviations or covariance. Both are folded into the flow, whose training starts there. Rows that
    are in a column 1,000 robust standard deviations or more away from the others (2% of the rows at most), beyond what
    the tail of these explains, are left out of training and scores, with a warning that names them. Adam
    takes minibatches in compiled rounds of about an epoch, at a rate that rises and then falls as a cosine; after each
    round the validation rows are scored, and the best parameters are kept.

    A continuous flow (`flows.ffjord`) is best trained by `objective="flow_matching"`, a regression that solves no
    equation: two moons in seconds. Its validation score is a likelihood all the same, by the flow's own solver. By
    maximum likelihood it is trained with few solver steps; where its loss then parts by 0.01 nats from the score of the
    same rows by the flow's own solver, the steps are doubled. To train on by another objective, give the fitted flow,
    and the same key and data, so that the same rows are held out.

    Args:
        rng_key: random key, of either style.
        data: an array `(num, *event)`; a dict of sites, each `(num, *site)`, as NumPyro's `get_samples()` gives it; a
            pandas DataFrame or an xarray Dataset, whose columns or variables are sites; an iterator of such batches of
            rows, which are joined in memory; or an ArviZ DataTree, of which the posterior's draws are taken. Of sites
            the result is a distribution of sites.
        flow: a recipe `(key, dim, cond_dim=...) -> bijection`; or a distribution fitted before, whose training goes on,
            on its own support.
        base: a NumPyro distribution of the flow's base events, or of one number for all coordinates alike, such as
            `dist.StudentT(5.0)`. Its parameters are trained with the flow, except those of a transformed distribution
            or a `MixtureGeneral`. By default training starts from a mixture of Gaussians, which is returned alone where
            the flow is not better on the validation rows (`fit.kept`); with a condition, and by flow matching, the base
            is standard normal. `dist.Normal(0, 1)` gives the flow alone.
        condition: of each row, `(num, cond_dim)`: the result is the density of the data given it, and is used as
            `flow.given(condition)`. Also a dict of columns, `(num,)` or `(num, columns)`; with `embedding` an array
            `(num, ...)` of any shape, or a dict of such arrays.
        embedding: an Equinox module that makes a vector of one condition, such as `embeddings.SetEmbedding`; it is
            trained with the flow. It sees conditions standardised: numbers of a vector each by itself, those of a set
            or series `(places, features)` by feature, those of an image `(channels, height, width)` by channel.
            Integers and booleans stay as they are. In a dict, what a `mask` leaves out is set to 0.
        objective: "maximum_likelihood", "flow_matching", or a `FlowMatching` with another path or coupling.
        support: NumPyro constraint of an event; for an array also one for each column; for sites a dict by site. Real
            numbers by default. `constraints.circular` are angles, and `boolean`, `nonnegative_integer`,
            `positive_integer` and `integer_interval(a, b)` whole numbers: unordered categories within an interval of
            at most 32 values, else ordered counts. With one of these the result is a `MixedDistribution`, whose parts
            are trained one after the other: first the whole numbers, then the angles, then the real columns, by `flow`.
        weights: of each row, not negative, such as importance weights; they need not sum to one.
        dequantize: for integers `k`, whether to spread each over `[k, k + 1)` by uniform noise, redrawn every round. A
            sequence says it for each column of an array, a dict for sites; other values get no noise. The mean log
            density over a cell is at most the logarithm of the cell's probability: a score is a lower bound of that
            of the integers.
        noise: standard deviation, in units of the data, of Gaussian noise that is added to all values, redrawn every
            round: for images, whose density alone is rough. Result and scores are of the noisy data; `denoise` takes
            the noise off draws.
        condition_dropout: share of the training rows, others in each round, whose condition is replaced by zeros, so
            that the flow learns the density without condition, too: what `guided` needs.
        num_steps: most training steps; 5,000 by default, by flow matching 20,000.
        batch_size: rows in a step; by default a fortieth of the rows, from 32 to 256: of few rows, small batches make
            flows that do better on others (digits: 37 nats by 32 rows, 49 by 256). By flow matching 256.
        learning_rate: peak learning rate of Adam; by default 5e-3, and 2e-2 for the default flow with a condition and
            no embedding, trained by maximum likelihood.
        patience: steps without a better validation score after which training ends; by default as many as the best
            score took, and at least 250. By flow matching all steps are taken by default: a step costs little, and much
            is won at the end, where the rate falls. There the last parameters are kept, unless others scored better by
            more than a standard error.
        validation: share of the rows to stop by; by default a tenth, at least 30 rows as far as that is no more than a
            quarter of them. At most 10,000 rows.
        test: share of the rows to set aside for `fit.test`.
        num_restarts: trainings from different starts, side by side; the one with the best validation score is kept.
        progress_bar: whether to show one.
        callback: called after each round with `step`, `losses` (on the whitened scale) and `figures` ("nll", of the
            best on the validation rows); where it returns True, the fit ends there.
        checkpoint: path of a file that the training is written to after each round, on Ctrl-C and on SIGTERM; a second
            call with the same arguments goes on from there, and ends as an uninterrupted one would, bit for bit.
            Several processes cannot have one. With angles or whole numbers each part has a file of its own, PATH.angles
            for example.
        mesh: a `jax.sharding.Mesh` of one axis, whose devices keep a part of the rows each, and split every minibatch
            and the validation rows. The result is that of one device, to rounding: docs/several_devices.md.

    Returns:
        The distribution, whose `fit` is a `DensityFit`; with angles or whole numbers a `MixedDistribution`, whose
        `fit` is a `MixedFit`. Ctrl-C ends the training, of several parts that of one, and keeps what was fitted.

    Raises:
        TypeError: where data are not numbers, `flow` is neither recipe nor distribution, or `mesh` is no mesh.
        ValueError: for data that are not finite (rows by index), outside the support or constant in a coordinate, for
            too few rows, for weights that are negative or all zero, and numbers out of their range; for columns whose
            values floating-point numbers do not tell apart, as Unix times in single precision; for a base of
            other events; for a distribution on other sites, shapes or another support than the data; for a checkpoint
            of another fit or for several processes; for a mesh of several axes; for a recipe of angles without
            `constraints.circular`; for another objective, `dequantize`, `noise`, `condition_dropout` or `embedding`
            with angles or whole numbers; for `noise` on a support that it would leave; for a dropout of no condition;
            for conditions of other keys or shapes than the flow's or the embedding's, and an embedding that returns no
            vector.

    Source: Papamakarios, Nalisnick, Rezende, Mohamed, Lakshminarayanan 2021, arXiv 1912.02762, section 2.3.1.

    Example:
        >>> import jax  # doctest: +SLOW
        >>> from numpyro_flows import fit_density
        >>> data = jax.random.normal(jax.random.key(0), (500, 2)) ** 2
        >>> from numpyro.distributions import constraints
        >>> flow = fit_density(
        ...     jax.random.key(1), data, support=constraints.positive, num_steps=100, progress_bar=False
        ... )
        >>> bool((flow.sample(jax.random.key(2), (100,)) > 0).all())
        True
    """
    require_key(rng_key)
    matching = checked_matching(objective)
    if not callable(flow):
        raise TypeError(f"flow expected a recipe or a FlowDistribution, got {described(flow)}")
    if num_steps is None:
        num_steps = LIKELIHOOD_STEPS if matching is None else _MATCHING_STEPS
    require_counts(num_steps=num_steps, num_restarts=num_restarts)
    if batch_size is not None:
        require_counts(batch_size=batch_size)
    if patience is not None:
        require_counts(patience=patience)
    if learning_rate is not None:
        require_numbers("(0, inf)", learning_rate=learning_rate)
    if validation is not None:
        require_numbers("(0, 1)", validation=validation)
    require_numbers("[0, 1)", test=test, condition_dropout=condition_dropout)
    require_numbers("[0, inf)", noise=noise)
    if condition_dropout and condition is None:
        raise ValueError(f"condition_dropout expected 0 without a condition, got {condition_dropout}")
    devices = Devices.of(mesh)
    watch = devices.watched(Watch(progress_bar, callback, checkpoint).checked())
    if not isinstance(flow, FlowDistribution) or flow.sites is not None:
        data = table_of_sites(data)
    if is_mixed(support) or isinstance(flow, MixedDistribution):
        require_likelihood(objective, dequantize, embedding, noise=noise, condition_dropout=condition_dropout)
        of_options = num_steps, batch_size, learning_rate or USUAL_RATE, patience, validation, test, num_restarts
        options = Options(*of_options, progress_bar, callback, mesh)
        given = {"base": base, "condition": condition, "weights": weights, "checkpoint": checkpoint}
        return fit_mixed(fit_density, rng_key, data, support, flow=flow, options=options, **given)
    if isinstance(flow, FlowDistribution):
        if base is not None:
            raise ValueError("base expected None where flow is a distribution, which has its own: leave it out")
        require_real(flow.bijection)
        require_not_distilled(flow.bijection)
        observations = observe_for(flow, data, support, dequantize, noise)
    else:
        observations = observe(data, support, dequantize=dequantize, noise=noise)
    all_weights = checked_weights(weights, observations.values)
    conditions = checked_conditions(condition, embedding, len(observations.values), flow)
    near = near_rows(observations, None if conditions is None else conditions.columns, all_weights)
    if not near.all():
        observations, all_weights = observations.only(near), all_weights[near]
        conditions = None if conditions is None else conditions.only(near)
    if condition_dropout and conditions is not None and not conditions.values.any(1).all():
        raise ValueError(
            "condition_dropout expected conditions that are not all 0 in a row, which stands for none, got such: give "
            "classes as one-hot vectors"
        )
    num, dim = observations.x.shape
    if isinstance(flow, FlowDistribution):
        require_condition_of(flow, None if conditions is None else conditions.values)
    checked = base_of(flow) if isinstance(flow, FlowDistribution) else checked_base(base, dim)
    seeds = Seeds.of(rng_key)
    rows = split(seeds.rng("split"), num, validation, test)
    if batch_size is None:
        batch_size = usual_batch(len(rows[0])) if matching is None else _MATCHING_BATCH
    if learning_rate is None:
        plainly_given = condition is not None and embedding is None and matching is None
        learning_rate = CONDITIONAL_RATE if plainly_given and flow is flows.nsf_coupling else USUAL_RATE
    settings = Settings(
        matching=matching,
        base=checked,
        trains_base=checked is not None,
        least_round=LIKELIHOOD_ROUND if matching is None else _MATCHING_ROUND,
        prefers_last=matching is not None,
        num_steps=num_steps,
        batch_size=batch_size,
        learning_rate=learning_rate,
        patience=num_steps if patience is None and matching is not None else patience,
        num_restarts=num_restarts,
    )
    train, held, tested = rows
    table = Table(observations, conditions, all_weights, train, held, tested, condition_dropout, seeds)
    return estimate(table, flow, settings, watch, devices, chooses_base=base is None)
