"""``quickstart``."""
