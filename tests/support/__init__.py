"""What tests stand on: real data, and real services started for the length of a session."""
