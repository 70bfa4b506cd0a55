"""All constants of a fit by `FlowVI`, with their sources."""

from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np

from numpyro_flows.arguments import require_counts, require_flags, require_instance, require_numbers
from numpyro_flows.inference.density_cost import Cost

_SHARES = (
    *("unit_start_ess", "forward_ess", "forward_share", "min_ess", "sufficient_ess", "target_ess"),
    *("max_broken", "heavier", "max_missed", "tempering_ess", "max_cut", "min_cut", "least_share"),
)
# settings that make a certificate less strict above, or below, their defaults
_LOOSER_ABOVE = ("max_khat", "max_broken", "max_missed", "max_cut", "outside")
_LOOSER_BELOW = (
    *("min_ess", "sufficient_ess", "min_degrees_of_freedom", "certificate_draws"),
    *("dispersed_starts", "mode_draws", "max_full_dim", "tail_rays"),
    *("prior_draws", "ladder_draws", "axis_distances", "axis_points", "least_mode_draws", "profiled"),
    *("particles", "temperatures", "moves", "leapfrog_steps", "settling_moves"),
)
_SEARCH = ("prior_draws", "ladder_draws", "axis_distances", "particles")
_MOST_AT_ONCE = 2**20  # numbers in an array: above this, memory is slower than arithmetic
_FEWEST_AT_ONCE = 8  # points that share one pass over the data: one at a time, 1e6 x 50 took four times as long
_EXPENSIVE = 1e6  # numbers that a density computes, about a millisecond: above this the search is smaller
_SMALLEST_SEARCH = 0.25
_LEAST = {"certificate_draws": 1_000, "mode_draws": 1_000, "refine_draws": 2}  # fewer would not give an estimate


