"""ObjectStore adapters: the only door to boto3, and the only place that opens checkpoint files."""
