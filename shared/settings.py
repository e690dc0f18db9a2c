"""All configuration, read once and passed down.

Every variable is `FLUX2_<SECTION>_<NAME>`, from the environment or a `.env` file; `HF_TOKEN`, `AI_TOOLKIT_PATH`
and the `AWS_*` credentials keep the names other tools gave them. docs/reference/settings.md and `.env.example` list
them all with these descriptions; a test compares the three.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, SecretStr, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from shared.network.callers import Networks, Origins
from shared.network.hosts import HostHeaders, HostPatterns, PrivateHosts
from shared.redis_url import RedisUrl
from shared.references import MAX_FILE_BYTES
from shared.setting_types import (
    AnyHostPatternsSetting,
    Bytes,
    Count,
    CountOrZero,
    Days,
    File,
    Folder,
    FolderOrRepository,
    Gigabytes,
    GigabytesOrZero,
    HostHeadersSetting,
    HostPatternsSetting,
    HttpUrl,
    KeyPrefix,
    ModelId,
    NetworksSetting,
    OriginsSetting,
    Price,
    PrivateHostsSetting,
    RedisUrlSetting,
    Region,
    Seconds,
    SecondsOrZero,
    Timeout,
    Token,
    WebhookSecret,
    WholeSeconds,
)

#: File in the working directory; the environment wins over it.
DOTENV = Path(".env")


#: Attempts that botocore makes for one S3 request.
S3_ATTEMPTS = 2


class _Section(BaseModel):
    # Settings are read once and passed down: a later change would not reach all parts of the process.
    model_config = ConfigDict(frozen=True)


class RedisSettings(_Section):
    """The ledger and the wake-up queue."""

    url: RedisUrlSetting = Field(
        RedisUrl.parse("redis://127.0.0.1:6379/0"),
        description="URL of the Redis that holds the ledger: `redis://`, `rediss://` or `unix://`. It must run with "
        "`appendonly yes` and `appendfsync always`.",
    )
    timeout_s: Timeout = Field(1.5, description="Seconds that the API waits for Redis before it answers 503.")


class QueueSettings(_Section):
    """The queueing, leases and retries of items."""

    cap: Count = Field(
        100_000, description="Queued items at which new jobs are answered 429; a job with more is answered 400."
    )
    lease_ttl_s: Seconds = Field(15.0, description="Seconds without a renewal after which a running item is requeued.")
    renew_s: Seconds = Field(
        3.0,
        description="Seconds between renewals of a running item's lease; at most a third of `FLUX2_QUEUE_LEASE_TTL_S`.",
    )
    max_attempts: Count = Field(3, description="Number of attempts after which an item whose workers died fails.")
    wait_bound_s: SecondsOrZero = Field(
        3600.0, description="Seconds in the queue after which an item goes before priority and affinity."
    )
    reap_s: Seconds = Field(
        1.0,
        description="Seconds between searches for expired leases; a quarter of `FLUX2_QUEUE_LEASE_TTL_S` if that "
        "is less.",
    )
    audit_s: Seconds = Field(3.0, description="Seconds between searches for lost wake-up messages.")
    retention_s: Seconds = Field(
        7 * 86_400.0,
        description="Seconds that the record of an ended job is kept; longer while its webhook is still being sent.",
    )
    idempotency_ttl_s: WholeSeconds = Field(
        86_400, description="Seconds that an Idempotency-Key is remembered; at most `FLUX2_QUEUE_RETENTION_S`."
    )
    usage_days: Days = Field(400, description="Days for which the usage of each day is kept.")

    @property
    def reap_period_s(self) -> float:
        """Seconds between two passes of a caretaker: `reap_s`, but at most a quarter of a lease."""
        # A stall is a gap of two periods. A longer gap could expire leases before it counts as one.
        return min(self.reap_s, self.lease_ttl_s / 4)

    @model_validator(mode="after")
    def _renewals_are_in_time(self) -> Self:
        # Two renewals may be lost before a live worker loses its item.
        if self.renew_s > self.lease_ttl_s / 3:
            raise ValueError(
                f"FLUX2_QUEUE_RENEW_S {self.renew_s:g} is more than a third of FLUX2_QUEUE_LEASE_TTL_S "
                f"{self.lease_ttl_s:g}; lower the first or raise the second"
            )
        return self

    @model_validator(mode="after")
    def _jobs_outlive_their_keys(self) -> Self:
        # A key whose job is gone would be accepted a second time.
        if self.retention_s < self.idempotency_ttl_s:
            raise ValueError(
                f"FLUX2_QUEUE_RETENTION_S {self.retention_s:.10g} is less than FLUX2_QUEUE_IDEMPOTENCY_TTL_S "
                f"{self.idempotency_ttl_s}, but a job is kept for as long as its Idempotency-Key; set "
                f"FLUX2_QUEUE_IDEMPOTENCY_TTL_S to at most {self.retention_s:.10g} as well, or raise the first"
            )
        return self


class StorageSettings(_Section):
    """The storage of images."""

    backend: Literal["s3", "directory"] = Field(
        "s3", description="`s3`, or `directory` for files on one host and in tests."
    )
    directory: Folder = Field(Path(".flux2/objects"), description="Root folder of the `directory` backend.")
    prefix: KeyPrefix = Field(
        "",
        description="Prefix of every object key, e.g. `flux2/`: a relative path without empty, `.` and `..` parts.",
    )
    url_ttl_s: int = Field(
        3600, ge=1, le=604_800, description="Seconds that the presigned URLs in results are valid; at most 604800."
    )
    retry_budget_s: SecondsOrZero = Field(
        60.0, description="Seconds that an upload is retried before the attempt ends."
    )


class S3Settings(_Section):
    """The S3-compatible store; credentials come from the standard AWS variables or files."""

    bucket: str = Field("flux2", description="Name of the bucket, which must exist.")
    endpoint_url: HttpUrl | None = Field(
        None, description="URL of the store if it is not AWS: MinIO, R2, SeaweedFS and others."
    )
    public_endpoint_url: HttpUrl | None = Field(
        None,
        description="URL of the store in presigned URLs. Default: `FLUX2_S3_ENDPOINT_URL`; set it if clients reach the "
        "store under another host than workers do.",
    )
    region: Region | None = Field(
        None,
        description="Region for which requests are signed, e.g. `eu-central-1`. Default: on AWS `AWS_REGION`, "
        "`AWS_DEFAULT_REGION` or that of the profile, otherwise `us-east-1`.",
    )
    addressing_style: Literal["auto", "path", "virtual"] = Field(
        "auto", description="How requests name the bucket: `auto`, `path` or `virtual`."
    )
    sse: str | None = Field(None, description="`ServerSideEncryption` of every upload, e.g. `AES256` or `aws:kms`.")
    sse_kms_key_id: str | None = Field(None, description="`SSEKMSKeyId` of every upload, for `aws:kms`.")
    timeout_s: Timeout = Field(30.0, description="Seconds that one S3 request may take to connect, and to read.")

    @property
    def longest_request_s(self) -> float:
        """Seconds that one request may take: each attempt waits for a connection, and then for an answer."""
        return S3_ATTEMPTS * 2 * self.timeout_s


class AdaptersSettings(_Section):
    """The adapter files on this host. If jobs name some, the API and the workers must see the same files."""

    root: Folder = Field(
        Path("adapters"), description="Folder that `loras[].path` is relative to; files outside it are refused."
    )
    max_bytes: Bytes = Field(8 * 1024**3, description="Size in bytes above which an adapter file is refused.")
    allow_symlinks: bool = Field(
        False,
        description="Follow symbolic links in `FLUX2_ADAPTERS_ROOT` that lead out of it. Set it for the workers first, "
        "then for the API.",
    )


# The hub's own are those of huggingface.co/.well-known/meta.json. Civitai redirects downloads to b2.civitai.com or to
# its own account of R2.
_HTTPS_HOSTS = (
    "huggingface.co,*.huggingface.co,*.hf.co,civitai.com,*.civitai.com,"
    "*.5ac0637cfd0766c97916cefa3764fbdf.r2.cloudflarestorage.com"
)


class SourcesSettings(_Section):
    """Files that requests name by a link. The API reads their headers, and the workers download them."""

    local_only: bool = Field(
        False, description="Refuse every link: only files under `FLUX2_ADAPTERS_ROOT` are used, as in an air gap."
    )
    https_hosts: HostPatternsSetting = Field(
        HostPatterns.parse(_HTTPS_HOSTS),
        description="Hosts from which files may come over https, also after a redirect: names with commas between "
        "them; `*.hf.co` stands for every name that ends with `.hf.co`. Private addresses are refused.",
    )
    private_hosts: PrivateHostsSetting = Field(
        PrivateHosts(),
        description="Your own hosts, such as `mirror.lan:8080`, with commas between them: they may have private "
        "addresses and serve http. Whoever can submit a job can make the service read from them.",
    )
    https_headers: HostHeadersSetting = Field(
        HostHeaders(),
        description='Header for each host, usually its token: `{"civitai.com": "Authorization: Bearer TOKEN"}`. A host '
        "with another port than 443 is written with it. No other host gets the header, also not after a redirect.",
    )
    s3_buckets: str = Field(
        "",
        description="Buckets from which `s3://` files may come, with commas between them; `*` stands for any text. "
        "Default: the bucket of the images alone, because the service may read more than its callers. "
        "The store and the credentials are those of the images.",
    )
    timeout_s: Timeout = Field(
        15.0,
        description="Seconds that a host has for one read of a file's header, with all redirects, and between two "
        "pieces of a download.",
    )
    download_s: Timeout = Field(3600.0, description="Seconds that the download of one file may take.")
    retry_budget_s: SecondsOrZero = Field(
        60.0, description="Seconds without a new byte for which a download is retried before the attempt ends."
    )
    cache_dir: Folder = Field(
        Path("~/.cache/flux2-queue"),
        validate_default=True,
        description="Folder on a local disk for downloaded files, which all workers of a host share. It is created for "
        "this user alone.",
    )
    cache_max_bytes: Bytes = Field(
        64 * 1024**3,
        description="Size in bytes of all downloaded files; the least recently used ones make room for others. A "
        "larger file is refused.",
    )


class ReferencesSettings(_Section):
    """Reference images (`ctrl_img` of a prompt), which the API checks and stores when it accepts a job."""

    max_bytes: int = Field(
        MAX_FILE_BYTES, ge=1024, le=2**30, description="Size in bytes above which the file of an image is refused."
    )
    max_images: Count = Field(100, description="Number of different images that one request, or one replay, may name.")
    https_hosts: AnyHostPatternsSetting = Field(
        HostPatterns(("*",)),
        description="Hosts from which images may come over https, in addition to those of `FLUX2_SOURCES_HTTPS_HOSTS`; "
        "`*` alone stands for every host with a public address. To allow no others, write the name of one that "
        "does not exist, such as `none`.",
    )


class ModelSettings(_Section):
    """The base model that a worker serves. Defaults come from the catalogue's entry for `FLUX2_MODEL_ID`."""

    id: ModelId = Field(
        "flux2",
        description="Model id: flux2, flux2_klein_4b, flux2_klein_9b, flux2_klein_4b_distilled or "
        "flux2_klein_9b_distilled.",
    )
    path: FolderOrRepository | None = Field(
        None,
        description="Folder with the weights in BFL's or diffusers' layout, or a Hugging Face repository id. "
        "Default: the model's repository.",
    )
    text_encoder: FolderOrRepository | None = Field(
        None,
        description="Folder or repository id of the text encoder and its tokenizer. Default: the model's own.",
    )
    revision: str | None = Field(None, description="Branch, tag or commit of the repository `FLUX2_MODEL_PATH`.")
    precision: Literal["bf16", "fp32", "qfloat8", "fp8"] = Field(
        "bf16",
        description="Precision of weights and activations. `bf16`; `fp32` for CPUs; `qfloat8` stores the transformer's "
        "weights in float8 and runs adapters unmerged; `fp8` multiplies in float8, for jobs with the engine `fast`.",
    )
    attention: Literal["bf16", "fp8"] | None = Field(
        None,
        description="Precision of attention under `FLUX2_MODEL_PRECISION=fp8`: `fp8` takes 0.7 of the time of `bf16`, "
        "and errs more. Default: `fp8` on one GPU of the Hopper generation or later, `bf16` elsewhere.",
    )
    text_encoder_precision: Literal["bf16", "qfloat8"] | None = Field(
        None,
        description="Precision of the text encoder's weights: `bf16` or `qfloat8`. Default: that of "
        "`FLUX2_MODEL_PRECISION`, and `bf16` for `fp8`.",
    )
    compile: bool | None = Field(
        None,
        description="Compile the transformer's blocks: the same bits in four fifths of the time, after a longer start. "
        "Default: on a GPU with `bf16` or `fp8`.",
    )
    text_encoder_place: Literal["resident", "streamed"] | None = Field(
        None,
        description="`resident` keeps the text encoder on the device; `streamed` copies it there layer by layer for "
        "each new prompt. Default: the placement that fits and copies least.",
    )
    clean_weights: Literal["device", "host", "file"] | None = Field(
        None,
        description="Where to restore base weights from after an adapter swap: copies on the `device`, copies in "
        "`host` memory, or the checkpoint's `file` in the page cache that all workers share. Default: `device` if it "
        "has room, otherwise `file` with as many copies on the device as fit.",
    )
    memory_gb: Gigabytes | None = Field(
        None,
        description="Device memory that this worker may use, in 10^9 bytes. Default: the memory that is free.",
    )


