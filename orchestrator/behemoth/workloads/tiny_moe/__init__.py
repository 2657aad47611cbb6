"""A toy mixture of experts after Llama 4, trained in float8 with data and expert parallelism.

`behemoth.workloads.tiny_moe:main` is the entry point, and the package is all that a fork server need preload: importing
it loads what the first step needs, makes no tensor and starts no thread.
"""

from behemoth.workloads.tiny_moe.program import main

__all__ = ["main"]
