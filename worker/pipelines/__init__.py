"""Orchestration: what happens in which order. No tensor code here; that is ``worker.ml``."""
