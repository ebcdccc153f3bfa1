"""Pages of the console that are rollouts' own."""
