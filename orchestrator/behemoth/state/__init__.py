"""The vocabulary of the brain, values only: Observation, Evidence, Effect, Decision, Fence."""
