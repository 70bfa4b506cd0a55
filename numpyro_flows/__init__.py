"""Normalizing flows for Bayesian inference with NumPyro."""

import lazy_loader

# names are imported when they are first used, from where `__init__.pyi` says: importing the package costs nothing
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
