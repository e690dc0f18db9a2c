"""Every error this project raises on purpose.

* Flux2Error                     .code (stable, in JSON bodies), .retryable
  + RequestError                 the caller must change the request; never retried
    - InvalidRequest             a field has a value that cannot be served
    - ModelNotFound              no such model id
    - RequestNotFound            no job with that id
    - AdapterNotFound            no file at the adapter's path
    - AdapterRefused             the file is not an adapter this model can use
      . AdapterMismatch          a tensor does not fit the layer it names
    - IdempotencyKeyReused       the key was used with another body
    - ConfigRefused              a training config cannot be replayed
  + QueueFull                    the pending list is at its cap; come back later
  + LedgerUnavailable            Redis did not answer; nothing is known to have been accepted
  + RunError                     the request was fine; this attempt was not
    - LeaseLost                  another worker owns the item now; write nothing
    - ItemCanceled               the caller canceled the job while the item ran
    - OutOfMemory                the device could not hold the item
    - NotFinite                  the model gave no numbers; the same request would again
    - BlankImage                 every pixel is black, which no model draws
    - DeviceFault                the device stopped working; the process must end
    - WeightsLost                the clean weights cannot be put back; the process must end
    - Stalled                    no progress for too long: a kernel hangs; the process must end
    - StorageUnavailable         the result could not be written
  + ServerFailed                 a process that this host should run cannot be found, or did not start
  + CheckpointError              the base model's files cannot be used; raised at start, before any claim

Codes in capitals are the request's fault and use the reference API's words; codes in lower case are ours.
`api.errors` alone maps these classes to HTTP.
"""

from __future__ import annotations


class Flux2Error(Exception):
    """Base of all the project's errors."""

    code = "internal"
    retryable = False


class RequestError(Flux2Error):
    """The caller must change the request; `field` is the JSON path at fault, if one is."""

    code = "INVALID_REQUEST"

    def __init__(self, message: str, *, field: str | None = None) -> None:
        super().__init__(message)
        self.field = field


class InvalidRequest(RequestError):
    """A field has a value that cannot be served; `code` names the reason in the reference API's words."""

    def __init__(self, message: str, *, code: str = "INVALID_REQUEST", field: str | None = None) -> None:
        super().__init__(message, field=field)
        self.code = code


class ModelNotFound(RequestError):
    """No such model id."""

    code = "MODEL_NOT_FOUND"


class RequestNotFound(RequestError):
    """No job with that id: never accepted here, or past its retention."""

    code = "REQUEST_NOT_FOUND"


class AdapterNotFound(RequestError):
    """No file at the adapter's path."""

    code = "LORA_NOT_FOUND"


class AdapterRefused(RequestError):
    """The file is not an adapter that this model can use; the message names the key or the byte at fault."""

    code = "INVALID_LORA"


class AdapterMismatch(AdapterRefused):
    """A LoRA tensor does not fit the layer it names."""

    code = "LORA_MISMATCH"

    def __init__(self, layer: str, expected: tuple[int, ...], got: tuple[int, ...]) -> None:
        super().__init__(f"{layer}: expected a {expected} update, the adapter gives {got}")


class IdempotencyKeyReused(RequestError):
    """The Idempotency-Key was used with another body within its lifetime."""

    code = "IDEMPOTENCY_KEY_REUSED"


class ConfigRefused(RequestError):
    """The training config cannot be replayed; the message names the key."""

    code = "INVALID_CONFIG"


class QueueFull(Flux2Error):
    """The pending list is at its cap."""

    code = "queue_full"
    retryable = True

    def __init__(self, pending: int, cap: int) -> None:
        super().__init__(f"{pending} items are queued and the cap is {cap}")


class LedgerUnavailable(Flux2Error):
    """Redis did not answer; whether a write took effect is unknown, so repeat it with the same Idempotency-Key."""

    code = "ledger_unavailable"
    retryable = True


class RunError(Flux2Error):
    """The request was fine; this attempt was not."""

    code = "run_failed"
    retryable = True


class LeaseLost(RunError):
    """Another worker owns the item now; write nothing."""

    code = "lease_lost"


class ItemCanceled(RunError):
    """The caller canceled the job while the item ran."""

    code = "canceled"
    retryable = False


class OutOfMemory(RunError):
    """The device could not hold the item."""

    code = "out_of_memory"
    retryable = False


class NotFinite(RunError):
    """The model gave infinities or NaN, of which no image can be made; the same request would give them again."""

    code = "not_finite"
    retryable = False


class BlankImage(RunError):
    """Every pixel of the image is exactly black: a broken device or model gives that, no prompt does."""

    code = "blank_image"


class DeviceFault(RunError):
    """The device fails even the smallest calculation, so nothing more can be rendered by this process."""

    code = "gpu_fault"


class WeightsLost(RunError):
    """The base model's clean weights could not be put back; the process loads them anew or ends."""

    code = "weights_lost"


class Stalled(RunError):
    """The item made no progress for `FLUX2_WORKER_STALL_S`; a kernel that hangs can only be ended with its process."""

    code = "stalled"


class StorageUnavailable(RunError):
    """The result could not be written within the retry budget."""

    code = "storage_unavailable"


class ServerFailed(Flux2Error):
    """A process that this host should run cannot be found, did not start or ended; says what its log says."""

    code = "server_failed"


class CheckpointError(Flux2Error):
    """The base model's files are missing, incomplete or not a FLUX.2; the message names the file and the tensor."""

    code = "checkpoint_error"
