"""The stage that trains a flow around a Gaussian until fresh draws are good enough."""

from dataclasses import astuple, dataclass, field

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from numpyro_flows.arguments import require_callable
from numpyro_flows.bijections.compose import trained_and_fixed
from numpyro_flows.bijections.noise import estimates
from numpyro_flows.inference.certificate import Draws
from numpyro_flows.inference.compiled import FlowFunctions, compile_flow
from numpyro_flows.inference.flow_component import FlowComponent
from numpyro_flows.inference.gaussian import GaussianFit, no_climbs
from numpyro_flows.inference.judge import judge
from numpyro_flows.inference.losses import Objective, PathKL
from numpyro_flows.inference.minibatch import Minibatch
from numpyro_flows.inference.newton import Density
from numpyro_flows.inference.one_period import one_period
from numpyro_flows.inference.rounds import Best, Judged, UntilCertified, finished
from numpyro_flows.inference.settings import FlowVISettings
from numpyro_flows.inference.stages import Context, Fit
from numpyro_flows.inference.survey import Survey, search, weigh
from numpyro_flows.training.checkpoint import Checkpoint, program
from numpyro_flows.training.clock import Clock
from numpyro_flows.training.loop import Round, run
from numpyro_flows.training.reasons import Ending
from numpyro_flows.training.seeds import Seeds
from numpyro_flows.training.state import State
from numpyro_flows.training.steps import Optimizer, TrainState, clipped_adam
from numpyro_flows.training.watch import Watch


@dataclass(frozen=True)
class FlowTraining:
    """The stage that trains the guide's flow around the Gaussian of the earlier stages until the flow is certified.

    If the earlier fit is good enough, the stage leaves it as it is.

    Args:
        objective: the loss: `PathKL()`, `ForwardKL()`, or a function of your own with the same arguments.
        optimizer: a function of the learning rate, such as `optax.adam`; by default Adam with gradients clipped to a
            norm of 10. The learning rate peaks at `FlowVISettings.learning_rate` and falls as a cosine in each round.

    Raises:
        TypeError: if an argument cannot be called.

    Example:
        >>> import optax  # doctest: +SLOW
        >>> import jax, numpyro, numpyro.distributions as dist
        >>> from numpyro_flows import FlowTraining, FlowVI, GaussianStart
        >>> def model():
        ...     numpyro.sample("x", dist.Gamma(0.5, 1.0))
        >>> stages = GaussianStart(), FlowTraining(optimizer=optax.adamw)
        >>> posterior = FlowVI(model, stages=stages, num_steps=100, progress_bar=False).run(jax.random.key(0))
    """

    objective: Objective = field(default_factory=PathKL)
    optimizer: Optimizer = clipped_adam

    def __post_init__(self) -> None:
        require_callable("PathKL()", objective=self.objective)
        require_callable("optax.adam", optimizer=self.optimizer)

    def __call__(self, context: Context, fit: Fit) -> Fit:
        settings = context.settings
        done = finished(fit.certificate, settings) or fit.chains is not None
        if done or fit.stopped or settings.num_steps == 0:
            return fit
        with context.clock.stage("tracing"):
            functions = compile_flow(
                context.pool,
                context.target.of_one_period(fit.loc),
                context.guide,
                fit.scale,
                self.objective,
                self.optimizer,
                settings,
                context.devices,
                _minibatch(context, fit.loc),
            )
        gaussian = GaussianFit(fit.loc, fit.scale, -np.inf, no_climbs(fit.loc))
        task = FlowTask(
            settings,
            functions,
            fit.survey._replace(shares=(), modes=(), product=None),
            context.seeds,
            context.clock,
            one_period(context.density, fit.loc, context.target.coordinates.periodic),
            gaussian,
            context.density.values_alone,
        )
        return train_flow(task, fit, context.watch)


