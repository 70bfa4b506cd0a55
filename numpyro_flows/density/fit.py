"""Density estimation: fit a flow to data."""

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
_MATCHING_ROUND = 1_000  # minimum number of steps between two evaluations of the validation rows
_MATCHING_BATCH = 256  # smaller batches do not help: random times and base draws add enough noise


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
    """Fit a flow to data, by default by maximum likelihood: minimise the mean negative log likelihood.

    `fit_density` first maps the data to unconstrained values and splits the rows into training, validation and test
    rows. Power transforms make skewed columns nearly normal, and whitening uses standard deviations or the covariance.
    Both become part of the flow, and training starts from there. Adam takes minibatches in compiled rounds of about an
    epoch. The learning rate rises and then falls as a cosine. After each round the validation rows are scored, and the
    best parameters are kept.

    Outliers are left out of training and scores, and a warning names them. An outlier is a row that in some column is
    1,000 robust standard deviations or more away from the others, beyond what the tail of the others explains. At most
    2% of the rows count as outliers.

    A continuous flow (`flows.ffjord`) is best trained by `objective="flow_matching"`, a regression without an ODE
    solver: two moons take seconds. Its validation score is still a likelihood, computed by the flow's own solver.
    Maximum likelihood trains a continuous flow with few solver steps. If its loss differs by 0.01 nats from the score
    of the same rows by the flow's own solver, the steps are doubled. To continue with another objective, pass the
    fitted flow with the same key and data, so that the same rows are held out.

    Args:
        rng_key: random key, of either style.
        data: an array `(num, *event)`, or a dict of sites, each `(num, *site)`, such as NumPyro's `get_samples()`. Also
            a pandas DataFrame or an xarray Dataset, whose columns or variables are sites, an ArviZ DataTree, whose
            posterior draws are used, or an iterator of such batches of rows, which are joined in memory. For sites the
            result is a distribution of sites.
        flow: a recipe `(key, dim, cond_dim=...) -> bijection`; or a fitted distribution, whose training continues on
            its own support.
        base: a NumPyro distribution of the flow's base events, or of one number, used for every coordinate, such as
            `dist.StudentT(5.0)`. Its parameters are trained with the flow, except those of a transformed distribution
            or a `MixtureGeneral`. By default training starts from a mixture of Gaussians. If the flow is not better on
            the validation rows, the mixture alone is returned (`fit.kept`). With a condition, and by flow matching, the
            default base is standard normal. `dist.Normal(0, 1)` fits the flow without a mixture.
        condition: condition of each row, `(num, cond_dim)`. The result is the density of the data given the condition;
            use it as `flow.given(condition)`. A dict of columns, `(num,)` or `(num, columns)`, works too. With
            `embedding`, an array `(num, ...)` of any shape, or a dict of such arrays.
        embedding: an Equinox module that maps one condition to a vector, such as `embeddings.SetEmbedding`; it is
            trained with the flow. Conditions are standardised first: each number of a vector, each feature of a set or
            series `(places, features)`, and each channel of an image `(channels, height, width)`. Integers and booleans
            stay as they are. In a dict, entries that a `mask` leaves out are set to 0.
        objective: "maximum_likelihood", "flow_matching", or a `FlowMatching` with another path or coupling.
        support: NumPyro constraint of an event. For an array it can be a list with one for each column, for sites a
            dict by site. Real numbers by default. `constraints.circular` declares angles. `boolean`,
            `nonnegative_integer`, `positive_integer` and `integer_interval(a, b)` declare whole numbers: unordered
            categories if the interval has at most 32 values, else ordered counts. With angles or whole numbers the
            result is a `MixedDistribution`. Its parts are trained one after the other: first the whole numbers, then
            the angles, then the real columns, for which `flow` is used.
        weights: weight of each row, not negative, such as importance weights; they need not sum to one.
        dequantize: whether to spread each integer `k` over `[k, k + 1)` by uniform noise, redrawn every round. Use a
            sequence to choose columns of an array, a dict to choose sites; other values get no noise. The mean log
            density over a cell is at most the logarithm of the cell's probability, so the log likelihood is a lower
            bound for that of the integers.
        noise: standard deviation of Gaussian noise that is added to all values, in units of the data, redrawn every
            round. Use it for images, whose density is rough without noise. The result and the scores describe the noisy
            data; `denoise` removes the noise from draws.
        condition_dropout: share of the training rows whose condition is replaced by zeros, chosen anew in each round.
            So the flow also learns the density without a condition, which `guided` needs.
        num_steps: maximum number of training steps; 5,000 by default, 20,000 by flow matching.
        batch_size: rows in a step; by default a fortieth of the rows, from 32 to 256. With few rows, small batches give
            better held-out scores. By flow matching 256.
        learning_rate: peak learning rate of Adam. The default is 5e-3; it is 2e-2 for the default flow with a condition
            and without an embedding, trained by maximum likelihood.
        patience: training ends after this many steps without a better validation score. By default this is the number
            of steps to the best score, and at least 250. Flow matching takes all steps by default: a step is cheap, and
            the score improves much at the end, where the learning rate falls. It keeps the last parameters unless
            earlier ones scored better by more than a standard error.
        validation: share of the rows for early stopping, at most 10,000 rows. By default a tenth, but for small data
            30 rows or a quarter of them, whichever is less.
        test: share of the rows that are set aside for `fit.test`.
        num_restarts: number of trainings from different starts, run side by side; the one with the best validation
            score is kept.
        progress_bar: whether to show a progress bar.
        callback: called after each round with `step`, `losses` (on the whitened scale) and `figures` ("nll", the best
            score of the validation rows). If it returns True, the fit ends.
        checkpoint: path of a file to which the state of training is written after each round, on Ctrl-C and on SIGTERM.
            A second call with the same arguments continues from this file, and gives the result of an uninterrupted
            call, bit for bit. Fits by several processes cannot have one. With angles or whole numbers each part has its
            own file, such as PATH.angles.
        mesh: a `jax.sharding.Mesh` with one axis. Each of its devices keeps a part of the rows, and they split every
            minibatch and the validation rows. The result equals that of one device up to rounding; see
            docs/several_devices.md.

    Returns:
        The distribution, whose `fit` is a `DensityFit`. With angles or whole numbers it is a `MixedDistribution`, whose
        `fit` is a `MixedFit`. Ctrl-C ends the training (of one part, if there are several) and keeps the best
        parameters.

    Raises:
        TypeError: if data are not numbers, `flow` is neither a recipe nor a distribution, or `mesh` is not a mesh.
        ValueError: if data are not finite (the error lists the rows), lie outside the support or are constant in a
            coordinate. Also if there are too few rows, or a column has values that floating-point numbers cannot tell
            apart, such as Unix times in single precision. Also if weights are negative or all zero, or a number is out
            of its range. Also if `base` has other events, or a fitted `flow` has other sites, shapes or another support
            than the data. Also if the checkpoint belongs to another fit or to several processes, or `mesh` has several
            axes. Also if a recipe of angles is used without `constraints.circular`, or angles or whole numbers are used
            with another objective, `dequantize`, `noise`, `condition_dropout` or `embedding`. Also if `noise` would
            leave the support, or `condition_dropout` is used without a condition. Also if conditions have other keys or
            shapes than those of the flow or the embedding, or the embedding does not return a vector.

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
        raise ValueError(f"condition_dropout expected 0 without a condition, got {condition_dropout}: give condition=")
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
            raise ValueError("base expected None because flow is a distribution with its own base: leave base out")
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
            "condition_dropout expected rows of conditions that are not all 0, because zeros mean no condition, got a "
            "row of zeros: encode classes as one-hot vectors"
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
