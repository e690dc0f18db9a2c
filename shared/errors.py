"""All errors that this project raises on purpose.

* Flux2Error                     .code (stable, in JSON bodies), .retryable, .implicates_device, .ends_process
  + AccessRefused                the caller may not make this call
    - KeyMissing                 the call has no API key, and one is needed
    - KeyInvalid                 nobody has this API key, or it was revoked or has expired
    - TooManyFailures            too many wrong API keys came from this address; try again later
    - RoleMissing                the API key has not the role that the call needs
    - KeyForbids                 the limits of the API key never allow this request
    - KeyLimitReached            the API key has used up one of its limits; try again later
    - FirstKeyRefused            anybody could make the first key of this API, so nobody may make it by HTTP
    - SenderRefused              a web page of another site may have sent the call, or to a name that is not this API's
  + RequestError                 the caller must change the request; never retried
    - InvalidRequest             a field has a value that cannot be served
    - ModelNotFound              the catalogue has no model with this id
    - ContentTypeRefused         the body is not declared as JSON
    - RequestNotFound            the ledger has no job with this id
    - WebhookWaiting             the job's webhook has been neither delivered nor given up yet
    - KeyNotFound                no API key has this id
    - KeyInUse                   the call comes with the API key that it would revoke
    - UploadNotFound             no file was uploaded under this name
    - UploadInUse                jobs that have not ended name the uploaded file
    - UploadTooLarge             the uploaded file is larger than its kind may be
    - UploadIncomplete           the connection ended, or stalled, before the whole file had arrived
    - LengthRequired             the upload does not state its size
    - DigestMismatch             the uploaded bytes have another sha256 than the caller states
    - AdapterNotFound            no file exists at the adapter's path
    - AdapterRefused             the file is not an adapter that this model can use
      . AdapterMismatch          a tensor does not fit the layer it names
    - ReferenceRefused           a reference image cannot be used: its format, its size or its shape
    - SourceChanged              the file at a source is not the one that was accepted
    - NoSuitableWorker           live workers serve the model, but none can do what the job requires
    - IdempotencyKeyReused       the key was used before with another body
    - ConfigRefused              the training config cannot be replayed
    - ReferencesNeeded           the training config names reference images of another host
    - JobTooLarge                the job has more items than the queue ever holds
  + QueueFull                    too many items are queued; try again later
  + TooManyListeners             this process, or the tenant, has as many streams of events as it may
  + TooManyArchives              this process, or the tenant, sends as many archives as it may
  + UploadsBusy                  this process receives as many files as it may; try again later
  + AdapterCheckBusy             other adapter files are being checked; try again later
  + ReferenceCheckBusy           other reference images are being checked; try again later
  + WaitsBusy                    too many calls wait for their images; try again later
  + ImagesFailed                 the images that a call waited for failed, or were canceled
  + ImagesUnfinished             the images that a call waited for are not finished yet
  + LedgerUnavailable            Redis did not answer; the job may or may not have been accepted
    - LedgerRefused              Redis answered at once that it does not do this now
      . LedgerForbidden          Redis does not let this user run a command or access a key
      . LedgerUnusable           what answers cannot hold the ledger: a cluster, a Sentinel, another program
  + RunError                     the request was fine; this attempt failed
    - LeaseLost                  another worker owns the item now; write nothing
    - ItemCanceled               the caller canceled the job while the item ran
    - OutOfMemory                the device could not hold the item
    - NotFinite                  the output is NaN or infinite; retrying will not help
    - BlankImage                 every pixel is black: the device or the model is broken
    - DeviceFault                the device stopped working; the process must end
    - WeightsLost                the base weights cannot be restored; the process must end
    - Stalled                    the item made no progress: a kernel hangs; the process must end
    - StorageUnavailable         the result could not be written
      . StorageOutageReported    another worker could not reach the storage; probe it before the next claim
      . ObjectMissing            the store has no object at a key
    - SourceUnavailable          the host of a file did not answer, or asks to come back later
    - CacheUnavailable           this host's file cache cannot hold a file: its disk is full or its folder unusable
  + ServerFailed                 a process that this host needs is missing, did not start or ended
  + HeaderFault                  a safetensors header is unsound; its readers name the file and refuse it
  + NotPinned                    a file's pages cannot be pinned; its reader copies them another way
  + CheckpointError              the base model's files cannot be used; raised at start, before any claim
  + CommandError                 a command cannot do its work; its message is all that the person sees
    - ApiError                   the API refused a call or cannot be reached
      . ApiUnreachable           nothing answered
      . DownloadFailed           an image's store does not give its object; others may be there
    - DemoFailed                 a demonstration job did not succeed
    - ReplayFailed               a job of the replay did not succeed
    - ReproductionFailed         an image cannot be rendered again from its file
    - NoSamples                  the folder holds no sample images by the trainer
    - ConfigImagesNotFound       reference images of a training config are not on this host
    - TrainingRunRefused         the folder holds no checkpoints of a training run, or not its config
    - SweepFolderRefused         the folder holds no sweep, or another one, or not the image that was picked
    - UploadRefused              a file of this host cannot be uploaded
    - OutputRefused              a command's files cannot be written where it should
    - NoStack                    the folder holds no settings of a stack
    - MissingExtra               a library is not installed; an extra of this package brings it
    - ClientConfigRefused        the client's config file cannot be used
    - KeyRefused                 no API key has this id, or it is not active
    - WebhooksDisabled           no secret is set, so no webhooks are sent
    - UnsafeAddress              the API would listen for other hosts, and nobody would need a key
    - GoldensError               the folder holds no usable golden files
    - SignatureUnreadable        an image, or the certificates to trust, cannot be read to check its signature
    - SignerUnusable             images cannot be signed with the configured certificate; raised at start
  + SigningFailed                one image could not be signed; it is stored without a signature

Codes in capitals mean an error in the request and use the reference API's words; codes in lower case are ours.
`api.errors` alone maps these classes to HTTP.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from shared.plurals import counted

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Any

# Names that a message lists, and characters of each; the end of a path says most.
_SHOWN = 3
_SHOWN_CHARS = 100


class Flux2Error(Exception):
    """Base of all the project's errors.

    Attributes:
        retryable: whether the same request may succeed later, or on another worker.
        implicates_device: whether a broken GPU may be the cause; a worker then probes its GPU.
        ends_process: whether the worker process cannot render after this error and must be restarted.
        needs_time: whether another attempt should wait until the other items of the queue had theirs.
    """

    code = "internal"
    retryable = False
    # An error of unknown origin may come from the device: only classes with another known cause set False.
    implicates_device = True
    ends_process = False
    needs_time = False


class AccessRefused(Flux2Error):
    """The caller may not make this call."""

    code = "FORBIDDEN"
    implicates_device = False


class KeyMissing(AccessRefused):
    """The call has no API key, and one is needed."""

    code = "UNAUTHORIZED"

    def __init__(self) -> None:
        super().__init__(
            "this API needs a key; send the header Authorization: Bearer flux2_... (the operator makes keys with "
            "`flux2 keys create`)"
        )


class KeyInvalid(AccessRefused):
    """Nobody has this API key, or it was revoked or has expired."""

    code = "UNAUTHORIZED"


class TooManyFailures(AccessRefused):
    """Too many wrong API keys came from this address."""

    code = "too_many_failures"
    retryable = True

    def __init__(self, retry_after_s: int) -> None:
        super().__init__(
            f"too many wrong API keys came from this address; correct the key, and try again in {retry_after_s} s"
        )
        self.retry_after_s = retry_after_s


class RoleMissing(AccessRefused):
    """The API key has not the role that the call needs."""


class FirstKeyRefused(AccessRefused):
    """Everybody who reaches this API could make its first key, and shut out all others."""

    code = "FIRST_KEY_REFUSED"

    def __init__(self) -> None:
        super().__init__(
            "this API has no keys, and other hosts may reach it, so its first key cannot be made by a call; make it on "
            "the API's host with: flux2 keys create NAME --role admin"
        )


class KeyForbids(AccessRefused):
    """The limits of the API key never allow this request."""

    code = "KEY_LIMIT"

    def __init__(self, message: str, *, field: str | None = None) -> None:
        super().__init__(message)
        self.field = field


class KeyLimitReached(AccessRefused):
    """The API key has used up one of its limits for now."""

    code = "key_limit_reached"
    retryable = True

    def __init__(self, message: str, *, retry_after_s: int) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class SenderRefused(AccessRefused):
    """A web page of another site may have sent the call, or it names a host that is not this API's."""

    code = "SENDER_REFUSED"


