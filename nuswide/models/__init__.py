"""Networks, heads, losses and optimizers."""
