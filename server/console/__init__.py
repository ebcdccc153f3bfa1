"""Operators' access and their pages."""
