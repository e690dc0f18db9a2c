"""Parse the text with which a request names a file: a local path, or the address of a remote file.

    my_job/my_lora.safetensors                         a path under the adapter root
    hf://owner/repo/folder/file.safetensors@revision   a file in a Hugging Face repository; without @, its main branch
    https://huggingface.co/owner/repo/blob/main/file   the same, as a browser's address line shows it
    s3://bucket/key                                    an object in S3-compatible storage
    https://host/file                                  a file on a host that the operator allows; http:// too, for some
    upload:name@sha256                                 a file that was uploaded to this service
    upload:tenant/name@sha256                          the same, of a tenant

`str` of a source gives its one spelling, which `parse_source` reads back.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from urllib.parse import parse_qsl, unquote, urlsplit

from shared.errors import AdapterRefused
from shared.keys.record import TENANT

FIELD = "path"
_MAX_CHARS = 4096

# `hf:name` has no slashes and would pass as a relative path.
_SCHEME = re.compile(r"([a-z][a-z0-9+.-]*)://|(https?|s3|gs|az|hf|ftp|file|data|gopher|upload):", re.IGNORECASE)
_SCHEMES = "hf://, s3://, https:// or upload:"

# The hub's rules: letters, digits, `-`, `_`, `.`; one owner and one name.
_REPO_PART = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}")
_REVISION = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/-]{0,254}")
_HUB_HOSTS = ("huggingface.co", "www.huggingface.co", "hf.co")
_HUB_PAGES = ("blob", "resolve", "raw")
#: The branch that a hub address without a revision names.
MAIN = "main"

# https://docs.aws.amazon.com/AmazonS3/latest/userguide/bucketnamingrules.html, and what older stores allow.
_BUCKET = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{1,62}")
_MAX_KEY_BYTES = 1024

# Words in the names of parameters with which links carry a secret: tokens, and signatures as of S3 and Azure.
_SECRET_WORDS = frozenset(
    (
        *("token", "jwt", "apikey", "authkey", "auth", "authorization", "credential", "credentials", "session"),
        *("password", "passwd", "pwd", "secret", "signature", "sig", "sign", "hmac"),
    )
)
# Names that hold no such word: Dropbox, OneDrive, Google Drive, Akamai, CloudFront, Cloudflare.
_SECRET_NAMES = frozenset(
    ("key", "api_key", "rlkey", "resourcekey", "hdnea", "hdnts", "hdntl", "policy", "verify", "awsaccesskeyid")
)
# The beginning of each word in names such as `accessToken`.
_CAPITAL = re.compile(r"(?<=[a-z0-9])(?=[A-Z])")

# Also where a slash is missing. What stands before the @ of an upload is its name.
_LOGIN = re.compile(r"^((?!upload:)[a-z][a-z0-9+.-]*:/*)[^/?#]*@", re.IGNORECASE)

#: Names of uploads.
UPLOAD_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class LocalFile:
    """A file below a folder of this host; `path` is as the caller wrote it."""

    path: str

    def __str__(self) -> str:
        return self.path


@dataclass(frozen=True)
class HubFile:
    """A file in a model repository of the Hugging Face hub."""

    repo: str
    path: str
    revision: str = MAIN

    def __str__(self) -> str:
        # Readable, except for the two characters that have a meaning here.
        path = self.path.replace("%", "%25").replace("@", "%40")
        return f"hf://{self.repo}/{path}@{self.revision}"


@dataclass(frozen=True)
class S3Object:
    """An object in S3-compatible storage."""

    bucket: str
    key: str

    def __str__(self) -> str:
        return f"s3://{self.bucket}/{self.key}"


@dataclass(frozen=True)
class HttpsFile:
    """A file on a web server."""

    url: str

    def __str__(self) -> str:
        return self.url


@dataclass(frozen=True)
class UploadedFile:
    """A file that was uploaded to this service; without `sha256`, the last one of its name.

    Attributes:
        tenant: whose it is; None for an upload without an owner.
    """

    name: str
    sha256: str | None = None
    tenant: str | None = None

    def __str__(self) -> str:
        owner = f"{self.tenant}/" if self.tenant else ""
        return f"upload:{owner}{self.name}" + (f"@{self.sha256}" if self.sha256 else "")


Source = LocalFile | HubFile | S3Object | HttpsFile | UploadedFile


def parse_source(text: str, *, may_hold_secret: bool = False) -> Source:
    """Return the source that a text names, without accessing it.

    Args:
        may_hold_secret: whether a link may carry a token or a signature: only if nothing stores it.

    Raises:
        AdapterRefused: no source has this form; the message says what is wrong. `field` is "path".
    """
    scheme = _SCHEME.match(text)
    if scheme is None:
        return LocalFile(text)
    if len(text) > _MAX_CHARS:
        raise _refused(text, f"has {len(text)} characters, and the limit is {_MAX_CHARS}")
    if any(ord(char) < 32 or 0xD800 <= ord(char) <= 0xDFFF for char in text):
        raise _refused(text, "holds a character that no address can have")
    name = (scheme[1] or scheme[2]).lower()
    rest = text[scheme.end() :]
    if name != "upload" and not scheme[1]:
        raise _refused(text, f"needs two slashes: {name}://")
    match name:
        case "hf":
            return _hub(text, rest)
        case "s3":
            return _s3(text, rest)
        case "https" | "http":
            # Whether http may be used depends on the host: an operator may list one that serves nothing else.
            return _https(text, name, may_hold_secret=may_hold_secret)
        case "upload":
            return _upload(text, rest)
        case _:
            raise _refused(text, f"is a {name} address; use a path under the adapter root, {_SCHEMES}")


def sibling(source: Source, *, of: str, name: str) -> Source | None:
    """Return the file `name` in the folder of a remote file that is called `of`; None if it is not called so.

    Uploads are single files, and a link with a query names no folder.
    """
    match source:
        case HubFile() if _last_part(source.path) == of:
            return replace(source, path=source.path.removesuffix(of) + name)
        case S3Object() if _last_part(source.key) == of:
            return replace(source, key=source.key.removesuffix(of) + name)
        case HttpsFile() if _last_part(source.url) == of:
            return replace(source, url=source.url.removesuffix(of) + name)
    return None


def _last_part(path: str) -> str:
    return path.rpartition("/")[2]


def _hub(text: str, rest: str) -> HubFile:
    """Read `owner/repo/path@revision`, or `owner/repo@revision/path` as huggingface_hub's file system writes it."""
    owner, _, after_owner = rest.partition("/")
    repo, _, path = after_owner.partition("/")
    repo, _, revision = repo.partition("@")
    if not revision:
        # The last @, so that a name with an @ is written with %40.
        path, revision = path.rsplit("@", 1) if "@" in path else (path, "")
    return _hub_file(text, owner, repo, unquote(path), unquote(revision) or MAIN)


