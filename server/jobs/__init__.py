"""The durable job ledger: rows with leases are the truth, the message broker is only a hint."""
