"""The only package that may import kubernetes. Empty until there is a controller."""
