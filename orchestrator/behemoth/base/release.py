"""Which release of a package is installed here."""

from __future__ import annotations

from importlib import metadata


def installed(package: str) -> str | None:
    """None where nobody has installed it, as in a source tree on the path."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