class RequestError(Flux2Error):
    """The caller must change the request; `field` is the JSON path of the field at fault, or None."""

    code = "INVALID_REQUEST"
    implicates_device = False

    def __init__(self, message: str, *, field: str | None = None) -> None:
        super().__init__(message)
        self.field = field


class InvalidRequest(RequestError):
    """A field has a value that cannot be served; `code` names the reason in the reference API's words."""

    def __init__(self, message: str, *, code: str = "INVALID_REQUEST", field: str | None = None) -> None:
        super().__init__(message, field=field)
        self.code = code


class ModelNotFound(RequestError):
    """The catalogue has no model with this id."""

    code = "MODEL_NOT_FOUND"


class ContentTypeRefused(RequestError):
    """The body is not declared as JSON, so it is not read."""

    code = "UNSUPPORTED_MEDIA_TYPE"


class RequestNotFound(RequestError):
    """The ledger has no job with this id: it was never accepted here, or its retention is over."""

    code = "REQUEST_NOT_FOUND"


class WebhookWaiting(RequestError):
    """The webhook of the job has been neither delivered nor given up, so it is not sent again."""

    code = "WEBHOOK_WAITING"


class KeyNotFound(RequestError):
    """No API key has the id that was named."""

    code = "KEY_NOT_FOUND"


