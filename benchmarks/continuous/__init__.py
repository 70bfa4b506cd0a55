"""Continuous flows beside naive ones, peers and known values."""