class ApiSettings(_Section):
    """The HTTP API."""

    host: str = Field("127.0.0.1", description="Address on which the API listens.")
    port: int = Field(8000, ge=0, le=65_535, description="Port on which the API listens.")
    insecure: bool = Field(
        False,
        description="Listen for other hosts although there is no API key: whoever reaches the port sees, creates and "
        "cancels everybody's jobs. Without it, the API refuses to start then.",
    )
    trusted_proxies: NetworksSetting = Field(
        Networks(),
        description="Addresses and networks of the proxies in front of the API, with commas between them. Their "
        "`X-Forwarded-For` names the caller, and their `X-Tenant` its tenant: they must authenticate callers, and "
        "replace both headers. Default: `X-Forwarded-For` and `X-Forwarded-Proto` of this host's own proxy.",
    )
    allowed_hosts: HostPatternsSetting = Field(
        HostPatterns(()),
        description="Names by which the API is called, with commas between them; `*.example.com` stands for every name "
        "that ends with `.example.com`. Calls to other names are refused. Default: `localhost`, this host's own name, "
        "the names in `FLUX2_API_HOST` and `FLUX2_API_BASE_URL`, and addresses; with API keys, every name.",
    )
    cors_origins: OriginsSetting = Field(
        Origins(),
        description="Web pages that may call the API from a browser, such as `https://console.example.com`, with "
        "commas between them. Default: pages of no other site.",
    )
    metrics: Literal["key", "open", "off"] = Field(
        "key",
        description="`/metrics`: `key` needs an API key with the role `admin`, if there are keys; `open` answers "
        "everybody; `off` removes it.",
    )
    metrics_slots: int = Field(
        256,
        ge=0,
        le=100_000,
        description="Largest fleet, in slots, whose `/metrics` have a series for each slot; larger ones have sums and "
        "distributions only.",
    )
    console: bool = Field(
        True, description="Serve the console at `/`: a page to submit, watch and compare, which asks for an API key."
    )
    docs: bool = Field(True, description="Serve `/docs`, `/redoc` and `/openapi.json`, to callers without a key too.")
    base_url: HttpUrl | None = Field(
        None,
        description="Public URL of the API, used in `status_url`, `result_url` and webhooks. Default: the URL of the "
        "request; webhooks then carry paths without a host.",
    )
    max_body_bytes: int = Field(
        4 * 1024**2,
        ge=1024,
        le=2**30,
        description="Size in bytes above which a request body is answered 413, and its prompts with trigger words "
        "filled in 400.",
    )
    max_prompts: Count = Field(
        1000, description="Number of prompts that one request, or samples that one replay, may have."
    )
    max_sweep_images: Count = Field(
        5000,
        description="Number of images that one sweep may have. It is accepted in one step, of some 20 ms for each "
        "1,000 images, during which Redis serves nobody else.",
    )
    max_sweep_jobs: Count = Field(
        500,
        description="Number of jobs that one sweep may have: one for each combination of checkpoint and multiplier.",
    )
    openai_wait_s: Seconds = Field(
        580.0,
        description="Longest time in seconds that a call of OpenAI's interface (`/v1/images/generations` and "
        "`/v1/images/edits`) waits for its images; its clients give up and repeat it after 600.",
    )
    max_wait_s: SecondsOrZero = Field(
        50.0,
        description="Longest time in seconds that a submit with `Prefer: wait` waits for images; 0 answers at once. "
        "Less than the time after which a proxy in front of the API gives up, often 60 s.",
    )


