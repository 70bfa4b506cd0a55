"""A fit in a thread of its own, with a handle to wait for it or to end it."""

import threading
import warnings
from collections.abc import Callable
from concurrent.futures import CancelledError, Future
from typing import Any

from numpyro_flows.inference.posterior import FlowPosterior
from numpyro_flows.training.jax_context import with_jax_context
from numpyro_flows.training.watch import Progress, Watch


class BackgroundFit:
    """A fit that runs in a thread; made by `FlowVI.run_in_background`.

    If Python exits before the fit is over, the fit ends after its current step.

    Example:
        >>> import jax, numpyro, numpyro.distributions as dist  # doctest: +SLOW
        >>> from numpyro_flows import FlowVI
        >>> def model(y):
        ...     mu = numpyro.sample("mu", dist.Normal(0, 10))
        ...     numpyro.sample("y", dist.Normal(mu, 1), obs=y)
        >>> handle = FlowVI(model).run_in_background(jax.random.key(0), jax.numpy.array([1.0, 2.0, 3.0]))
        >>> handle.result().certified, handle.done()
        (True, True)
    """

    def __init__(self, fit: Callable[[Watch], FlowPosterior], watch: Watch):
        self._future: Future[FlowPosterior] = Future()
        self._callback = watch.callback
        self._progress: Progress | None = None
        self._cancelled = threading.Event()
        self._interrupted = self._warned = False
        watch = watch._replace(progress_bar=False, callback=self._called, check=self._check)
        self._future.set_running_or_notify_cancel()
        run = with_jax_context(self._run)
        threading.Thread(target=run, args=(fit, watch), name="numpyro_flows fit").start()

    def result(self, timeout: float | None = None) -> FlowPosterior:
        """The posterior, once the fit is over; after `cancel` the best result so far, whose `why` says so.

        The first call warns if the posterior is not certified. Ctrl-C ends the waiting, not the fit.

        Raises:
            TimeoutError: if the fit takes more than `timeout` seconds from now; it goes on.
            concurrent.futures.CancelledError: if the fit was cancelled before a Gaussian was fitted.
            Exception: what `FlowVI.run` would raise.
        """
        posterior = self._future.result(timeout)
        if not (posterior.certified or self._warned):
            self._warned = True
            warnings.warn(not_certified(posterior.why), UserWarning, stacklevel=2)
        return posterior

    def cancel(self) -> bool:
        """End the fit like Ctrl-C, and return at once; False if the fit was over already."""
        self._cancelled.set()
        return not self.done()

    def done(self) -> bool:
        """Whether the fit is over."""
        return self._future.done()

    @property
    def progress(self) -> Progress | None:
        """The flow stage after its last round: `step`, `losses` and `figures`; None before the first round."""
        return self._progress

    def __repr__(self) -> str:
        if not self.done():
            figures = f": step {self._progress.step}, ESS {self._progress.figures['ess']:.1%}" if self._progress else ""
            return f"BackgroundFit(running{figures})"
        error = self._future.exception()
        return f"BackgroundFit({self._future.result().verdict() if error is None else repr(error)})"

    def _run(self, fit: Callable[[Watch], FlowPosterior], watch: Watch) -> None:
        try:
            posterior = fit(watch)
        except KeyboardInterrupt:
            self._future.set_exception(CancelledError("the fit was cancelled before it had a result"))
        except BaseException as error:  # the thread of `result` raises it
            self._future.set_exception(error)
        else:
            self._future.set_result(posterior)

    def _called(self, progress: Progress) -> Any:
        self._progress = progress
        return None if self._callback is None else self._callback(progress)

    def _check(self) -> None:
        """Raise a KeyboardInterrupt, as Ctrl-C does in the main thread, once the fit should end."""
        over = self._cancelled.is_set() or not threading.main_thread().is_alive()
        if over and not self._interrupted:  # once: a second one would leave out the verdict
            self._interrupted = True
            raise KeyboardInterrupt


def not_certified(why: str) -> str:
    """The warning about a fit that is refused."""
    return f"the fit is not certified: {why}"
