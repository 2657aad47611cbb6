"""Which release of a package is installed here."""

from __future__ import annotations

from importlib import metadata


def installed(package: str) -> str | None:
    """The version of a package; None where it is not installed, as in a source tree on the path."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