class WorkerSettings(_Section):
    """One slot: a worker process on one device, or on several that render each image together."""

    device: str = Field(
        "auto",
        description="Device to render on: `auto`, `cuda`, `cuda:N` or `cpu`; 2, 4 or 8 of them, separated by commas, "
        "render each image together.",
    )
    name: str | None = Field(None, description="Name of the worker's slot. Default: its host and device.")
    drain_s: SecondsOrZero = Field(
        30.0, description="Seconds that the running item has after SIGTERM before it is handed over."
    )
    stall_s: Seconds = Field(
        180.0,
        description="Seconds without progress after which a kernel counts as hung and the worker process ends.",
    )
    lock_dir: Folder | None = Field(
        None,
        description="Folder for the locks on slots and GPUs, shared by all workers of a host. Default: the system's "
        "temporary folder.",
    )
    health_dir: Folder | None = Field(
        None,
        description="Folder in which each slot notes its heartbeats, for the probes of containers and for `--gpus`, "
        "which then ends slots that hang; not shared with other containers. Default: none.",
    )
    prompt_cache: CountOrZero = Field(
        64, description="Number of encoded prompts kept in memory (15.7 MB each at full size)."
    )
    preview_steps: CountOrZero = Field(
        5,
        description="Most denoising steps from one preview of an image to the next, while somebody watches; fewer for "
        "an image of few steps, so that it has two. 0 for no previews.",
    )
    adapter_cache_gb: GigabytesOrZero = Field(
        4.0,
        description="Host memory for adapters that were read and checked, in 10^9 bytes; one of rank 32 takes 0.4.",
    )

    @property
    def adapter_cache_bytes(self) -> int:
        return int(self.adapter_cache_gb * 1_000_000_000)


