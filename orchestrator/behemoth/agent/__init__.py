"""The node's program: workers, staged checkpoints, beats."""
