"""Density estimation compared with other libraries and with known densities."""
