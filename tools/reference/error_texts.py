"""What each error code means to a caller, and what to do about it; `error_codes` compares the codes with the code."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, NamedTuple


class ErrorText(NamedTuple):
    """When a code comes, and the remedy."""

    when: str
    remedy: str


_LATER: Final = "Repeat the call after `Retry-After` seconds; the Python client and `flux2` do so by themselves."
_OTHER_WORKER: Final = (
    "Submit the image again. If it happens again, look at the log of the worker, which ended or probed its GPU."
)

TEXTS: Final[Mapping[str, ErrorText]] = {
    "BAD_REQUEST": ErrorText(
        "The body is not JSON, or cannot be decoded.", "Correct the body at the line and column that `detail` names."
    ),
    "BODY_TOO_LARGE": ErrorText(
        "The body, or an uploaded file, has more bytes than the service takes.",
        "Split the prompts into several jobs, and upload images instead of sending them in base64. `limits` of "
        "`GET /v1/models` has the sizes; the operator sets `FLUX2_API_MAX_BODY_BYTES`.",
    ),
    "DEADLINE_EXCEEDED": ErrorText(
        "`deadline_s` of the job passed while the image waited for a worker.", "Submit it again with more time."
    ),
    "DIGEST_MISMATCH": ErrorText(
        "The bytes that arrived have another sha256 than the header states; nothing was stored.",
        "Send the file again, or correct `X-Content-SHA256` or `Content-Digest`.",
    ),
    "FIRST_KEY_REFUSED": ErrorText(
        "The API has no keys, other hosts may reach it, and a call asks for the first key.",
        "Make it on the API's host: `flux2 keys create NAME --role admin`.",
    ),
    "FORBIDDEN": ErrorText(
        "The API key lacks the role that the call needs.",
        "Use a key with that role, or ask the operator for one (`flux2 keys create --role`).",
    ),
    "IDEMPOTENCY_KEY_REUSED": ErrorText(
        "The `Idempotency-Key` came with another body within 24 hours.",
        "Use a new key for a new request; send the same body to repeat one.",
    ),
    "INVALID_CONFIG": ErrorText(
        "The training config of a replay cannot be used.", "Correct the key of the config that `detail` names."
    ),
    "INVALID_LORA": ErrorText(
        "The file is not an adapter that the model can use, or its place is not allowed.",
        "`detail` names the key at fault. `flux2 inspect FILE` shows what the file is for; "
        "[adapters](../adapters.md) has the layouts and their remedies.",
    ),
    "INVALID_REQUEST": ErrorText(
        "A field has a value that cannot be served.", "Correct the field that `errors[].path` names."
    ),
    "INVALID_WEBHOOK_URL": ErrorText(
        "`webhook_url` is no public https address, or the service sends no webhooks.",
        "Use a public https address; the operator enables webhooks with `FLUX2_WEBHOOK_SECRET`, and private addresses "
        "with `FLUX2_WEBHOOK_ALLOW_PRIVATE`.",
    ),
    "JOB_TOO_LARGE": ErrorText(
        "The job has more images than the queue ever holds.",
        "Split it; `GET /v1/models` states how many prompts one request may have. The operator sets the limit with "
        "`FLUX2_QUEUE_CAP`.",
    ),
    "KEY_IN_USE": ErrorText(
        "The call would revoke the key with which it came.", "Revoke it with another key that has the role `admin`."
    ),
    "KEY_LIMIT": ErrorText(
        "The limits of the API key never allow the request: its size, steps, model, engine or adapters.",
        "Keep the limit that `detail` names, or ask the operator to raise it (`flux2 keys update`).",
    ),
    "KEY_NOT_FOUND": ErrorText("No API key has this id.", "List the keys with `GET /v1/keys` or `flux2 keys list`."),
    "LENGTH_REQUIRED": ErrorText("An upload does not state its size.", "Send a `Content-Length`."),
    "LORA_MISMATCH": ErrorText(
        "A layer of the adapter has another shape than the model's, as if it was trained on another size of the model.",
        "Name the model for which the adapter was trained; `flux2 inspect FILE --base MODEL` compares them.",
    ),
    "LORA_NOT_FOUND": ErrorText(
        "No file exists where the adapter is said to be.",
        "Correct the path: `detail` names files with similar names, and `flux2 adapters` lists all. Push a file of "
        "your disk with `flux2 adapters push`.",
    ),
    "METHOD_NOT_ALLOWED": ErrorText(
        "The address exists, but not with this method.", "Use one of the methods in the header `Allow`."
    ),
    "MODEL_NOT_FOUND": ErrorText("No model has this id.", "Use an id that `GET /v1/models` lists."),
    "MOE_FORMAT_NOT_SUPPORTED": ErrorText(
        "`loras[].transformer` names one of two transformers, and no model here has two.", "Leave the field out."
    ),
    "NOT_FOUND": ErrorText("Nothing is at this address.", "Correct it; [the calls](calls.md) have the addresses."),
    "NO_SUITABLE_WORKER": ErrorText(
        "Workers serve the model, but none can do what the job requires.",
        "Use the engine or the mode that `detail` names, or start such a worker.",
    ),
    "NO_WEBHOOK": ErrorText(
        "A webhook is to be sent again, but the job has none, or the service sends none.",
        "Submit jobs with a `webhook_url`; the operator sets `FLUX2_WEBHOOK_SECRET`.",
    ),
    "REFERENCE_IMAGES_NEEDED": ErrorText(
        "The samples of the training config have reference images, which are on the trainer's host.",
        "Upload each image that `images` names, and repeat the call with `images`; `flux2 replay` does both.",
    ),
    "REQUEST_NOT_FOUND": ErrorText(
        "No job or sweep of this tenant has this id: it was never accepted, or its record has expired.",
        "Check the id and the key. Records are kept for `FLUX2_QUEUE_RETENTION_S`.",
    ),
    "SENDER_REFUSED": ErrorText(
        "A web page of another site may have sent the call, or it names a host that is not the API's.",
        "The operator lists pages in `FLUX2_API_CORS_ORIGINS`, and names in `FLUX2_API_ALLOWED_HOSTS`.",
    ),
    "UNAUTHORIZED": ErrorText(
        "The API key is missing, wrong, revoked or expired.",
        "Send `Authorization: Bearer flux2_...`; `flux2` reads `FLUX2_API_KEY`. The operator makes keys with "
        "`flux2 keys create`.",
    ),
    "UNSUPPORTED_MEDIA_TYPE": ErrorText(
        "The body is not declared as what the call takes.",
        "`curl -d` declares a form: add `-H 'content-type: application/json'`, or use `curl --json`; for an image add "
        "`-H 'content-type: image/png'`.",
    ),
    "UPLOAD_INCOMPLETE": ErrorText(
        "The connection ended, or stalled, before the whole file had arrived; nothing was stored.",
        "Send the file again.",
    ),
    "UPLOAD_IN_USE": ErrorText(
        "Jobs that have not ended use the uploaded file.", "Delete it when they have ended, or cancel them first."
    ),
    "UPLOAD_NOT_FOUND": ErrorText(
        "No file was uploaded under this name, or it was deleted.",
        "`flux2 adapters list` has the names; upload the file again.",
    ),
    "VALIDATION_ERROR": ErrorText(
        "A field or a parameter is missing, unknown, or of the wrong type or size.",
        "Correct each field in `errors[]`, which has its path and what is wrong.",
    ),
    "WEBHOOK_WAITING": ErrorText(
        "The webhook has been neither delivered nor given up, so it is not sent again.",
        "Wait: `webhook` in the status has its state.",
    ),
    "adapter_check_busy": ErrorText("Other adapter files are being checked.", _LATER),
    "blank_image": ErrorText(
        "Every pixel is black, which no prompt gives: the GPU or the model is broken.", _OTHER_WORKER
    ),
    "cache_unavailable": ErrorText(
        "The disk of the worker's file cache is full, or its folder cannot be used.",
        "Make room on the worker's host, or set `FLUX2_SOURCES_CACHE_DIR`; `flux2 cache list` shows what it holds.",
    ),
    "canceled": ErrorText("The job was canceled while the image was rendered.", "Submit it again if it is needed."),
    "gpu_fault": ErrorText("The GPU fails even the smallest calculation; its worker ends.", _OTHER_WORKER),
    "images_failed": ErrorText(
        "An image that a call of OpenAI's interface waited for failed, or the job was canceled.",
        "`GET /v1/requests/{id}/result` has the error of each image.",
    ),
    "images_unfinished": ErrorText(
        "A call of OpenAI's interface waited `FLUX2_API_OPENAI_WAIT_S` for its images, and the job goes on.",
        "Fetch them later from `GET /v1/requests/{id}/result`.",
    ),
    "internal": ErrorText(
        "A defect of the service.",
        "The API's log has a traceback with the `request_id`; report it if it happens again.",
    ),
    "invalid_reference": ErrorText(
        "A reference image cannot be used: its format, size or shape, or it does not exist.",
        "Send a PNG, JPEG, WebP or BMP file, each side at least 64 pixels and at most 8 times the other.",
    ),
    "key_limit_reached": ErrorText(
        "The API key has used up a limit.", "Wait `Retry-After` seconds, or ask the operator to raise it."
    ),
    "lease_lost": ErrorText(
        "Another worker has the image now. It is in metrics and logs alone: no caller sees it.", "Nothing."
    ),
    "ledger_unavailable": ErrorText(
        "Redis does not answer, so it is unknown whether the call had an effect.",
        "Repeat the call with the same `Idempotency-Key`. The operator's `flux2 doctor` says what is wrong.",
    ),
    "not_finite": ErrorText(
        "The output is NaN or infinite, and would be again.",
        "Use a lower multiplier or guidance, or `engine: exact`; `flux2 inspect` tells whether the adapter is sound.",
    ),
    "out_of_memory": ErrorText(
        "The image does not fit into the memory of any live worker's GPU.",
        "Use a smaller size or fewer reference images, or start a worker with more memory "
        "([performance](../performance.md)).",
    ),
    "queue_full": ErrorText(
        "The queue has no room for the job now.",
        f"{_LATER} The operator sets the size with `FLUX2_QUEUE_CAP`.",
    ),
    "reference_check_busy": ErrorText("Other reference images are being checked.", _LATER),
    "run_failed": ErrorText("An attempt failed for a reason that has no code of its own.", _OTHER_WORKER),
    "source_changed": ErrorText(
        "The file behind a link is not the one that was accepted; other bytes are never rendered in its place.",
        "Submit again to use the new file, or name a commit, a version or a `sha256`. Keep a separate file for each "
        "training step.",
    ),
    "source_unavailable": ErrorText(
        "The host of a file does not answer, or asks to come back later.",
        "Repeat the call later; the host may limit downloads, or need a token "
        "([adapters](../adapters.md#where-adapters-are-kept)).",
    ),
    "stalled": ErrorText("The image made no progress for `FLUX2_WORKER_STALL_S`; its worker ends.", _OTHER_WORKER),
    "storage_unavailable": ErrorText(
        "The object store does not answer, or refuses to read or write.",
        "Repeat the call when it is back; `flux2 doctor` checks it. During an outage, images wait and none fails; "
        "submit again those that failed although the store answers.",
    ),
    "too_many_archives": ErrorText(
        "The process, or the tenant, downloads as many archives as it may.", "Wait until one is complete."
    ),
    "too_many_failures": ErrorText(
        "Too many wrong API keys came from this address.", "Correct the key, and wait `Retry-After` seconds."
    ),
    "too_many_listeners": ErrorText(
        "The process, or the tenant, has as many streams of events as it may.",
        "Close streams, or poll the status instead.",
    ),
    "unreadable_spec": ErrorText(
        "The worker is of an earlier version than the API and cannot read the image.",
        "Upgrade the workers before the API, and submit again.",
    ),
    "uploads_busy": ErrorText("The process receives as many files as it may.", _LATER),
    "waits_busy": ErrorText(
        "Too many calls of OpenAI's interface wait for their images; nothing was accepted.", _LATER
    ),
    "weights_lost": ErrorText(
        "The base weights could not be restored; the worker loads them again or ends.", _OTHER_WORKER
    ),
    "worker_lost": ErrorText(
        "Every worker that tried the image died or lost its lease.",
        "Submit it again. If it happens again, the logs of the workers and of their hosts say why they died, often "
        "for lack of memory.",
    ),
}
