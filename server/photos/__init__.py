"""Volunteers and their photos."""