class KeyInUse(RequestError):
    """The call comes with the API key that it would revoke, and could lock out the last one who makes keys."""

    code = "KEY_IN_USE"


class UploadNotFound(RequestError):
    """No file was uploaded under this name, or it was deleted."""

    code = "UPLOAD_NOT_FOUND"


class UploadInUse(RequestError):
    """Jobs that have not ended name the uploaded file, so it is not deleted."""

    code = "UPLOAD_IN_USE"


class UploadTooLarge(RequestError):
    """The uploaded file is larger than an adapter, or an image, may be."""

    code = "BODY_TOO_LARGE"


class UploadIncomplete(RequestError):
    """The connection ended, or stalled, before the whole file had arrived; nothing was stored."""

    code = "UPLOAD_INCOMPLETE"


class LengthRequired(RequestError):
    """The upload does not state its size, which is checked before any of it is received."""

    code = "LENGTH_REQUIRED"


class DigestMismatch(RequestError):
    """The uploaded bytes have another sha256 than the caller states; nothing was stored."""

    code = "DIGEST_MISMATCH"


class AdapterNotFound(RequestError):
    """No file exists at the adapter's path."""

    code = "LORA_NOT_FOUND"


class AdapterRefused(RequestError):
    """The file is not an adapter that this model can use; the message names the key or the byte at fault."""

    code = "INVALID_LORA"


class AdapterMismatch(AdapterRefused):
    """A LoRA tensor does not fit the layer it names."""

    code = "LORA_MISMATCH"

    def __init__(self, layer: str, *, expected: tuple[int, ...], got: tuple[int, ...], hint: str = "") -> None:
        super().__init__(f"{layer}: expected a {expected} update, the adapter gives {got}{hint}")


class ReferenceRefused(RequestError):
    """A reference image cannot be used: it is no image, too small, too narrow, or its bytes are not those accepted."""

    code = "invalid_reference"


class SourceChanged(RequestError):
    """The file at a source is not the one that was accepted; other bytes are never rendered in its place."""

    code = "source_changed"


class NoSuitableWorker(RequestError):
    """Live workers serve the model, but none of them can do what the job requires; the message says what they can."""

    code = "NO_SUITABLE_WORKER"


class IdempotencyKeyReused(RequestError):
    """The Idempotency-Key was used with another body within its lifetime."""

    code = "IDEMPOTENCY_KEY_REUSED"


class ConfigRefused(RequestError):
    """The training config cannot be replayed; the message names the key."""

    code = "INVALID_CONFIG"


def _end_of(name: str) -> str:
    return repr(name if len(name) <= _SHOWN_CHARS else f"...{name[-_SHOWN_CHARS:]}")


