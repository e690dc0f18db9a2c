"""Read images of an API that stores them in a folder of its host (`FLUX2_STORAGE_BACKEND=directory`).

The API chooses the file that is read, so an API on another host could ask for any file of this one. A file is read only
if the API is reached over this host's loopback, and only as an image whose size and sha256 the API knows already.
"""

from __future__ import annotations

import ipaddress
import stat
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import url2pathname

from flux2_client.receiver import Receiver
from shared.errors import ApiError, DownloadFailed

_SCHEME = "file"
_BLOCK_BYTES = 1024 * 1024


def is_file_url(url: str) -> bool:
    return urlsplit(url).scheme == _SCHEME


def receive_file(url: str, receiver: Receiver, *, base_url: str) -> None:
    """Copy the file of a `file://` URL, which the API at `base_url` named.

    Raises:
        ApiError: the file may not or cannot be read.
        DownloadFailed: the file is not the image.
    """
    if not _is_loopback(base_url):
        raise ApiError(
            f"{url} is a file on the host of {base_url}; copy it from there, or have the API store images in S3 "
            "(FLUX2_STORAGE_BACKEND=s3)"
        )
    if not receiver.checks_object:
        raise ApiError(f"{url} is a file, which a URL alone does not identify; download the image of a result instead")
    try:
        _copy(Path(url2pathname(urlsplit(url).path)), receiver)
    except OSError as error:
        raise ApiError(
            f"{url} cannot be read: {error.strerror}; run this on the API's host, as a user who may read its "
            "FLUX2_STORAGE_DIRECTORY"
        ) from error
    if fault := receiver.find_fault():
        raise DownloadFailed(f"{url}: {fault}; the file is damaged or belongs to something else")


def _copy(path: Path, receiver: Receiver) -> None:
    receiver.restart()
    # A device or a pipe has no end.
    if not stat.S_ISREG(path.stat().st_mode):
        return
    with path.open("rb") as file:
        while block := file.read(_BLOCK_BYTES):
            if not receiver.write(block):
                return


def _is_loopback(base_url: str) -> bool:
    host = urlsplit(base_url).hostname or ""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
