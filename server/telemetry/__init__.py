"""What devices report."""