class WebhookSettings(_Section):
    """Signed messages about ended jobs, which the API sends to the `webhook_url` of a request."""

    secret: WebhookSecret | None = Field(
        None,
        description="Key that signs webhooks: `whsec_` and base64 of 24 to 64 random bytes. Without it, requests with "
        "a `webhook_url` are refused.",
    )
    shared_signature: bool = Field(
        True,
        description="Sign the webhooks of every tenant with `FLUX2_WEBHOOK_SECRET` too, next to the tenant's own "
        "secret (`flux2 webhooks secret TENANT`). Turn it off once their receivers verify with that.",
    )
    allow_private: bool = Field(
        False, description="Also deliver over http and to private addresses, such as those of your own network."
    )
    timeout_s: Timeout = Field(15.0, description="Seconds that a receiver has to answer.")


class PriceSettings(_Section):
    """Prices of what was used, which `GET /v1/usage` multiplies; those of today hold for every day."""

    currency: str = Field(
        "", pattern="^[A-Za-z]{0,12}$", description="Currency of the prices, e.g. `EUR`: up to 12 letters."
    )
    gpu_hour: Price | None = Field(None, description="Price of an hour of a GPU; only time that gave images counts.")
    image: Price | None = Field(None, description="Price of an image.")
    megapixel_step: Price | None = Field(
        None, description="Price of one denoising step of an image of 1,000,000 pixels."
    )

    @property
    def is_set(self) -> bool:
        """Whether there is a price."""
        return any(price is not None for price in (self.gpu_hour, self.image, self.megapixel_step))

    @model_validator(mode="after")
    def _prices_have_a_currency(self) -> Self:
        if self.is_set and not self.currency:
            raise ValueError("a price is set without a currency; set FLUX2_PRICE_CURRENCY, for example to EUR")
        return self


