"""FlowVI's story: a model in, a posterior with a verdict out. It begins in `flow_vi.py`."""
