"""The job ledger, its workers and the supervisor, as real processes on real brokers."""
