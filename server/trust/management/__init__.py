"""Commands around photos."""
