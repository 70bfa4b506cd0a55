"""Densities of data: `fit_density`, in `fit.py`, and what is done with one."""
