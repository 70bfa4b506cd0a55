"""Every constant of `FlowVI`'s default way to fit a posterior, with where it comes from."""

from dataclasses import dataclass


@dataclass(frozen=True)
class FitRecipe:
    """The constants of a fit, in the order of its stages. None was chosen by a model's name.

    Shapes (sizes of compiled functions, without influence on a fit):
        batch: points of one evaluation of density and gradient.
        block: draws of one call of the compiled sampler.
        chunk: steps of one call of the training loop: what the progress bar and Ctrl-C wait for.

    Start:
        num_starts: points from which Newton's method climbs, of either kind: uniform ones and draws from the prior. METHOD.md's
            "never trust one start".
        start_radius: the uniform ones lie in `(-2, 2)` on the unconstrained scale, as NumPyro's and Stan's own first values.

    Newton:
        newton_steps: most steps; climbs from everyday starts are over after 5 to 20.
        newton_lengths: lengths of a step tried side by side, instead of a line search.
        newton_tolerance: squared length of a step, in local standard deviations, at which a climb is over.
        difference: half the distance, in local standard deviations, of the central differences behind a Hessian; the
            cube root of the rounding error makes rounding and truncation alike.
        max_full_dim: above it a covariance is diagonal and Newton is left out: both cost its square.

    Gaussian:
        refine_steps, refine_draws: natural-gradient steps at most, and their draws, in pairs `u, -u`.
        refine_window, refine_gain: they end where the mean ELBO of so many steps is not better by so many nats than that
            of as many before: 0.01 nat is half of what seeds may differ by.
        refine_max_move: most that one step moves the mean, in standard deviations.
        refine_precision_bounds: most that one step changes a precision.
        num_candidates: Gaussians at modes that compete, those of the largest evidence by Laplace's approximation.
        unit_start_ess: where the Gaussian found from a mode has less, the best one of unit scale at the starts competes:
            a density without a mode, such as a centred hierarchical model's, needs it.

    Flow:
        num_steps: budget; a posterior that needs more wants another parametrisation.
        num_particles: draws of one step: 128 to 256 cost the same time on a CPU in everyday dimensions.
        learning_rate: peak of Adam's; above 2e-2 couplings diverged, below 3e-3 the same fit took twice the steps.
        clip_norm: norm to which gradients are clipped.
        warmup: share of a round's steps over which the rate rises; then it falls as a cosine.
        first_round, longest_round: steps; each round has twice as many as the one before.
        forward_ess: from here on weights are good enough to train by the forward KL, which fills the tails.
        forward_rate: learning rate of such rounds, as a share of the others'.
        max_weight: most that one draw counts in the forward KL, in units of the mean.

    Certificate:
        target_ess: ESS at which training ends.
        certificate_draws: fresh draws of a verdict; 10,000 are what k-hat's threshold was studied with (Vehtari et al.
            2024, arXiv 1507.02646).
        max_khat, min_ess: certified are fits with k-hat below 0.7 (the same source) and at least half of the draws'
            worth.
        sufficient_ess: or with this ESS whatever k-hat: nearly constant weights can look heavy-tailed on their own tiny
            scale (METHOD.md: 1.05 at 99.9%).

    Missed modes:
        dispersed_starts: climbs from around the fitted Gaussian.
        dispersion: they start at so many of its standard deviations, from the first to the second, evenly in logarithm.
            Two modes of equal shape 8 apart: a climb from the first finds the second with probability 0.35 in
            the mean, so all 24 miss it in one fit of 30,000.
        mode_draws: draws from a local Gaussian that measure the mass around its mode.
        heavier: share beyond which the fit starts again from the modes found.
        max_missed: share of the posterior around a found mode that the fit may lack, beyond three standard errors.
    """

    batch: int = 128
    block: int = 1000
    chunk: int = 100

    num_starts: int = 8
    start_radius: float = 2.0

    newton_steps: int = 40
    newton_lengths: tuple[float, ...] = (1.0, 0.25, 0.0625, 0.015625, 0.00390625)
    newton_tolerance: float = 1e-4
    max_full_dim: int = 256

    refine_steps: int = 100
    refine_draws: int = 128
    refine_window: int = 20
    refine_gain: float = 0.01
    refine_max_move: float = 3.0
    refine_precision_bounds: tuple[float, float] = (0.25, 4.0)
    unit_start_ess: float = 0.1
    num_candidates: int = 4

    num_steps: int = 10_000
    num_particles: int = 128
    learning_rate: float = 1e-2
    clip_norm: float = 10.0
    warmup: float = 0.1
    first_round: int = 400
    round_growth: int = 2
    longest_round: int = 2400
    forward_ess: float = 0.5
    forward_share: float = 0.95
    forward_rate: float = 0.5
    max_weight: float = 10.0

    target_ess: float = 0.95
    certificate_draws: int = 10_000
    max_khat: float = 0.7
    min_ess: float = 0.5
    sufficient_ess: float = 0.99

    dispersed_starts: int = 24
    dispersion: tuple[float, float] = (3.0, 30.0)
    mode_draws: int = 2_000
    heavier: float = 0.5
    max_missed: float = 0.01


RECIPE = FitRecipe()
