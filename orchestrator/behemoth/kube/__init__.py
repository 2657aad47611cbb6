"""The only door to the kubernetes package. Empty until the controller stands."""
