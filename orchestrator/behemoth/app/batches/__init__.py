"""Large work on checkpoints in batches: on threads or on machines, resumable, with progress."""
