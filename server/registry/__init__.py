"""Models, their labels, their versions and the compiled variants of those."""
