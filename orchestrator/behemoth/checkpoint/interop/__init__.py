"""Formats of other people, in and out: tensors that are read lazily, name maps as data, safetensors. Opens no path."""
