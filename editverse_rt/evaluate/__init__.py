"""Scores of edited videos: metric models as ONNX graphs, exact measures, and judges that answer questions."""
