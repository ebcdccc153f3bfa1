"""Dataset snapshots and training runs; uploads of own models."""
