"""TensorRT plans on disk: their manifest, which may run here, and the stamp of those that were verified."""
