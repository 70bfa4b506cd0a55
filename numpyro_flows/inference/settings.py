"""Every constant of a fit by `FlowVI`, with where it comes from."""

from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np

from numpyro_flows.arguments import require_counts, require_flags, require_instance, require_numbers
from numpyro_flows.inference.density_cost import Cost

_SHARES = (
    *("unit_start_ess", "forward_ess", "forward_share", "min_ess", "sufficient_ess", "target_ess"),
    *("max_broken", "heavier", "max_missed", "tempering_ess", "max_cut", "min_cut", "least_share"),
)
# what a certificate is looser by where it is above, or below, its default
_LOOSER_ABOVE = ("max_khat", "max_broken", "max_missed", "max_cut", "outside")
_LOOSER_BELOW = (
    *("min_ess", "sufficient_ess", "min_degrees_of_freedom", "certificate_draws"),
    *("dispersed_starts", "mode_draws", "max_full_dim", "tail_rays"),
    *("prior_draws", "ladder_draws", "axis_distances", "axis_points", "least_mode_draws", "profiled"),
    *("particles", "temperatures", "moves", "leapfrog_steps", "settling_moves"),
)
_SEARCH = ("prior_draws", "ladder_draws", "axis_distances", "particles")
_MOST_AT_ONCE = 2**20  # numbers in an array: beyond, memory is slower than arithmetic
_FEWEST_AT_ONCE = 8  # share the reading of the data: of 1e6 x 50 one by one took four times as long
_EXPENSIVE = 1e6  # numbers that a density computes, a millisecond: from there on the search is smaller
_SMALLEST_SEARCH = 0.25
_LEAST = {"certificate_draws": 1_000, "mode_draws": 1_000, "refine_draws": 2}  # else nothing can be estimated


