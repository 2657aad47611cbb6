"""Maps an S3 server's error codes, and botocore's failures to reach one, to our errors.

Must not decide anything beyond the class of the error, and repeats nothing that may hold a secret: of a server's
answer the code, of a failed connection its kind, never a URL, a header or a credential. Neighbours: `s3_client`, in
which every request runs, and `os_errors`, the same for files.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from botocore import exceptions as boto
from botocore.exceptions import BotoCoreError, ClientError
from botocore.parsers import ResponseParserError
from urllib3.exceptions import HTTPError

from behemoth.base.errors import BehemothError, Conflict, Corrupt, Denied, Invalid, NotFound, Unavailable
from behemoth.storage.s3_place import CREDENTIALS_HINT

UPLOAD_CRC = "upload-crc"
"""Code of the error for bytes that are not those of their CRC."""
EXPIRED = "credentials-expired"
"""Code of the error for credentials that were good once."""
_ALLOWED = "allow it in the bucket's policy, or use other credentials"
_RENEW = "renew them where this process found them, a profile's file say; variables of its environment stay as they are"
_REGION = "name the bucket's region: AWS_REGION, or ?region= behind the store's URL"
_NO_CREDENTIALS = (
    boto.NoCredentialsError,
    boto.PartialCredentialsError,
    boto.CredentialRetrievalError,
    boto.NoAuthTokenError,
    boto.TokenRetrievalError,
    boto.ProfileNotFound,
)
_PLAIN = "WRONG_VERSION_NUMBER"
"""What OpenSSL makes of the first bytes of a server that speaks plain HTTP."""
_NO_FILE = (FileNotFoundError, IsADirectoryError, NotADirectoryError, PermissionError)
_UNWRAPPED = (HTTPError, ResponseParserError)
"""What botocore lets out as it is: a failure of TLS within a body, and an answer that is none of S3's, such as a page
of a proxy."""
_UNREACHED = (boto.HTTPClientError, boto.ConnectionError, boto.IncompleteReadError, boto.ChecksumError, *_UNWRAPPED)


@contextmanager
def named_errors(doing: str) -> Iterator[None]:
    """Turn botocore's errors inside into ours; `doing` begins the message, such as `read steps/a/c/0`."""
    try:
        yield
    except ClientError as error:
        raise _answered(error, doing) from error
    except (BotoCoreError, OSError, *_UNWRAPPED) as error:
        raise _unanswered(error, doing) from error


def error_of_code(code: str, status: int | None, doing: str) -> BehemothError:
    """The error of ours for a code and a status of S3 (Amazon S3 API reference, "Error responses"), and for those that
    compatible servers add. One key of a batch that was not deleted has a code and no status."""
    message = f"{doing}: {code or 'error'}" + (f" ({status})" if status is not None else "")
    match code:
        case "NoSuchUpload":
            return NotFound(
                f"{doing}: expected an upload that is open, got no such upload any more", code="upload-gone"
            )
        case "NoSuchBucket":
            hint = "make the bucket, or correct its name"
            return NotFound(f"{doing}: expected the bucket, got no such bucket", hint=hint, code="no-bucket")
        case "PreconditionFailed":
            return Conflict(f"{doing}: expected no such object, got one", code="exists")
        case "InvalidPart" | "InvalidPartOrder":
            return Conflict(f"{doing}: expected the parts that were received, got others or none", code="upload-part")
        case "ObjectParentIsFile" | "ExistingObjectIsDirectory" | "XMinioParentIsObject":
            return Conflict(f"{doing}: expected a free name, got one for both an object and a folder")
        case "BadDigest" | "XAmzContentChecksumMismatch" | "InvalidDigest":
            return Corrupt(f"{doing}: expected bytes of the CRC that was sent with them, got others", code=UPLOAD_CRC)
        case "AccessDenied" | "AllAccessDisabled" | "AccountProblem" | "XAdminUserNotFound":
            return Denied(message, hint=_ALLOWED)
        case "ExpiredToken" | "ExpiredTokenException" | "TokenRefreshRequired":
            return Denied(message, hint=_RENEW, code=EXPIRED)
        case "InvalidAccessKeyId" | "SignatureDoesNotMatch" | "InvalidToken" | "InvalidClientTokenId":
            return Denied(message, hint=CREDENTIALS_HINT)
        case "RequestTimeTooSkewed":
            return Denied(message, hint="set this machine's clock")
        case "PermanentRedirect" | "AuthorizationHeaderMalformed" | "IllegalLocationConstraintException":
            return Invalid(message, hint=_REGION, code="store-region")
        case "ConditionalRequestConflict" | "OperationAborted" | "RequestTimeout" | "InternalError":
            return Unavailable(message)
        case "SlowDown" | "Throttling" | "ThrottlingException" | "TooManyRequests" | "ServiceUnavailable":
            return Unavailable(message, code="throttled")
        case "QuotaExceeded" | "XMinioStorageFull" | "InsufficientCapacity":
            return Unavailable(message, code="no-space", hint="free space, raise the quota, or keep fewer checkpoints")
        case _:
            return _error_of_status(status or 0, message)


