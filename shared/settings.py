"""All configuration, read once and passed down.

Every variable is `FLUX2_<SECTION>_<NAME>`, from the environment or a `.env` file; `HF_TOKEN`, `AI_TOOLKIT_PATH`
and the `AWS_*` credentials keep the names other tools gave them. The table in
docs/reference/settings.md lists them all, and a test holds it to this file.
"""

from __future__ import annotations

import base64
import os
from pathlib import Path
from typing import Annotated, Literal, Self
from urllib.parse import urlsplit

from dotenv import dotenv_values
from pydantic import AfterValidator, BaseModel, Field, SecretStr, field_validator, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict
from redis.connection import parse_url

from shared.catalog import MODELS

_DOTENV = Path(".env")


def _redis_url(value: str) -> str:
    parse_url(value)  # type: ignore[no-untyped-call]  # says which schemes there are
    return value


def _http_url(value: str) -> str:
    parts = urlsplit(value)
    _ = parts.port  # refuses one that is no number
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError(f"{value!r} is no URL: it must begin with http:// or https:// and a host")
    return value


def _model_id(value: str) -> str:
    if value not in MODELS:
        raise ValueError(f"{value!r} is none of {', '.join(MODELS)}")
    return value


HttpUrl = Annotated[str, AfterValidator(_http_url)]


class RedisSettings(BaseModel):
    """The ledger and the wake-up queue."""

    url: Annotated[str, AfterValidator(_redis_url)] = Field(
        "redis://127.0.0.1:6379/0", description="Redis with `appendonly yes` and `appendfsync always`."
    )
    timeout_s: float = Field(1.5, gt=0, description="How long the API waits for Redis before it answers 503.")


class QueueSettings(BaseModel):
    """How items wait, are leased and are retried."""

    cap: int = Field(100_000, ge=1, description="Queued items at which new jobs are answered 429.")
    lease_ttl_s: float = Field(15.0, gt=0, description="A running item whose worker is silent this long is requeued.")
    renew_s: float = Field(3.0, gt=0, description="How often a worker renews the lease of its item.")
    max_attempts: int = Field(3, ge=1, description="Attempts after which an item whose workers died fails.")
    wait_bound_s: float = Field(3600.0, ge=0, description="An item queued longer goes before priority and affinity.")
    reap_s: float = Field(1.0, gt=0, description="How often expired leases are looked for.")
    audit_s: float = Field(3.0, gt=0, description="How often lost wake-up messages are looked for.")
    retention_s: float = Field(7 * 86_400.0, gt=0, description="How long a finished job's record is kept.")
    idempotency_ttl_s: int = Field(86_400, ge=1, description="How long an Idempotency-Key is remembered.")

    @model_validator(mode="after")
    def _renewals_are_in_time(self) -> Self:
        if self.renew_s > self.lease_ttl_s / 3:
            raise ValueError(
                f"FLUX2_QUEUE_RENEW_S {self.renew_s:g} is more than a third of FLUX2_QUEUE_LEASE_TTL_S "
                f"{self.lease_ttl_s:g}"
            )
        return self


class StorageSettings(BaseModel):
    """Where images go."""

    backend: Literal["s3", "directory"] = Field("s3", description="`directory` writes files; for tests and one host.")
    directory: Path = Field(Path(".flux2/objects"), description="Root of the `directory` backend.")
    prefix: str = Field("", description="Put before every object key, e.g. `flux2/`.")
    url_ttl_s: int = Field(3600, ge=1, le=604_800, description="Lifetime of the presigned URLs in results.")
    retry_budget_s: float = Field(60.0, ge=0, description="How long one upload is retried before the item fails.")


class S3Settings(BaseModel):
    """The S3-compatible endpoint; credentials come from the standard AWS variables or files."""

    bucket: str = Field("flux2", description="Bucket, which must exist.")
    endpoint_url: HttpUrl | None = Field(None, description="Custom endpoint (MinIO, R2, SeaweedFS ...); empty for AWS.")
    public_endpoint_url: HttpUrl | None = Field(
        None, description="Endpoint written into presigned URLs, where clients see another host than workers do."
    )
    region: str = Field("us-east-1", description="Region to sign for.")
    addressing_style: Literal["auto", "path", "virtual"] = Field(
        "auto", description="How the bucket is addressed: `auto`, `path` or `virtual`."
    )
    sse: str | None = Field(None, description="ServerSideEncryption passed to every PUT, e.g. `AES256` or `aws:kms`.")
    sse_kms_key_id: str | None = Field(None, description="SSEKMSKeyId passed with `aws:kms`.")
    timeout_s: float = Field(30.0, gt=0, description="Connect and read timeout of one S3 request.")


