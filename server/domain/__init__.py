"""Rules as pure functions; standard library only."""