def _hub_page(text: str, path: str) -> HubFile:
    """Read the path of a link from the hub's web pages: `/owner/repo/blob/revision/path`."""
    parts = path.removeprefix("/").split("/")
    if parts[0] in ("datasets", "spaces"):
        raise _refused(text, f"is in a repository of {parts[0]}; files are read from model repositories")
    if len(parts) < 5 or parts[2] not in _HUB_PAGES:
        raise _refused(
            text,
            "does not name a file; open the file on the hub and copy its address, "
            "https://huggingface.co/OWNER/REPO/blob/REVISION/FILE, or write hf://OWNER/REPO/FILE",
        )
    owner, repo, _, *names = parts
    # Pull requests are the only revisions with slashes that the hub's own links do not escape.
    count = 3 if names[:2] == ["refs", "pr"] or names[:2] == ["refs", "convert"] else 1
    revision, names = "/".join(names[:count]), names[count:]
    return _hub_file(text, owner, repo, unquote("/".join(names)), unquote(revision))


def _hub_file(text: str, owner: str, repo: str, path: str, revision: str) -> HubFile:
    for part in (owner, repo):
        if not _REPO_PART.fullmatch(part) or ".." in part:
            raise _refused(
                text, f"has {_shown_part(part)} for an owner or repository; write hf://OWNER/REPO/FILE@REVISION"
            )
    if not path:
        raise _refused(text, f"names a repository; name one of its files: hf://{owner}/{repo}/FILE.safetensors")
    _check_parts(text, path)
    if not _REVISION.fullmatch(revision) or ".." in revision:
        raise _refused(
            text, f"has the revision {_shown_part(revision)}; use a branch, a tag or a commit (an @ in a name is %40)"
        )
    return HubFile(f"{owner}/{repo}", path, revision)