class AdaptersSettings(BaseModel):
    """Where adapter files may lie. API and workers must see the same files."""

    root: Path = Field(Path("adapters"), description="Folder that `loras[].path` is relative to; nothing outside it.")
    max_bytes: int = Field(8 * 1024**3, ge=1, description="Larger adapter files are refused.")


class ModelSettings(BaseModel):
    """The base model that a worker serves; what is left empty is the catalogue's entry for `id`."""

    id: Annotated[str, AfterValidator(_model_id)] = Field(
        "flux2", description="Model id of the catalogue that this worker serves."
    )
    path: str | None = Field(
        None,
        description="Folder with the BFL files or a diffusers layout, or a Hugging Face repository id; "
        "empty: the repository of the model id.",
    )
    text_encoder: str | None = Field(
        None,
        description="Folder or repository id of the text encoder and its tokenizer; empty: that of the model id.",
    )
    revision: str | None = Field(None, description="Hub revision (branch, tag or commit) of `path`.")
    precision: Literal["bf16", "fp32", "qfloat8", "fp8"] = Field(
        "bf16",
        description="Weights and activations: `bf16`, or `fp32` for CPUs; `qfloat8` keeps the transformer's weights in "
        "float8, adapters beside it; `fp8` multiplies in float8, for jobs that ask for the engine `fast`.",
    )
    text_encoder_precision: Literal["bf16", "qfloat8"] | None = Field(
        None,
        description="Weights of the text encoder, `bf16` or `qfloat8`; empty: as `FLUX2_MODEL_PRECISION`, and `bf16` "
        "under `fp8`.",
    )
    compile: bool | None = Field(
        None,
        description="Compile the transformer's blocks: the same bits in four fifths of the time, after a longer start; "
        "empty: on a GPU, in `bf16` and `fp8`.",
    )
    text_encoder_place: Literal["resident", "streamed"] | None = Field(
        None,
        description="`resident` on the device, or `streamed` layer by layer from its files for each new prompt; empty: "
        "of what fits, the placement that leaves the least to copy.",
    )
    clean_weights: Literal["device", "host", "file"] | None = Field(
        None,
        description="Where what adapters change comes back from: copies on the `device` or in `host` memory, or the "
        "checkpoint's files in the page cache that all workers share; empty: `device`, or `file` with copies of what "
        "there is room for.",
    )
    memory_gb: float | None = Field(
        None, gt=0, description="Device memory (10^9 bytes) that this worker may take; empty: what is free."
    )


class ApiSettings(BaseModel):
    """The HTTP side."""

    host: str = Field("127.0.0.1", description="Address to listen on.")
    port: int = Field(8000, ge=0, le=65_535, description="Port to listen on.")
    base_url: HttpUrl | None = Field(
        None,
        description="Public URL written into `status_url`, `result_url` and webhooks; empty: the request's own, and in "
        "webhooks a path without a host.",
    )
    max_body_bytes: int = Field(4 * 1024**2, ge=1024, description="Larger request bodies are answered 413.")
    max_prompts: int = Field(1000, ge=1, description="Prompts in one request, samples in one replay.")


class WorkerSettings(BaseModel):
    """One worker process on one device."""

    device: str = Field("auto", description="`auto`, `cuda`, `cuda:N` or `cpu`.")
    name: str | None = Field(None, description="Slot name; empty: host and device.")
    drain_s: float = Field(
        30.0, ge=0, description="After SIGTERM the running item has this long before it is handed over."
    )
    stall_s: float = Field(
        180.0, gt=0, description="A running item without progress this long is a hung kernel: the process ends."
    )
    lock_dir: Path | None = Field(
        None,
        description="Folder, shared by all workers of a host, of the locks on slots and GPUs; empty: the system's "
        "temporary folder.",
    )
    prompt_cache: int = Field(64, ge=0, description="Encoded prompts kept in memory (15.7 MB each at full size).")
    adapter_cache_gb: float = Field(
        4.0,
        ge=0,
        description="Host memory for adapter files that were read and checked (10^9 bytes); a rank 32 file takes 0.4.",
    )