@dataclass(frozen=True)
class FlowTask:
    """The compiled functions of the flow stage: training steps, and verdicts on draws.

    density: the target's density on the host.
    gaussian: the fit's Gaussian; the search starts around it.
    values_alone: counter of evaluations; those of verdicts count for "flow".
    """

    settings: FlowVISettings
    functions: FlowFunctions
    survey: Survey
    seeds: Seeds
    clock: Clock
    density: Density
    gaussian: GaussianFit
    values_alone: dict[str, int] = field(default_factory=lambda: {"flow": 0})

    @property
    def chunk(self) -> int:
        return self.settings.chunk

    def train(self, state: State, planned: Round, rates: np.ndarray) -> tuple[TrainState, np.ndarray, int]:
        with self.clock.stage("compilation"):
            self.functions.train.wait()
        with self.clock.stage("flow"):
            seeds = self.seeds.many(self.chunk, "train", state.num_rounds, state.part)
            forward = rates.dtype.type(planned.forward)
            return jax.block_until_ready(self.functions.train(state.train, state.fixed, seeds, rates, forward))

    def score(self, state: State) -> Judged:
        arrays = eqx.combine(state.train.params, state.fixed)
        with self.clock.stage("compilation"):
            self.functions.draw.wait()
        with self.clock.stage("certificate"):
            num_blocks = -(-self.settings.certificate_draws // self.settings.block)
            seeds = self.seeds.many(num_blocks, "verdict", state.num_rounds)
            draws = weigh((Draws(*self.functions.draw(arrays, seed)) for seed in seeds), self.settings)
            self.values_alone["flow"] += len(draws.log_weight)
            certificate = judge(draws, self.survey, self.settings)
            if certificate.certified and self.survey.probes:
                certificate = judge(draws, self._searched(arrays, certificate.log_evidence, state), self.settings)
            coarse = self._solves_too_coarsely(arrays, state.num_rounds)
        if estimated := estimates(self.functions.static):
            why = f"log densities are random estimates ({', '.join(estimated)}), but weights need exact ones"
            certificate = certificate._replace(
                certified=False, why="; ".join([why, certificate.why] if certificate.why else [why])
            )
        return Judged(certificate, np.asarray(draws.log_weight, np.float64), coarse)

    def figures(self, state: State) -> dict[str, float]:
        certificate = state.best.judged.certificate
        return {"ess": certificate.ess, "khat": certificate.khat, "elbo": certificate.elbo}

    def _searched(self, arrays: PyTree, log_evidence: float, state: State) -> Survey:
        """The survey, updated by the mass that its probes find outside this flow."""
        log_prob = FlowComponent(arrays, self.functions.draw, self.functions.log_prob, self.settings.block).log_prob
        rng = self.seeds.rng("search", state.num_rounds)
        return search(self.density, self.gaussian, self.survey, log_prob, log_evidence, rng, self.settings)

    def _solves_too_coarsely(self, arrays: PyTree, round_number: int) -> bool:
        """Whether the ELBO of a continuous flow by training's solver differs from that by its own solver."""
        if self.functions.draw_coarsely is None:
            return False
        seed = self.seeds.one("solver", round_number)
        _, _, coarse = self.functions.draw_coarsely(arrays, seed)
        _, _, own = self.functions.draw(arrays, seed)
        apart = np.abs(np.mean(np.asarray(coarse, np.float64) - np.asarray(own, np.float64)))
        return not apart <= self.settings.solver_gap  # also True for NaN


def train_flow(task: FlowTask, start: Fit, watch: Watch) -> Fit:
    """Train the flow around the Gaussian of `start` until its verdict is good enough, and return the best fit.

    Ctrl-C ends the training with a verdict on the flow so far; a second Ctrl-C returns the best fit before.
    """
    settings, functions = task.settings, task.functions
    policy = UntilCertified(settings, functions.begin)
    with task.clock.stage("compilation"):
        functions.make.wait()
    arrays = functions.make(start.loc, start.scale, task.seeds.one("flow"))
    params, fixed = trained_and_fixed(arrays)
    best = Best(arrays, Judged(start.certificate, start.log_weights))
    state, ending = run(
        task,
        policy,
        State(functions.begin(params), fixed, best, policy.init()),
        watch=watch,
        checkpoint=Checkpoint(watch.checkpoint, lambda: _identity(task, start, arrays)),
        num_steps=settings.num_steps,
        title="flow stage",
    )
    fit, best = start, state.best
    if best.trained:
        bijection = eqx.combine(best.arrays, functions.static)
        fit = fit._replace(
            bijection=bijection,
            certificate=best.judged.certificate,
            log_weights=best.judged.log_weights,
            draw=functions.draw,
            log_prob=functions.log_prob,
        )
    losses = np.concatenate([np.zeros(0), *state.losses])
    return explained(fit._replace(losses=losses, num_skipped=state.num_skipped), ending)


def _identity(task: FlowTask, start: Fit, arrays: PyTree) -> dict[str, object]:
    return {
        "model, data or flow": (program(task.functions.train.jaxpr), arrays),
        "start": (start.certificate, start.log_weights, start.survey),
        "setting": astuple(task.settings),
        "key": task.seeds.entropy,
    }


def _minibatch(context: Context, centre: np.ndarray) -> Minibatch | None:
    """The estimated density that training uses for a model with a subsampled plate; None for other models."""
    if context.target.rows is None:
        return None
    (value,), (gradient,) = context.density(centre[None])
    return Minibatch(jnp.asarray(centre), jnp.asarray(value), jnp.asarray(gradient))


def explained(fit: Fit, ending: Ending) -> Fit:
    """The fit with the reason that ended its training; if it is not certified, also in its `why`."""
    certificate = fit.certificate
    if not certificate.certified:
        why = f"{certificate.why}, after {fit.losses.size} steps of training"
        why += f" ({fit.num_skipped} skipped as not finite)" if fit.num_skipped else ""
        why += f"; training was {ending.why}" if ending.why else ""
        certificate = certificate._replace(why=why)
    return fit._replace(certificate=certificate, reason=ending.reason)