class ReferencesNeeded(RequestError):
    """The training config names reference images on the trainer's host, which the caller must upload first.

    Attributes:
        images: the config's names for them, each once.
    """

    code = "REFERENCE_IMAGES_NEEDED"

    def __init__(self, images: Sequence[str]) -> None:
        shown = ", ".join(_end_of(image) for image in images[:_SHOWN])
        more = f" and {len(images) - _SHOWN} more" if len(images) > _SHOWN else ""
        super().__init__(
            f"the config's samples have {counted(len(images), 'reference image', 'reference images')} on the host of "
            f"the trainer: {shown}{more}; upload each file with POST /v1/uploads, and submit again with images, which "
            "maps each of these names to the upload's path (flux2 replay does both)",
            field="images",
        )
        self.images = tuple(images)


def _describe_load(asked: int, *, pending: int, cap: int) -> str:
    wanted, queued = counted(asked, "item was", "items were"), counted(pending, "item is", "items are")
    return f"{wanted} asked for, {queued} queued and the cap is {cap}"


class JobTooLarge(RequestError):
    """The job has more items than the queue ever holds, so that waiting does not help."""

    code = "JOB_TOO_LARGE"

    def __init__(self, asked: int, *, pending: int, cap: int) -> None:
        super().__init__(
            f"{_describe_load(asked, pending=pending, cap=cap)}, so they can never fit; "
            f"submit at most {cap} at once, or ask the operator to raise FLUX2_QUEUE_CAP"
        )


class QueueFull(Flux2Error):
    """The queue has no room for more items now."""

    code = "queue_full"
    retryable = True

    def __init__(self, asked: int, *, pending: int, cap: int, retry_after_s: int | None = None) -> None:
        """`retry_after_s`: time until there may be room; None if it is unknown."""
        super().__init__(f"{_describe_load(asked, pending=pending, cap=cap)}; try again later")
        self.retry_after_s = retry_after_s


class TooManyListeners(Flux2Error):
    """This process serves as many streams of events as it may, of all callers or of this tenant."""

    code = "too_many_listeners"
    retryable = True

    def __init__(self) -> None:
        super().__init__("too many streams of events are open; close some, or poll the status instead")


class TooManyArchives(Flux2Error):
    """This process sends as many archives as it may, to all callers or to this tenant."""

    code = "too_many_archives"
    retryable = True

    def __init__(self) -> None:
        super().__init__("too many archives are being downloaded; try again when one of them is complete")


class UploadsBusy(Flux2Error):
    """This process receives as many files at once as it may."""

    code = "uploads_busy"
    retryable = True

    def __init__(self) -> None:
        super().__init__("other files are being uploaded; try again later")


class AdapterCheckBusy(Flux2Error):
    """A process checks few remote adapter files and few large headers at a time, and others were first."""

    code = "adapter_check_busy"
    retryable = True

    def __init__(self) -> None:
        super().__init__("other adapter files are being checked; try again later")


class ReferenceCheckBusy(Flux2Error):
    """A process checks few reference images at a time, and others were first."""

    code = "reference_check_busy"
    retryable = True

    def __init__(self) -> None:
        super().__init__("other reference images are being checked; try again later")


class WaitsBusy(Flux2Error):
    """A process has places for so many calls that wait for images, or it stops; nothing was accepted."""

    code = "waits_busy"
    retryable = True

    def __init__(self, message: str = "too many calls wait for their images; try again later") -> None:
        super().__init__(message)


class ImagesFailed(Flux2Error):
    """An image of the job that a call waited for failed, or the job was canceled; `code` is that of the image."""

    code = "images_failed"

    def __init__(self, message: str, *, code: str = code) -> None:
        super().__init__(message)
        self.code = code


class ImagesUnfinished(Flux2Error):
    """A call has waited as long as it may for its images; their job goes on."""

    code = "images_unfinished"

    def __init__(self, job_id: str, *, waited_s: float) -> None:
        super().__init__(
            f"the images are not finished after {waited_s:g} s; their job goes on: GET /v1/requests/{job_id}/result "
            "has them later"
        )


class LedgerUnavailable(Flux2Error):
    """Redis did not answer, so it is unknown whether a write took effect: repeat it with the same Idempotency-Key."""

    code = "ledger_unavailable"
    retryable = True
    implicates_device = False


class LedgerRefused(LedgerUnavailable):
    """Redis answered at once that it does not do this now: it is full, busy, a replica, or its disk fails."""


