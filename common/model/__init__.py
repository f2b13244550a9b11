"""Models: loading, adapters, per-record gradients and their proof, shapes of batches, heads."""
