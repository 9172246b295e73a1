"""MLflow: the one writer of runs, what is read back from them, and the registry."""
