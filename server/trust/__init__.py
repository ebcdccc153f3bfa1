"""Signed metadata (The Update Framework): what a device may install, and who says so."""