def _error_of_status(status: int, message: str) -> BehemothError:
    match status:
        case 401 | 403:
            return Denied(message, hint=_ALLOWED)
        case 404:
            return NotFound(message)
        case 409:
            return Conflict(message)
        case 412:
            return Conflict(message, code="exists")
        case 416:
            return Invalid(message, code="range")
        case 429 | 503:
            return Unavailable(message, code="throttled")
        case _ if 300 <= status < 400:
            return Invalid(message, hint=_REGION, code="store-region")
        case 501:
            return Invalid(message, hint="use a store that has this request", code="store-unfit")
        case _ if 400 <= status < 500:
            return Invalid(message)
        case _:
            return Unavailable(message)


def _answered(error: ClientError, doing: str) -> BehemothError:
    response = error.response
    status = int(response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
    return error_of_code(str(response.get("Error", {}).get("Code", "")), status, doing)


def _unanswered(error: Exception, doing: str) -> BehemothError:
    kind = type(error).__name__
    if isinstance(error, _NO_CREDENTIALS):
        return Denied(f"{doing}: expected credentials, got none that can be used ({kind})", hint=CREDENTIALS_HINT)
    if isinstance(error, boto.NoRegionError):
        return Invalid(f"{doing}: expected a region, got none", hint=_REGION, code="store-region")
    if isinstance(error, boto.SSLError) and (unfit := _unfit_tls(error, doing)) is not None:
        return unfit
    if isinstance(error, (*_UNREACHED, OSError)):
        hint = "check that the endpoint is right and can be reached from here"
        return Unavailable(f"{doing}: no whole answer from the store ({kind})", hint=hint)
    return Invalid(f"{doing}: expected a request that can be sent, got {kind}")


def _unfit_tls(error: boto.SSLError, doing: str) -> BehemothError | None:
    """What no further try would change: anything else, such as a connection that was cut, may be better in a moment."""
    if "CERTIFICATE_VERIFY_FAILED" in str(error):
        hint = "name the authority that signed it: AWS_CA_BUNDLE"
        return Denied(f"{doing}: expected a certificate of a known authority, got another", hint=hint)
    if _PLAIN in str(error):
        hint = "write http:// in the endpoint, or name the port on which the store speaks TLS"
        return Invalid(f"{doing}: expected TLS at the endpoint, got an answer without it", hint=hint, code="store-tls")
    if any(isinstance(cause, _NO_FILE) for cause in getattr(error.kwargs["error"], "args", ())):
        hint = "correct the path of the authorities' certificates: AWS_CA_BUNDLE, or ca_bundle of the profile"
        return Invalid(f"{doing}: expected a file with certificates, got none", hint=hint, code="store-tls")
    return None
