"""Metric models as ONNX graphs, for `editverse_rt.evaluate`."""
