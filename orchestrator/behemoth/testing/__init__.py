"""Shipped with the package: fakes, fault injector, conformance suites, strategies."""