def _s3(text: str, rest: str) -> S3Object:
    bucket, _, key = rest.partition("/")
    if not _BUCKET.fullmatch(bucket):
        raise _refused(text, f"has {_shown_part(bucket)} for a bucket; write s3://BUCKET/KEY")
    if not key or key.endswith("/"):
        raise _refused(text, "names no object; write s3://BUCKET/KEY")
    if len(key.encode()) > _MAX_KEY_BYTES:
        raise _refused(text, f"has a key of {len(key.encode())} bytes, and the limit is {_MAX_KEY_BYTES}")
    # HTTP clients and stores resolve such parts, each in its own way.
    _check_parts(text, key)
    return S3Object(bucket, key)


def _https(text: str, scheme: str, *, may_hold_secret: bool) -> HubFile | HttpsFile:
    try:
        parts = urlsplit(text)
        host, port = parts.hostname or "", parts.port
    except ValueError as error:
        raise AdapterRefused(f"{_shown(text)} is not a URL: {error}", field=FIELD) from error
    if not text.isascii() or set(text) & set(' \\"<>^`{|}'):
        raise _refused(text, "holds a character that a URL must escape; copy the link from the browser's address line")
    if parts.username is not None or parts.password is not None:
        raise _refused(text, "holds a user name or password; the operator sets credentials for a host")
    if not host:
        raise _refused(text, "names no host; write https://HOST/FILE")
    for name, _ in parse_qsl(parts.query, keep_blank_values=True):
        if _may_be_secret(name) and not may_hold_secret:
            raise _refused(
                text,
                f"carries a secret in {name[:40]!r}, which would be stored with the job; name the file without it (the "
                "operator sets credentials for a host), or upload the file with `flux2 adapters push`",
            )
    if host in _HUB_HOSTS and port in (None, 443):
        return _hub_page(text, parts.path)
    # The fragment is never sent; without it, two links to one file are the same text.
    return HttpsFile(parts._replace(scheme=scheme, netloc=parts.netloc.lower(), fragment="").geturl())


def _may_be_secret(parameter: str) -> bool:
    """Return whether the value of a link's parameter may be a secret, by the parameter's name."""
    words = re.split(r"[^a-z0-9]+", _CAPITAL.sub("_", parameter).lower())
    return parameter.lower() in _SECRET_NAMES or not _SECRET_WORDS.isdisjoint(words)


def _upload(text: str, rest: str) -> UploadedFile:
    place, at, sha256 = rest.partition("@")
    tenant, slash, name = place.rpartition("/")
    if not UPLOAD_NAME.fullmatch(name) or (slash and not TENANT.fullmatch(tenant)):
        raise _refused(
            text, "names no upload; write upload:NAME or upload:NAME@SHA256, as `flux2 adapters list` shows it"
        )
    if at and not _SHA256.fullmatch(sha256):
        raise _refused(text, "must have the 64 hexadecimal digits of a sha256 after its @")
    return UploadedFile(name, sha256 or None, tenant or None)


def _check_parts(text: str, path: str) -> None:
    if any(part in ("", ".", "..") for part in path.split("/")):
        raise _refused(text, "holds an empty part, '.' or '..' between its slashes; write the name of one file")


def _refused(text: str, reason: str) -> AdapterRefused:
    return AdapterRefused(f"{_shown(text)} {reason}", field=FIELD)


def _shown(text: str) -> str:
    """Return a text as messages repeat it, without what may be a password or a signature."""
    text = _LOGIN.sub(r"\1", re.sub(r"(?<=://)[^/?#]*@", "", text))
    return repr(text.partition("?")[0][:200])


def _shown_part(part: str) -> str:
    # Some tools write logins into these addresses too: s3://KEY:SECRET@BUCKET.
    return repr(part.rpartition("@")[2][:100])