class LedgerForbidden(LedgerRefused):
    """Redis does not let this user run a command or access a key; calls succeed again once its ACL allows them."""


class LedgerUnusable(LedgerRefused):
    """What answers at the address of Redis cannot hold the ledger before somebody changes the set-up.

    For example a node of a cluster, a Sentinel, or another program. After a semicolon, the message has the remedy.
    """


class RunError(Flux2Error):
    """The request was fine; this attempt failed."""

    code = "run_failed"
    retryable = True


class LeaseLost(RunError):
    """Another worker owns the item now; write nothing."""

    code = "lease_lost"
    implicates_device = False


class ItemCanceled(RunError):
    """The caller canceled the job while the item ran."""

    code = "canceled"
    retryable = False
    implicates_device = False


class OutOfMemory(RunError):
    """The device could not hold the item."""

    code = "out_of_memory"
    # The renderer has already tried again in tiles, if the engine supports them. A live worker with more memory
    # gets the item nevertheless; see `Ledger.release_too_large`.
    retryable = False
    implicates_device = False

    def __init__(self, message: str, *, ends_process: bool = False) -> None:
        super().__init__(message)
        # Of several devices that render together, one may wait for ever for another one without memory.
        self.ends_process = ends_process


class NotFinite(RunError):
    """The output is NaN or infinite; retrying will not help."""

    code = "not_finite"
    # The same request gives the same bits.
    retryable = False


class BlankImage(RunError):
    """Every pixel of the image is exactly black: only a broken device or model draws that, never a prompt."""

    # Retryable, because another worker's device may be sound.
    code = "blank_image"


class DeviceFault(RunError):
    """The device fails even the smallest calculation, so this process can render nothing more."""

    code = "gpu_fault"
    ends_process = True


class WeightsLost(RunError):
    """The base weights could not be restored; the process loads them again or ends."""

    code = "weights_lost"
    ends_process = True


class Stalled(RunError):
    """The item made no progress for `FLUX2_WORKER_STALL_S`; only the end of the process ends a hung kernel."""

    code = "stalled"
    ends_process = True

    def __init__(self, message: str, *, implicates_device: bool = True) -> None:
        super().__init__(message)
        # An upload that hangs says nothing about the GPU.
        self.implicates_device = implicates_device


class StorageUnavailable(RunError):
    """The result could not be written within the retry budget."""

    code = "storage_unavailable"
    implicates_device = False


class StorageOutageReported(StorageUnavailable):
    """Another worker could not reach the storage in the last five minutes; nothing was claimed.

    Attributes:
        outage_id: id of that worker's report; the next claim after a successful probe names it.
    """

    def __init__(self, outage_id: str) -> None:
        super().__init__("a worker could not reach the storage; probe it before the next claim")
        self.outage_id = outage_id


class ObjectMissing(StorageUnavailable):
    """The store has no object at a key. Its readers catch this and name what the key stands for."""


class SourceUnavailable(RunError):
    """The host of a file did not answer in time, failed, or asks to come back later.

    Attributes:
        field: JSON path of the field that names the file, if a request does.
    """

    code = "source_unavailable"
    implicates_device = False
    # Otherwise an outage of ten minutes would spend all attempts of one item after the other.
    needs_time = True

    def __init__(self, message: str, *, field: str | None = None) -> None:
        super().__init__(message)
        self.field = field


class CacheUnavailable(RunError):
    """The file cache of this host cannot hold a file: its disk is full, or its folder cannot be used."""

    code = "cache_unavailable"
    implicates_device = False


class ServerFailed(Flux2Error):
    """A process that this host needs is missing, did not start or ended; the message quotes its log."""

    code = "server_failed"


class HeaderFault(Flux2Error):
    """A safetensors header is unsound. Its readers catch this and raise an error that names the file."""

    code = "header_fault"


class NotPinned(Flux2Error):
    """A file's pages cannot be pinned for the GPU. The reader catches this and reads the file another way."""

    code = "not_pinned"
    implicates_device = False


class CheckpointError(Flux2Error):
    """The base model's files are missing, incomplete or not a FLUX.2; the message names the file and the tensor."""

    code = "checkpoint_error"


