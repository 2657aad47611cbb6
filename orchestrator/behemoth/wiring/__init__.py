"""One file per process; the only place that builds adapters and joins them."""
