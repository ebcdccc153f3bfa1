"""What every endpoint shares: problems, authentication, throttles, ranges, the audit log."""