class ProvenanceSettings(_Section):
    """Signatures in image files (C2PA), which name their origin and show whether they were changed."""

    certificate: File | None = Field(
        None,
        description="PEM file of the certificate with which workers sign images, then of its issuers, without the "
        "root. Needs the extra `provenance`. Default: images are not signed.",
    )
    key: File | None = Field(
        None,
        description="PEM file of the private key of `FLUX2_PROVENANCE_CERTIFICATE`, without a passphrase; only "
        "workers read it.",
    )
    algorithm: Literal["es256", "es384", "es512", "ps256", "ps384", "ps512", "ed25519"] | None = Field(
        None,
        description="Algorithm of the signatures: `es256`, `es384`, `es512`, `ps256`, `ps384`, `ps512` or `ed25519`. "
        "Default: the one of the key, and `ps256` for RSA.",
    )

    @property
    def is_set(self) -> bool:
        """Whether images are signed."""
        return self.certificate is not None

    @model_validator(mode="after")
    def _certificate_and_key_belong_together(self) -> Self:
        if (self.certificate is None) != (self.key is None):
            given, missing = ("CERTIFICATE", "KEY") if self.certificate else ("KEY", "CERTIFICATE")
            raise ValueError(
                f"FLUX2_PROVENANCE_{given} is set without FLUX2_PROVENANCE_{missing}; set both to sign images, or "
                "neither"
            )
        return self


