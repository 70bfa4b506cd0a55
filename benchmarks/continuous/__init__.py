"""Continuous flows compared with naive ones, with other libraries and with known values."""
