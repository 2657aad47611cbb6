"""The parts of an `s3://bucket/prefix` URL: bucket, prefix and, after a `?`, endpoint, region and addressing.

Credentials are never part of it, because URLs stand in run files, logs and process lists: one that holds some is
refused, and the refusal does not repeat it. Must not ask the network or the environment. Neighbour: `s3_client`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from urllib.parse import SplitResult, parse_qsl, urlsplit

from behemoth.base.errors import Invalid
from behemoth.storage.keys import segments_of_prefix

CREDENTIALS_HINT = (
    "give credentials by AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, by a profile, or by the role of the machine"
)
_BUCKET = re.compile(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]")
"""Amazon S3 user guide, "General purpose bucket naming rules"."""
_REGION = re.compile(r"[A-Za-z0-9-]{1,63}")
_HOST = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+)(:[0-9]{1,5})?")
_PARAMETERS = ("endpoint", "region", "addressing")
_ADDRESSING = ("auto", "path", "virtual")
_FORM = "s3://BUCKET/PREFIX, with ?endpoint=URL&region=NAME&addressing=path behind it where needed"


@dataclass(frozen=True, slots=True, kw_only=True)
class S3Place:
    """`endpoint`, `region` and `addressing` are None where the environment, a profile or botocore's default decides."""

    bucket: str
    prefix: str
    """Without `/` at either end; empty: the whole bucket."""
    endpoint: str | None = None
    region: str | None = None
    addressing: str | None = None

    def __str__(self) -> str:
        return f"s3://{self.bucket}/{self.prefix}".removesuffix("/")

    def key_of(self, key: str) -> str:
        """The bucket's key of a store's key."""
        return f"{self.prefix}/{key}" if self.prefix else key


def parse_s3(url: str) -> S3Place:
    """Raises Invalid for anything but `s3://bucket[/prefix][?...]`, with the code `store-credentials` for credentials.
    The prefix is taken as it stands, without percent-decoding, as other tools for S3 do."""
    head, _, query = url.partition("?")
    bucket, _, prefix = head.partition("://")[2].partition("/")
    if holds_credentials(url):
        raise Invalid(
            "store s3://...: expected no credentials in a URL, got some",
            hint=CREDENTIALS_HINT,
            code="store-credentials",
        )
    if not _BUCKET.fullmatch(bucket):
        raise Invalid(f"store s3://{bucket}: expected the name of a bucket, got {bucket!r}", hint=f"write {_FORM}")
    if "#" in url:
        raise Invalid(f"store s3://{bucket}: expected no '#' in a URL, got one", hint=f"write {_FORM}")
    name = f"store s3://{bucket}/{prefix}"
    segments = segments_of_prefix(prefix)
    parameters = _parameters(name, query)
    addressing = parameters.get("addressing")
    if addressing is not None and addressing not in _ADDRESSING:
        raise Invalid(f"{name}: expected addressing {' or '.join(_ADDRESSING)}, got {addressing!r}")
    return S3Place(
        bucket=bucket,
        prefix="/".join(segments),
        endpoint=_endpoint(name, parameters.get("endpoint")),
        region=_region(name, parameters.get("region")),
        addressing=addressing,
    )


def holds_credentials(url: str) -> bool:
    """Whether something stands before the bucket, as `user:password@` does. A secret key may hold a `/`, so that what
    looks like the bucket is half of it; an `@` in the prefix of a sound bucket is one of the prefix."""
    bucket, _, prefix = url.partition("?")[0].partition("://")[2].partition("/")
    return "@" in bucket or ":" in bucket or ("@" in prefix and not _BUCKET.fullmatch(bucket))


def _parameters(name: str, query: str) -> dict[str, str]:
    """Values are not repeated in errors: somebody may have written a key there."""
    try:
        pairs = parse_qsl(query, strict_parsing=True, keep_blank_values=True) if query else []
    except ValueError:
        message = f"{name}: expected name=value pairs after '?', got something else"
        raise Invalid(message, hint=f"write {_FORM}") from None  # which would tell them
    parameters = dict(pairs)
    for key, value in pairs:
        if key not in _PARAMETERS:
            raise Invalid(f"{name}: expected {', '.join(_PARAMETERS)} after '?', got {key!r}", hint=CREDENTIALS_HINT)
        if not value or len(parameters) != len(pairs):
            raise Invalid(f"{name}: expected each parameter once and with a value, got {key!r} otherwise")
    return parameters


def _region(name: str, text: str | None) -> str | None:
    if text is not None and not _REGION.fullmatch(text):
        raise Invalid(f"{name}: expected a region such as us-east-1, got none of that form", hint=f"write {_FORM}")
    return text


def _endpoint(name: str, text: str | None) -> str | None:
    if text is None:
        return None
    if "@" in text:
        raise Invalid(
            f"{name}: expected no credentials in the endpoint, got some",
            hint=CREDENTIALS_HINT,
            code="store-credentials",
        )
    parts = _split(text)
    if (
        parts is None
        or parts.scheme not in ("http", "https")
        or not _HOST.fullmatch(parts.netloc)
        or parts.path.strip("/")
        or parts.query
    ):
        raise Invalid(
            f"{name}: expected an endpoint such as https://s3.example.org:9000, got none of that form",
            hint=f"write {_FORM}",
        )
    return f"{parts.scheme}://{parts.netloc}"


def _split(text: str) -> SplitResult | None:
    """None for what is no URL: a bracket of an address alone, a letter of a host that is a `/` by another form."""
    try:
        return urlsplit(text)
    except ValueError:
        return None
