"""What codes of a server and failures of a connection mean."""

from __future__ import annotations

import ssl

import pytest
import urllib3
from botocore import exceptions as boto
from botocore.parsers import ResponseParserError

from behemoth.base.errors import BehemothError, Conflict, Corrupt, Denied, Invalid, NotFound, Unavailable
from behemoth.storage.s3_errors import named_errors

SECRET = "sesame"


@pytest.mark.parametrize(
    ("code", "status", "kind", "ours"),
    [
        ("NoSuchKey", 404, NotFound, "not-found"),
        ("404", 404, NotFound, "not-found"),
        ("NoSuchUpload", 404, NotFound, "upload-gone"),
        ("NoSuchBucket", 404, NotFound, "no-bucket"),
        ("PreconditionFailed", 412, Conflict, "exists"),
        ("412", 412, Conflict, "exists"),
        ("ConditionalRequestConflict", 409, Unavailable, "unavailable"),
        ("ObjectParentIsFile", 409, Conflict, "conflict"),
        ("InvalidPart", 400, Conflict, "upload-part"),
        ("BadDigest", 400, Corrupt, "upload-crc"),
        ("AccessDenied", 403, Denied, "denied"),
        ("403", 403, Denied, "denied"),
        ("InvalidAccessKeyId", 403, Denied, "denied"),
        ("InvalidToken", 400, Denied, "denied"),
        ("ExpiredToken", 400, Denied, "credentials-expired"),
        ("RequestTimeTooSkewed", 403, Denied, "denied"),
        ("PermanentRedirect", 301, Invalid, "store-region"),
        ("", 300, Invalid, "store-region"),
        ("", 307, Invalid, "store-region"),
        ("InvalidRange", 416, Invalid, "range"),
        ("MalformedXML", 400, Invalid, "invalid"),
        ("NotImplemented", 501, Invalid, "store-unfit"),
        ("SlowDown", 503, Unavailable, "throttled"),
        ("", 503, Unavailable, "throttled"),
        ("", 429, Unavailable, "throttled"),
        ("InternalError", 500, Unavailable, "unavailable"),
        ("InternalError", 200, Unavailable, "unavailable"),
        ("RequestTimeout", 400, Unavailable, "unavailable"),
        ("QuotaExceeded", 403, Unavailable, "no-space"),
        ("InvalidPartOrder", 400, Conflict, "upload-part"),
        ("ExistingObjectIsDirectory", 409, Conflict, "conflict"),
        ("XMinioParentIsObject", 400, Conflict, "conflict"),
        ("XAmzContentChecksumMismatch", 400, Corrupt, "upload-crc"),
        ("InvalidDigest", 400, Corrupt, "upload-crc"),
        ("AllAccessDisabled", 400, Denied, "denied"),
        ("AccountProblem", 400, Denied, "denied"),
        ("XAdminUserNotFound", 404, Denied, "denied"),
        ("ExpiredTokenException", 403, Denied, "credentials-expired"),
        ("TokenRefreshRequired", 403, Denied, "credentials-expired"),
        ("SignatureDoesNotMatch", 400, Denied, "denied"),
        ("InvalidClientTokenId", 400, Denied, "denied"),
        ("AuthorizationHeaderMalformed", 400, Invalid, "store-region"),
        ("IllegalLocationConstraintException", 400, Invalid, "store-region"),
        ("OperationAborted", 409, Unavailable, "unavailable"),
        ("Throttling", 400, Unavailable, "throttled"),
        ("ThrottlingException", 400, Unavailable, "throttled"),
        ("TooManyRequests", 400, Unavailable, "throttled"),
        ("ServiceUnavailable", 400, Unavailable, "throttled"),
        ("XMinioStorageFull", 507, Unavailable, "no-space"),
        ("InsufficientCapacity", 400, Unavailable, "no-space"),
        ("SomethingNew", 401, Denied, "denied"),
        ("SomethingNew", 409, Conflict, "conflict"),
        ("SomethingNew", 412, Conflict, "exists"),
        ("SomethingNew", 500, Unavailable, "unavailable"),
        ("SomethingNew", 502, Unavailable, "unavailable"),
    ],
)
def test_an_answer_is_one_of_our_errors(code: str, status: int, kind: type[BehemothError], ours: str) -> None:
    answer = {
        "Error": {"Code": code, "Message": f"because of {SECRET}"},
        "ResponseMetadata": {"HTTPStatusCode": status, "HTTPHeaders": {"authorization": SECRET}},
    }
    with pytest.raises(BehemothError, match="write a") as caught, named_errors("write a"):
        raise boto.ClientError(answer, "PutObject")
    assert type(caught.value) is kind
    assert caught.value.code == ours
    assert SECRET not in f"{caught.value}{caught.value.hint}"


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (boto.EndpointConnectionError(endpoint_url=f"http://host/?key={SECRET}"), Unavailable),
        (boto.ConnectTimeoutError(endpoint_url=f"http://host/?key={SECRET}"), Unavailable),
        (boto.ReadTimeoutError(endpoint_url=f"http://host/?key={SECRET}"), Unavailable),
        (boto.ConnectionClosedError(endpoint_url=f"http://host/?key={SECRET}"), Unavailable),
        (boto.ResponseStreamingError(error=SECRET), Unavailable),
        (boto.IncompleteReadError(actual_bytes=1, expected_bytes=2), Unavailable),
        (boto.SSLError(endpoint_url="https://host", error=f"EOF {SECRET}"), Unavailable),
        (boto.SSLError(endpoint_url="https://host", error=f"CERTIFICATE_VERIFY_FAILED {SECRET}"), Denied),
        (boto.SSLError(endpoint_url="https://host", error=f"WRONG_VERSION_NUMBER {SECRET}"), Invalid),
        (boto.SSLError(endpoint_url="https://host", error=ssl.SSLError(FileNotFoundError(2, SECRET))), Invalid),
        (
            boto.SSLError(endpoint_url="https://host", error=ssl.SSLError(ConnectionResetError(104, SECRET))),
            Unavailable,
        ),
        (TimeoutError(SECRET), Unavailable),
        (ResponseParserError(f"invalid XML received: {SECRET}"), Unavailable),
        (urllib3.exceptions.SSLError(SECRET), Unavailable),
        (boto.NoCredentialsError(), Denied),
        (boto.PartialCredentialsError(provider="env", cred_var="AWS_SECRET_ACCESS_KEY"), Denied),
        (boto.ProfileNotFound(profile="nobody"), Denied),
        (boto.NoRegionError(), Invalid),
        (OSError("CERTIFICATE_VERIFY_FAILED"), Unavailable),
        (boto.ParamValidationError(report=SECRET), Invalid),
    ],
)
def test_no_answer_is_one_of_our_errors(error: Exception, kind: type[BehemothError]) -> None:
    with pytest.raises(BehemothError, match="write a") as caught, named_errors("write a"):
        raise error
    assert type(caught.value) is kind
    assert SECRET not in f"{caught.value}{caught.value.hint}"


def test_without_a_region_the_hint_says_where_to_name_one() -> None:
    with pytest.raises(Invalid, match="write a: expected a region, got none") as caught, named_errors("write a"):
        raise boto.NoRegionError
    assert "AWS_REGION" in caught.value.hint
