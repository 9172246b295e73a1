"""Training, from one optimizer step to whole runs and sweeps."""