class LogSettings(_Section):
    """Logs on standard error."""

    level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = Field(
        "INFO", description="Lowest level that is written: `DEBUG`, `INFO`, `WARNING` or `ERROR`."
    )
    format: Literal["console", "json"] = Field(
        "console", description="`console` writes text for people, `json` one object per line."
    )


class TraceSettings(_Section):
    """Traces of requests, with OpenTelemetry."""

    exporter: Literal["none", "otlp", "console"] = Field(
        "none",
        description="`otlp` sends the spans of API and workers to the collector that OpenTelemetry's own variables "
        "name, such as `OTEL_EXPORTER_OTLP_ENDPOINT`; `console` writes them to standard error as JSON. Both need the "
        "extra `otel`.",
    )


class Settings(BaseSettings):
    """Every setting, by section."""

    model_config = SettingsConfigDict(
        env_prefix="FLUX2_",
        env_nested_delimiter="_",
        # Only the first underscore separates: FLUX2_QUEUE_LEASE_TTL_S is queue.lease_ttl_s.
        env_nested_max_split=1,
        env_file=DOTENV,
        # Compose files pass unset variables on as empty ones.
        env_ignore_empty=True,
        extra="ignore",
        frozen=True,
        populate_by_name=True,
        # A refused URL or secret must not appear in the error about it.
        hide_input_in_errors=True,
    )

    redis: RedisSettings = RedisSettings()
    queue: QueueSettings = QueueSettings()
    storage: StorageSettings = StorageSettings()
    s3: S3Settings = S3Settings()
    adapters: AdaptersSettings = AdaptersSettings()
    sources: SourcesSettings = SourcesSettings()
    references: ReferencesSettings = ReferencesSettings()
    model: ModelSettings = ModelSettings()
    api: ApiSettings = ApiSettings()
    worker: WorkerSettings = WorkerSettings()
    webhook: WebhookSettings = WebhookSettings()
    price: PriceSettings = PriceSettings()
    provenance: ProvenanceSettings = ProvenanceSettings()
    log: LogSettings = LogSettings()
    trace: TraceSettings = TraceSettings()
    hf_token: Token | None = Field(
        None,
        validation_alias="HF_TOKEN",
        description="Hugging Face token for gated weights, and for adapters in gated and private repositories.",
    )
    ai_toolkit_path: Folder | None = Field(
        None,
        validation_alias="AI_TOOLKIT_PATH",
        description="Checkout of ostris/ai-toolkit, for the engine `ai-toolkit` and `flux2 verify`.",
    )
    aws_access_key_id: str | None = Field(
        None,
        validation_alias="AWS_ACCESS_KEY_ID",
        description="Access key of the S3 store. Default: the places where boto3 looks.",
    )
    aws_secret_access_key: SecretStr | None = Field(
        None, validation_alias="AWS_SECRET_ACCESS_KEY", description="Secret key of the S3 store."
    )
    aws_session_token: SecretStr | None = Field(
        None, validation_alias="AWS_SESSION_TOKEN", description="Session token of temporary S3 credentials."
    )
    aws_region: str | None = Field(
        None, validation_alias="AWS_REGION", description="Region of AWS, unless `FLUX2_S3_REGION` names one."
    )
    aws_default_region: str | None = Field(
        None, validation_alias="AWS_DEFAULT_REGION", description="Region of AWS, unless `AWS_REGION` names one."
    )

    @property
    def longest_upload_s(self) -> float:
        """Seconds that an upload to an unreachable store may take: its retries, and the request that begins last."""
        last_s = self.s3.longest_request_s if self.storage.backend == "s3" else 0.0
        return self.storage.retry_budget_s + last_s

    def hub_token(self) -> str | None:
        """Return the Hugging Face token in clear text, for the one call that needs it."""
        return self.hf_token.get_secret_value() if self.hf_token else None

    def aws_credentials(self) -> dict[str, str | None]:
        """Return a boto3 session's keyword arguments; boto3 searches its usual places for what they leave out."""
        region = self.aws_region or self.aws_default_region
        arguments: dict[str, str | None] = {"region_name": region} if region else {}
        if self.aws_access_key_id is None or self.aws_secret_access_key is None:
            return arguments
        token = self.aws_session_token
        return arguments | {
            "aws_access_key_id": self.aws_access_key_id,
            "aws_secret_access_key": self.aws_secret_access_key.get_secret_value(),
            "aws_session_token": token.get_secret_value() if token else None,
        }
