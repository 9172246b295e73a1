"""Experiment-tracked training, evaluation, comparison and serving of multi-label image taggers."""

__version__ = "0.2.0"
