"""The vocabulary of the core ("brain"), values only: Observation, Evidence, Effect, Decision, Fence."""
