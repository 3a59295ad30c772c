"""Training objectives: what the model returned and its batch, to sums and counts per stream."""