class CommandError(Flux2Error):
    """A command cannot do its work; its message is all that the person at the terminal sees."""

    code = "command_failed"


class ApiError(CommandError):
    """The API refused a call or cannot be reached; the message is the problem's code and detail."""

    code = "api_error"

    def __init__(
        self,
        message: str,
        *,
        retryable: bool = False,
        retry_after_s: float | None = None,
        status: int | None = None,
        problem: Mapping[str, Any] | None = None,
    ) -> None:
        """Make the error.

        Args:
            retryable: whether the same call may succeed later: the API, or something that it needs, was away.
            retry_after_s: seconds that the server asks to wait before the next attempt.
            status: the answer's HTTP status; None without an answer.
            problem: the answer's body; None if it has none in the API's format.
        """
        super().__init__(message)
        self.retryable = retryable
        self.retry_after_s = retry_after_s
        self.status = status
        self.problem: Mapping[str, Any] = problem or {}


class ApiUnreachable(ApiError):
    """Nothing answered: the address is wrong, or the API or the network is away."""

    code = "api_unreachable"


class DownloadFailed(ApiError):
    """The object of one image cannot be had from its store, or is damaged; those of other images may be there."""

    code = "download_failed"


class DemoFailed(CommandError):
    """A demonstration job did not succeed."""

    code = "demo_failed"


class ReplayFailed(CommandError):
    """A job of the replay did not succeed."""

    code = "replay_failed"


class ReproductionFailed(CommandError):
    """An image cannot be rendered again: its file lacks the parameters, or the job did not succeed."""

    code = "reproduction_failed"


class ConfigImagesNotFound(CommandError):
    """Reference images that a training config names are not on this host, or are no images; the message names them."""

    code = "config_images_not_found"


class NoSamples(CommandError):
    """The folder holds no sample images under the names that the trainer gives them."""

    code = "no_samples"


class TrainingRunRefused(CommandError):
    """A sweep cannot be made of a training run: it has no checkpoints, or its config does not say what to render."""

    code = "training_run_refused"


class SweepFolderRefused(CommandError):
    """The folder holds no sweep, or another one, or its sweep has no such image."""

    code = "sweep_folder_refused"


class UploadRefused(CommandError):
    """A file of this host cannot be uploaded: it cannot be read, changes, or would lose what is next to it."""

    code = "upload_refused"


class OutputRefused(CommandError):
    """A command's files cannot be written where it should: no folder can be made there, or other files are there."""

    code = "output_refused"


class NoStack(CommandError):
    """The folder holds no settings of a stack, because `flux2 up` never ran with it."""

    code = "no_stack"


class MissingExtra(CommandError):
    """A library is not installed; an extra of this package brings it."""

    code = "missing_extra"

    def __init__(self, library: str, *, extra: str) -> None:
        super().__init__(
            f"no module named {library!r}: install flux2-queue[{extra}], in a checkout with "
            f"pip install -c constraints.txt '.[{extra}]'"
        )


class ClientConfigRefused(CommandError):
    """The client's config file is unsound, or has no profile of the name that was asked for."""

    code = "client_config_refused"


class KeyRefused(CommandError):
    """No API key has the id that was named, or it is not active any more."""

    code = "key_refused"


class WebhooksDisabled(CommandError):
    """No secret is set, so no webhooks are sent."""

    code = "webhooks_disabled"

    def __init__(self) -> None:
        super().__init__(
            "FLUX2_WEBHOOK_SECRET is not set, so no webhooks are sent; make one with: "
            "echo whsec_$(openssl rand -base64 32)"
        )


class UnsafeAddress(CommandError):
    """The API would listen for other hosts, and nobody would need a key."""

    code = "unsafe_address"


class GoldensError(CommandError):
    """The folder holds no usable golden files, or no case matches the filter; raised before any case runs."""

    code = "goldens_error"


class SignerUnusable(CommandError):
    """Images cannot be signed with the configured certificate and key; raised before a worker loads its model."""

    code = "signer_unusable"


class SignatureUnreadable(CommandError):
    """An image, or the certificates to trust, cannot be read to check its signature."""

    code = "signature_unreadable"


class SigningFailed(Flux2Error):
    """One image could not be signed; its pixels are fine, so it is stored without a signature."""

    code = "signing_failed"
    implicates_device = False