@dataclass(frozen=True)
class FlowVISettings:
    """The constants of a fit, in the order of its stages: `FlowVI(model, settings=FlowVISettings(max_khat=0.5))`.

    None depends on a model's name. "Measured" is: on the 20 posteriors of `benchmarks.posteriordb`, on two cores.

    Shapes (sizes of compiled functions, without influence on a fit but for its random numbers):

    - `batch`: points of one evaluation of density and gradient, fewer of large data; measured, 128 took up to a third
      longer, as many calls have fewer points.
    - `block`: draws of one call of the compiled sampler, and points whose value alone is computed at a time. Fewer if
      that is expensive: all wait for the slowest one, and small calls are filled up.
    - `chunk`: steps of one call of the training loop: what the progress bar and Ctrl-C wait for.

    Starts (one start is never to be trusted: Agrawal, Sheldon, Domke 2020, arXiv 2006.10343):

    - `num_starts`: points of either kind from which Newton's method climbs: uniform ones and draws from the prior.
    - `start_radius`: the uniform ones are in `(-2, 2)` on the unconstrained scale, as NumPyro's own first values.

    Newton:

    - `newton_steps`: most steps; measured, climbs that arrive at all do so in 5 to 20.
    - `newton_lengths`: lengths of a step tried side by side, in place of a line search.
    - `newton_tolerance`: squared length of a step, in local standard deviations, at which a climb is over.
    - `keep_curvature`: whether one curvature serves several steps. Set for densities that are expensive: of others
      the steps' own arithmetic takes longer than the gradients that are saved.
    - `max_full_dim`: above it a covariance is diagonal, and Newton and the search for modes are left out: all
      three cost at least the square of the dimension.

    Gaussian:

    - `num_candidates`: Gaussians at modes that compete, those of the largest evidence by Laplace's approximation.
    - `refine_steps`, `refine_draws`: most natural-gradient steps, and draws of each, in pairs `u, -u`.
    - `refine_window`, `refine_gain`: they end where so many steps have gained less than so many nats of ELBO over
      as many before; half of the 0.02 nat by which seeds may differ.
    - `refine_max_move`: most that one step moves the mean, in standard deviations.
    - `refine_precision_bounds`: most that one step changes a precision.
    - `unit_start_ess`: where the Gaussian at a mode has less, the best of two widths at a start competes: a density
      without a mode, such as a centred hierarchical model's, needs it. It is refined as a diagonal one first: of
      89 and 104 dimensions, full ones were lost at once, and diagonal ones within 3 nats after 0.1 s.

    Flow:

    - `num_steps`: budget; measured, the hardest of the 20 took 7,600.
    - `num_particles`: draws of one step; measured, 256 took twice the time for the same ESS.
    - `learning_rate`: peak of Adam's; measured, 5e-3 took twice the steps on the centred eight schools.
    - `first_round`, `round_growth`, `longest_round`: steps of a round, and the factor from one to the next; measured,
      the first is enough for 7 of the 9 posteriors that need a flow.
    - `forward_ess`: from this ESS on the weights are good enough to train by the forward KL, which fills the tails.
    - `forward_share`: weight of the forward KL then; the rest, the reverse KL, calls back draws that went astray.
    - `forward_rate`: learning rate then, as a share of the others'.
    - `max_weight`: most that one draw counts in the forward KL, in units of the mean.
    - `solver_gap`: nats of ELBO between the ODE solver of training and a flow's own, from which
      the solver steps of training are doubled: training learns to cheat a solver that is too coarse.

    Certificate:

    - `certificate_draws`: fresh draws of a verdict; with 10,000 k-hat varied by 0.1 from one set to the next, and one
      fit of 100 passed by luck.
    - `max_khat`, `min_ess`: certified are fits with k-hat below 0.7 (Vehtari et al. 2024, arXiv 1507.02646) and an ESS
      of at least half,
    - `sufficient_ess`: or with this ESS whatever k-hat: nearly constant weights look heavy-tailed on their own tiny
      scale (a k-hat of 1.05 at an ESS of 99.9% was seen).
    - `target_ess`, `target_khat`: where training ends: as k-hat varies, somewhat below the certificate's threshold, or
      where the ESS is sufficient by itself.
    - `least_gain`: nats of ELBO per 1,000 steps below which training ends short of the target ESS, if k-hat is good.
    - `max_broken`: share of draws at which the density may be NaN, as where a solver fails far out; they count as none.

    Missed modes:

    - `dispersed_starts`: climbs from around the fitted Gaussian,
    - `dispersion`: at so many of its standard deviations, from the first to the second, evenly on a log scale: of two
      like modes, climbs from beyond the middle between them end in the other.
    - `mode_draws`, `least_mode_draws`: draws of Gaussians around other modes that measure the mass there, in all and at
      least of each.
    - `outside`: how many times the posterior's density must exceed the fit's at a point to be outside of it.
    - `prior_draws`: draws of the prior.
    - `ladder`, `ladder_draws`: draws of the fit's Gaussian at so many times its scale. With these a rotated bump half
      as wide as the fit and 8 standard deviations away was found in 30 of 30 searches in 5 dimensions, 13 in 8, and 1
      in 20; one as wide as the fit in 30 in 8 and 20.
    - `axis_distances`, `axis_points`: most points on each side of an axis, between the distances of `dispersion`, and
      most in all.
    - `inflation`, `particles`, `temperatures`, `tempering_ess`, `moves`: tempered particles start from the fit's
      Gaussian so many times as wide; their number, the most steps, the least ESS of one, and the moves in it.
    - `leapfrog_steps`, `leapfrog_lengths`: steps of a move, and the range of their lengths in standard deviations.
    - `settling_moves`: moves of points that lie outside, before the mass around them is measured.
    - `max_groups`: most Gaussians for points around which no climb converges.
    - `most_modes`: from so many modes on one search looks for no more; the next one goes on.
    - `heavier`: share of the posterior that lies elsewhere from which the fit starts again there.
    - `max_missed`: share that a fit may lack, beyond three standard errors.

    Necks:

    - `profile_distances`: distances, in standard deviations, at which the marginals of single coordinates are
      computed: of at least `profiled` of those that are constrained, flat or scales of others.
    - `max_cut`: share of such a marginal that may lie beyond every draw. A mixture gets a component that
      reaches there from `min_cut` on, a certified fit from a quarter of it; always where others' scales depend on the
      coordinate. Modes of less than `min_cut` get none in a mixture.

    Heavy tails:

    - `most_dim_of_diagonals`: most dimensions in which rays go between any two axes, too.
    - `tail_rays`, `tail_distances`: directions beside the coordinates' own, and the distances, in standard deviations
      of the Gaussian, between which the fall of the log density is measured.
    - `min_degrees_of_freedom`: tails of this index or less have no variance, and the verdict says so.

    Where a fit is refused:

    - `mixture_rounds`, `mixture_draws`: most rounds that move a mixture towards the posterior, and draws of one.
    - `shrinkage`: its old covariances count as so many points for each dimension.
    - `degrees_of_freedom`: of its Student-t components, each of which has the best.
    - `least_share`: components with less are left out.
    - `searches`: most searches for what it lacks, after each of which it has more components, up to `most_components`.
    - `chains`: Markov chains side by side, and `chain_moves`, Hamiltonian moves of one sweep, and
      `chain_jumps`, its jumps by differences of chains: where single coordinates have two modes, they go between them.
    - `first_sweeps`, `most_sweeps`: there are twice as many, again and again, until the chains agree.
    - `chain_draws`: chains that have more than twice as many draws lose every second one.

    Draws:

    - `pool`: fresh draws for each one that importance resampling returns.

    Raises:
        TypeError: where one is of another kind than its default.
        ValueError: where one is out of its range.

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
        """The same with ten times the search for what a fit lacks."""
        counts = {name: 4 * getattr(self, name) for name in (*_SEARCH, "dispersed_starts", "mode_draws")}
        return replace(self, **counts, moves=4, leapfrog_steps=5)

    def affordable(self, cost: Cost) -> "FlowVISettings":
        """The same for a density of this cost: of an expensive one fewer points at a time, and a smaller search.

        What was given, and is not the default, stays. So do the climbs: with a quarter of them, 4 of 104 fits of two
        equal modes had only one, and were certified.
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
        """The same for draws of a fit: of an expensive density fewer at a time, and fewer that are not kept."""
        affordable = self.affordable(cost)
        return replace(self, block=affordable.block, pool=affordable.pool)

    def loosened(self) -> str:
        """The settings by which a certificate says less than the default's, as text; empty where there are none."""
        default = type(self)()
        above = [name for name in _LOOSER_ABOVE if getattr(self, name) > getattr(default, name)]
        below = [name for name in _LOOSER_BELOW if getattr(self, name) < getattr(default, name)]
        return ", ".join(f"{name}={getattr(self, name)}" for name in (*above, *below))


def _require_tuple(name: str, value: Any, default: Any) -> None:
    """Positive numbers: two that rise, or any number of lengths."""
    require_instance(tuple, str(default), **{name: value})
    for number in value:
        require_numbers("(0, inf)", **{f"each number of {name}": number})
    if not value or (len(default) == 2 and not (len(value) == 2 and value[0] < value[1])):
        expected = "two numbers, the smaller one first" if len(default) == 2 else "at least one number"
        raise ValueError(f"{name} expected {expected}, got {value}")