class WebhookSettings(BaseModel):
    """Messages to `webhook_url`s about ended jobs, sent by the API."""

    secret: SecretStr | None = Field(
        None,
        description="`whsec_` and base64 of 24 to 64 random bytes; empty: requests with a `webhook_url` are refused.",
    )
    allow_private: bool = Field(
        False, description="Also deliver over http and to addresses that are not public, such as your own network's."
    )
    timeout_s: float = Field(15.0, gt=0, description="How long a receiver has to answer.")

    @field_validator("secret")
    @classmethod
    def _is_a_key(cls, secret: SecretStr | None) -> SecretStr | None:
        if secret is None:
            return None
        prefix, _, key = secret.get_secret_value().partition("_")
        try:
            size = len(base64.b64decode(key, validate=True))
        except ValueError as error:
            raise ValueError("not `whsec_` and base64") from error
        if prefix != "whsec" or not 24 <= size <= 64:
            raise ValueError("not `whsec_` and base64 of 24 to 64 bytes")
        return secret


class LogSettings(BaseModel):
    """Logs on standard error."""

    level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = Field(
        "INFO", description="Lowest level written: `DEBUG`, `INFO`, `WARNING` or `ERROR`."
    )
    format: Literal["console", "json"] = Field("console", description="`json` writes one object a line.")


class Settings(BaseSettings):
    """The whole tree."""

    model_config = SettingsConfigDict(
        env_prefix="FLUX2_",
        env_nested_delimiter="_",
        env_nested_max_split=1,
        env_file=_DOTENV,
        env_ignore_empty=True,
        extra="ignore",
        populate_by_name=True,
    )

    redis: RedisSettings = RedisSettings()
    queue: QueueSettings = QueueSettings()
    storage: StorageSettings = StorageSettings()
    s3: S3Settings = S3Settings()
    adapters: AdaptersSettings = AdaptersSettings()
    model: ModelSettings = ModelSettings()
    api: ApiSettings = ApiSettings()
    worker: WorkerSettings = WorkerSettings()
    webhook: WebhookSettings = WebhookSettings()
    log: LogSettings = LogSettings()
    hf_token: SecretStr | None = Field(
        None, validation_alias="HF_TOKEN", description="Hugging Face token with which workers download gated weights."
    )
    ai_toolkit_path: Path | None = Field(
        None,
        validation_alias="AI_TOOLKIT_PATH",
        description="Checkout of ostris/ai-toolkit, for the engine `ai-toolkit` and `flux2 verify`.",
    )
    aws_access_key_id: str | None = Field(
        None, validation_alias="AWS_ACCESS_KEY_ID", description="S3 credentials; empty: boto3's other sources."
    )
    aws_secret_access_key: SecretStr | None = Field(
        None, validation_alias="AWS_SECRET_ACCESS_KEY", description="S3 credentials."
    )
    aws_session_token: SecretStr | None = Field(
        None, validation_alias="AWS_SESSION_TOKEN", description="S3 credentials, where they are temporary."
    )

    def hub_token(self) -> str | None:
        """The Hugging Face token in clear, for the one call that needs it."""
        return self.hf_token.get_secret_value() if self.hf_token else None

    def aws_credentials(self) -> dict[str, str | None]:
        """Keyword arguments of a boto3 session; empty where boto3 is to look in its own places."""
        if self.aws_access_key_id is None or self.aws_secret_access_key is None:
            return {}
        token = self.aws_session_token
        return {
            "aws_access_key_id": self.aws_access_key_id,
            "aws_secret_access_key": self.aws_secret_access_key.get_secret_value(),
            "aws_session_token": token.get_secret_value() if token else None,
        }


def unknown_variables() -> list[str]:
    """Return the `FLUX2_*` variables, of the environment and of `.env`, that are no setting, as misspelt ones."""
    known = {
        f"FLUX2_{section}_{name}".upper()
        for section, info in Settings.model_fields.items()
        if isinstance(info.default, BaseModel)
        for name in type(info.default).model_fields
    }
    given = {name.upper() for name in (*os.environ, *dotenv_values(_DOTENV))}
    return sorted(name for name in given if name.startswith("FLUX2_") and name not in known)
