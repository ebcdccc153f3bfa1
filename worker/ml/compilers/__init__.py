"""Compiled files."""
