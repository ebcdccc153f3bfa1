"""Channels and releases: which version devices should run."""
