"""Measuring models: scores of a split, comparison, promotion, the model card."""
