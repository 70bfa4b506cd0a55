"""Posterior inference: a model in, a posterior with a verdict out. Start reading in `flow_vi.py`."""
