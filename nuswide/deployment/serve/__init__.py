"""The HTTP server of a registered model: MLflow's scoring app behind checks of every request.

It needs no torch and runs no code from the registry: this package's own tagger scores with the
model's data.
"""