@dataclass(frozen=True)
class FlowVISettings:
    """The constants of a fit, in the order of its stages: `FlowVI(model, settings=FlowVISettings(max_khat=0.5))`.

    No constant depends on a model's name. "Measured" means: on the 20 posteriors of `benchmarks.posteriordb`, on two
    cores.

    Shapes (sizes of compiled functions; in a fit they change only the random numbers):

    - `batch`: points for one evaluation of density and gradient, fewer for large data. Measured: 128 took up to a third
      longer, because many calls have fewer points.
    - `block`: draws in one call of the compiled sampler, and points in one call of the density without gradient. FlowVI
      takes fewer for an expensive density: all points wait for the slowest one, and small calls are padded.
    - `chunk`: steps in one call of the training loop. The progress bar and Ctrl-C wait for the end of a call.

    Starts (a single start is not reliable: Agrawal, Sheldon, Domke 2020, arXiv 2006.10343):

    - `num_starts`: number of uniform starts of Newton's method, and of starts drawn from the prior.
    - `start_radius`: uniform starts are in `(-2, 2)` on the unconstrained scale, like NumPyro's initial values.

    Newton:

    - `newton_steps`: maximum number of steps. Measured: climbs that converge take 5 to 20.
    - `newton_lengths`: step lengths that are tried side by side, in place of a line search.
    - `newton_tolerance`: squared step length, in local standard deviations, at which a climb ends.
    - `keep_curvature`: whether several steps use one curvature. This saves time only if the density is expensive:
      otherwise the arithmetic of the steps takes longer than the gradients that are saved.
    - `max_full_dim`: above this dimension the covariance is diagonal, and Newton's method and the search for modes are
      left out. The cost of all three grows at least like the square of the dimension.

    Gaussian:

    - `num_candidates`: number of Gaussians at modes that compete: those with the largest evidence by Laplace's
      approximation.
    - `refine_steps`, `refine_draws`: maximum number of natural-gradient steps, and draws for each, in pairs `u, -u`.
    - `refine_window`, `refine_gain`: refinement ends if the ELBO of the last `refine_window` steps exceeds that of as
      many steps before by less than `refine_gain` nats. This is half of the 0.02 nats by which seeds may differ.
    - `refine_max_move`: largest move of the mean in one step, in standard deviations.
    - `refine_precision_bounds`: smallest and largest factor by which one step changes a precision.
    - `unit_start_ess`: if the Gaussian at a mode has a smaller ESS, the better of two widths at a start competes too. A
      density without a mode, such as that of a centred hierarchical model, needs this. It is refined as a diagonal
      Gaussian first: in 89 and 104 dimensions full ones diverged at once, and diagonal ones were within 3 nats after
      0.1 s.

    Flow:

    - `num_steps`: maximum number of steps. Measured: the hardest of the 20 posteriors took 7,600.
    - `num_particles`: draws for one step. Measured: 256 took twice the time for the same ESS.
    - `learning_rate`: peak learning rate of Adam. Measured: 5e-3 took twice the steps on the centred eight schools.
    - `first_round`, `round_growth`, `longest_round`: steps of the first and of the longest round, and the factor from
      one round to the next. Measured: one round is enough for 7 of the 9 posteriors that need a flow.
    - `forward_ess`: above this ESS training uses the forward KL, which fills the tails; below it the weights are too
      uneven for that.
    - `forward_share`: weight of the forward KL above `forward_ess`. The rest, the reverse KL, brings stray draws back.
    - `forward_rate`: factor on the learning rate above `forward_ess`.
    - `max_weight`: largest weight of a draw in the forward KL, in units of the mean weight.
    - `solver_gap`: difference of the ELBO, in nats, between the ODE solver of training and the flow's own. Above it the
      solver steps of training are doubled, because training exploits the errors of a solver that is too coarse.

    Certificate:

    - `certificate_draws`: fresh draws for a verdict. With 10,000, k-hat varied by 0.1 between sets of draws, and 1 fit
      in 100 passed by chance.
    - `max_khat`, `min_ess`: a fit is certified if k-hat is below 0.7 (Vehtari et al. 2024, arXiv 1507.02646) and the
      relative ESS is at least 0.5.
    - `sufficient_ess`: a fit with this ESS is certified whatever its k-hat. Nearly constant weights can look
      heavy-tailed on their own tiny scale (a k-hat of 1.05 at an ESS of 99.9% was seen).
    - `target_ess`, `target_khat`: training ends at these values, or at `sufficient_ess`. The k-hat is somewhat below
      the certificate's threshold, because k-hat varies between sets of draws.
    - `least_gain`: nats of ELBO per 1,000 steps. If k-hat is good, training that gains less ends before `target_ess`.
    - `max_broken`: largest share of draws at which the density may be NaN, for example because a solver fails in the
      tails. These draws are left out.

    Missed modes:

    - `dispersed_starts`: number of climbs that start around the fitted Gaussian.
    - `dispersion`: smallest and largest distance of these starts, in the Gaussian's standard deviations, evenly spaced
      on a log scale. Of two modes of equal width, climbs that start beyond the midpoint end in the other one.
    - `mode_draws`, `least_mode_draws`: draws from Gaussians around other modes that measure the mass there, in total
      and at least for each mode.
    - `outside`: a point is outside the fit if the posterior's density is this many times the fit's.
    - `prior_draws`: number of draws from the prior.
    - `ladder`, `ladder_draws`: factors on the scale of the fit's Gaussian, and the number of draws from these. They
      find modes as wide as the fit, but in many dimensions seldom narrower ones: see `benchmarks.blind`.
    - `axis_distances`, `axis_points`: maximum number of points on each side of an axis, between the distances of
      `dispersion`, and in total.
    - `inflation`, `particles`: tempered particles start from the fit's Gaussian, widened by this factor; their number.
    - `temperatures`, `tempering_ess`, `moves`: maximum number of tempering steps, the smallest ESS of a step, and the
      moves in it.
    - `leapfrog_steps`, `leapfrog_lengths`: steps of a move, and the range of their lengths in standard deviations.
    - `settling_moves`: moves of points outside the fit, before the mass around them is measured.
    - `max_groups`: maximum number of Gaussians for points around which no climb converges.
    - `most_modes`: a search stops at this number of modes; the next search continues.
    - `heavier`: if a larger share of the posterior lies elsewhere, the fit starts again there.
    - `max_missed`: largest share of the posterior that a fit may lack, beyond three standard errors.

    Necks:

    - `profile_distances`: distances, in standard deviations, at which the marginals of single coordinates are
      computed. These are coordinates that are constrained, have a flat prior, or are scales of others.
    - `profiled`: minimum number of such coordinates, if the model has as many.
    - `max_cut`: largest share of such a marginal that may lie beyond every draw.
    - `min_cut`: a mixture gets a component that reaches into a neck if more than this share lies beyond every draw; a
      certified fit gets one above a quarter of it. It always gets one if other scales depend on the coordinate. Modes
      with a smaller share get no component.

    Heavy tails:

    - `most_dim_of_diagonals`: maximum dimension in which rays between any two axes are checked too.
    - `tail_rays`, `tail_distances`: number of random directions beside the axes, and the distances, in standard
      deviations of the Gaussian, between which the decrease of the log density is measured.
    - `min_degrees_of_freedom`: tails of this index or less have no variance, and the verdict says so.

    After a fit is refused:

    - `mixture_rounds`, `mixture_draws`: maximum number of rounds that move a mixture towards the posterior, and draws
      for each.
    - `shrinkage`: the old covariance of a component counts as this many points for each dimension.
    - `degrees_of_freedom`: choices for a Student-t component; each component has its best one.
    - `least_share`: components with a smaller share are left out.
    - `searches`: maximum number of searches for what the mixture lacks. Each adds components, up to `most_components`.
    - `chains`: number of Markov chains, run side by side.
    - `chain_moves`: Hamiltonian moves in one sweep.
    - `chain_jumps`: jumps in one sweep by the difference of two chains. They connect the modes of single coordinates.
    - `first_sweeps`, `most_sweeps`: the number of sweeps is doubled until the chains agree or the maximum is reached.
    - `chain_draws`: chains with more than twice as many draws keep every second one.

    Draws:

    - `pool`: fresh draws for each draw that importance resampling returns.

    Raises:
        TypeError: if a value has another type than its default.
        ValueError: if a value is out of its range.

    Example:
        >>> from numpyro_flows import FlowVISettings
        >>> FlowVISettings(certificate_draws=50_000).min_ess
        0.5
    """

    batch: int = 64
    block: int = 1000
    chunk: int = 100

    num_starts: int = 8
    start_radius: float = 2.0

    newton_steps: int = 40
    newton_lengths: tuple[float, ...] = (1.0, 0.25, 0.0625, 0.015625, 0.00390625)
    newton_tolerance: float = 1e-4
    max_full_dim: int = 256
    keep_curvature: bool = False

    num_candidates: int = 4
    refine_steps: int = 100
    refine_draws: int = 128
    refine_window: int = 20
    refine_gain: float = 0.01
    refine_max_move: float = 3.0
    refine_precision_bounds: tuple[float, float] = (0.25, 4.0)
    unit_start_ess: float = 0.1

    num_steps: int = 10_000
    num_particles: int = 128
    learning_rate: float = 1e-2
    first_round: int = 400
    round_growth: int = 2
    longest_round: int = 2400
    forward_ess: float = 0.5
    forward_share: float = 0.95
    forward_rate: float = 0.5
    max_weight: float = 10.0
    solver_gap: float = 0.01

    certificate_draws: int = 20_000
    max_khat: float = 0.7
    min_ess: float = 0.5
    sufficient_ess: float = 0.99
    target_ess: float = 0.5
    target_khat: float = 0.65
    least_gain: float = 0.02
    max_broken: float = 1e-3

    dispersed_starts: int = 36
    dispersion: tuple[float, float] = (3.0, 300.0)
    mode_draws: int = 2_000
    least_mode_draws: int = 100
    heavier: float = 0.5
    max_missed: float = 0.01

    outside: float = 10.0
    prior_draws: int = 1_024
    ladder: tuple[float, ...] = (1 / 30, 1 / 10, 1 / 3, 1.0, 2.0, 3.0, 5.0, 8.0, 13.0, 30.0)
    ladder_draws: int = 6_000
    axis_distances: int = 24
    axis_points: int = 4_096
    inflation: float = 10.0
    particles: int = 256
    temperatures: int = 40
    tempering_ess: float = 0.5
    moves: int = 2
    leapfrog_steps: int = 3
    leapfrog_lengths: tuple[float, float] = (0.02, 1.5)
    settling_moves: int = 10
    max_groups: int = 6
    most_modes: int = 48

    profile_distances: tuple[float, ...] = (
        *(0.5, 1.0, 1.5, 2.0, 2.5, 3.0, 3.5, 4.0, 5.0, 6.0, 8.0, 10.0, 14.0, 20.0, 30.0, 40.0, 60.0, 80.0, 120.0),
    )
    profiled: int = 8
    max_cut: float = 0.005
    min_cut: float = 0.001

    tail_rays: int = 32
    most_dim_of_diagonals: int = 8
    tail_distances: tuple[float, float] = (1e2, 1e4)
    min_degrees_of_freedom: float = 2.0

    mixture_rounds: int = 12
    mixture_draws: int = 4_096
    shrinkage: float = 2.0
    degrees_of_freedom: tuple[float, ...] = (2.0, 4.0, 10.0, 30.0, 1e6)
    least_share: float = 1e-4
    searches: int = 16
    most_components: int = 200
    chains: int = 128
    chain_moves: int = 2
    chain_jumps: int = 8
    first_sweeps: int = 400
    most_sweeps: int = 6_400
    chain_draws: int = 300

    pool: int = 4

    def __post_init__(self) -> None:
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        require_counts(0, num_steps=values.pop("num_steps"))
        require_flags(keep_curvature=values.pop("keep_curvature"))
        for name, least in _LEAST.items():
            require_counts(least, **{name: values.pop(name)})
        require_numbers("(0, 1]", **{name: values.pop(name) for name in _SHARES})
        defaults = {field.name: field.default for field in fields(self)}
        for name, value in values.items():
            if isinstance(defaults[name], tuple):
                _require_tuple(name, value, defaults[name])
            elif isinstance(defaults[name], int):
                require_counts(**{name: value})
            else:
                require_numbers("(0, inf)", **{name: value})

    def thorough(self) -> "FlowVISettings":
        """The same settings with ten times the search for what a fit lacks."""
        counts = {name: 4 * getattr(self, name) for name in (*_SEARCH, "dispersed_starts", "mode_draws")}
        return replace(self, **counts, moves=4, leapfrog_steps=5)

    def affordable(self, cost: Cost) -> "FlowVISettings":
        """The same settings, adapted to a density of this cost: fewer points at a time and a smaller search.

        Values that differ from the default stay. The number of climbs stays too: with a quarter of them, 4 of 104 fits
        of two equal modes found only one mode and were certified.
        """
        share = float(np.clip(np.sqrt(_EXPENSIVE / max(cost.numbers, 1)), _SMALLEST_SEARCH, 1.0))
        scaled = {name: int(np.ceil(share * getattr(FlowVISettings(), name))) for name in (*_SEARCH, "pool")}
        scaled["keep_curvature"] = self.keep_curvature or share < 1.0
        for name, size in (("batch", cost.largest), ("block", cost.at_once)):
            at_once = 2 ** int(np.log2(_MOST_AT_ONCE / max(size, 1)))
            scaled[name] = int(np.clip(at_once, _FEWEST_AT_ONCE, getattr(FlowVISettings(), name)))
        scaled["block"] = max(scaled["block"], scaled["batch"])  # values need less memory than gradients
        given = [name for name in scaled if getattr(self, name) != getattr(FlowVISettings(), name)]
        return replace(self, **{name: number for name, number in scaled.items() if name not in given})

    def of_draws(self, cost: Cost) -> "FlowVISettings":
        """The same settings for draws from a fit: an expensive density gets smaller blocks and a smaller pool."""
        affordable = self.affordable(cost)
        return replace(self, block=affordable.block, pool=affordable.pool)

    def loosened(self) -> str:
        """The settings that make a certificate less strict than the defaults, as text; empty if there are none."""
        default = type(self)()
        above = [name for name in _LOOSER_ABOVE if getattr(self, name) > getattr(default, name)]
        below = [name for name in _LOOSER_BELOW if getattr(self, name) < getattr(default, name)]
        return ", ".join(f"{name}={getattr(self, name)}" for name in (*above, *below))


def _require_tuple(name: str, value: Any, default: Any) -> None:
    """Check a tuple of positive numbers: two in increasing order, or any number of lengths."""
    require_instance(tuple, str(default), **{name: value})
    for number in value:
        require_numbers("(0, inf)", **{f"each number of {name}": number})
    if not value or (len(default) == 2 and not (len(value) == 2 and value[0] < value[1])):
        expected = "two numbers, the smaller one first" if len(default) == 2 else "at least one number"
        raise ValueError(f"{name} expected {expected}, got {value}")
