"""The settings, their documentation and the environment agree."""

import math
import re
import socket
import threading
from pathlib import Path
from typing import get_args

import pytest
from pydantic import BaseModel, ValidationError

from shared.cli import main
from shared.ledger.session import to_ms
from shared.setting_problems import describe_problem
from shared.settings import QueueSettings, Settings, StorageSettings
from shared.unknown_settings import find_unknown_settings

ROOT = Path(__file__).parents[2]


def variables():
    """Every variable with its default as text and its description."""
    found = {}
    for section, info in Settings.model_fields.items():
        if not isinstance(info.default, BaseModel):
            found[info.validation_alias] = ("", info.description)
            continue
        for name, field in type(info.default).model_fields.items():
            default = "" if field.default is None else str(field.default)
            found[f"FLUX2_{section}_{name}".upper()] = (default, field.description)
    return found


def plain_types(annotation):
    """The classes in an annotation such as `Annotated[float, ...] | None`."""
    if isinstance(annotation, type):
        yield annotation
    for part in get_args(annotation):
        yield from plain_types(part)


def numbers(model=Settings):
    """Every numeric setting as (model class, field name, variable)."""
    for name, field in model.model_fields.items():
        kinds = list(plain_types(field.annotation))
        for section in kinds:
            if issubclass(section, BaseModel):
                yield from numbers(section)
        if {int, float} & set(kinds):
            prefix = model.__name__.removesuffix("Settings")
            yield pytest.param(model, name, id=f"{prefix}.{name}")


def upper_bound(model, name):
    schema = model.model_json_schema()["properties"][name]
    return next(kind["maximum"] for kind in (schema, *schema.get("anyOf", ())) if "maximum" in kind)


def test_the_reference_lists_every_setting_with_its_default_and_meaning():
    text = (ROOT / "docs/reference/settings.md").read_text()

    rows = re.findall(r"^\| `(\w+)` \| (?:`(.*?)`)? ?\| (.*) \|$", text, re.MULTILINE)

    assert {name: (default, meaning) for name, default, meaning in rows} == variables()


def test_the_example_file_lists_every_setting_with_its_default_and_meaning():
    text = (ROOT / ".env.example").read_text()

    rows = re.findall(r"^# (.*)\n#(\w+)=(.*)$", text, re.MULTILINE)

    assert {name: (default, meaning) for meaning, name, default in rows} == variables()


def test_every_setting_can_be_set_from_the_environment(monkeypatch):
    monkeypatch.setenv("FLUX2_S3_ADDRESSING_STYLE", "path")
    monkeypatch.setenv("FLUX2_QUEUE_LEASE_TTL_S", "12.5")
    monkeypatch.setenv("FLUX2_MODEL_TEXT_ENCODER", "/models/mistral")
    monkeypatch.setenv("HF_TOKEN", "hf_secret")

    settings = Settings()

    assert settings.s3.addressing_style == "path"
    assert settings.queue.lease_ttl_s == 12.5
    assert settings.model.text_encoder == "/models/mistral"
    assert settings.hf_token.get_secret_value() == "hf_secret"
    assert "hf_secret" not in repr(settings)


def test_an_empty_variable_means_the_default(monkeypatch):
    monkeypatch.setenv("FLUX2_S3_ENDPOINT_URL", "")
    monkeypatch.setenv("HF_TOKEN", "")

    settings = Settings()

    assert settings.s3.endpoint_url is None
    assert settings.hf_token is None


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("FLUX2_QUEUE_LEASE_TTL_S", "-1"),
        ("FLUX2_REDIS_URL", "10.0.0.5:6379"),
        ("FLUX2_REDIS_URL", "http://10.0.0.5:6379"),
        ("FLUX2_S3_ENDPOINT_URL", "s3.example.com"),
        ("FLUX2_S3_PUBLIC_ENDPOINT_URL", "https://"),
        ("FLUX2_S3_ENDPOINT_URL", "http://10.0.0.5:port"),
        ("FLUX2_API_BASE_URL", "flux2.example.com"),
        ("FLUX2_MODEL_ID", "flux3"),
    ],
)
def test_an_unusable_value_is_refused(variable, value, monkeypatch):
    monkeypatch.setenv(variable, value)

    with pytest.raises(ValidationError, match=variable.split("_", 2)[2].lower()):
        Settings()


@pytest.mark.parametrize(("model", "name"), list(numbers()))
@pytest.mark.parametrize("value", ["inf", "-inf", "nan", "1e30", str(10**30), math.inf, math.nan])
def test_no_number_is_infinite_or_without_a_bound(model, name, value):
    with pytest.raises(ValidationError, match=name):
        model.model_validate({name: value})


@pytest.mark.parametrize(("model", "name"), [number for number in numbers() if number.values[1].endswith("_s")])
def test_the_longest_time_fits_milliseconds_waits_and_sockets(model, name):
    longest = upper_bound(model, name)

    # A script gets milliseconds as a double and adds them to the time, as Redis does with an expiry.
    assert 1 <= to_ms(longest) < 2**51
    assert longest < threading.TIMEOUT_MAX
    if name == "timeout_s":
        assert to_ms(longest) < 2**31
        with socket.socket() as connection:
            connection.settimeout(longest)


@pytest.mark.parametrize("name", ["wait_bound_s", "retention_s", "audit_s"])
def test_a_time_that_people_write_for_never_is_accepted(name):
    assert getattr(QueueSettings.model_validate({name: 10**9}), name) == 10**9


@pytest.mark.parametrize("name", ["lease_ttl_s", "reap_s", "retention_s"])
def test_a_time_of_no_whole_millisecond_is_refused(name):
    with pytest.raises(ValidationError, match=r"greater than or equal to 0\.001"):
        QueueSettings.model_validate({name: 0.0009})


def test_the_message_names_the_setting_and_its_bound(monkeypatch, capsys):
    monkeypatch.setenv("FLUX2_QUEUE_WAIT_BOUND_S", "inf")
    monkeypatch.setattr("sys.argv", ["flux2", "doctor"])

    with pytest.raises(SystemExit):
        main()

    assert "FLUX2_QUEUE_WAIT_BOUND_S: Input should be less than or equal to 3153600000" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("prefix", "remedy"),
    [
        ("/x/", "write 'x/'"),
        ("//x/", "write 'x/'"),
        ("/", "write ''"),
        ("../x/", "write 'x/'"),
        ("a/../../x", "write 'a/x/'"),
        ("..", "write ''"),
        ("a//b/", "write 'a/b/'"),
        ("./a/", "write 'a/'"),
        ("C:\\images\\", "write 'C:/images/'"),
        ("a\nb/", "control character"),
        ("a\x7f/", "control character"),
        ("a\udc80/", "control character"),
    ],
)
def test_a_prefix_that_leaves_the_storage_is_refused_with_the_one_to_write(prefix, remedy):
    with pytest.raises(ValidationError, match=re.escape(remedy)):
        StorageSettings(prefix=prefix)


@pytest.mark.parametrize("prefix", ["", "flux2/", "flux2", "team a/flux2-", ".hidden/", "a..b/", "bilder/ö/"])
def test_a_plain_prefix_is_used_as_it_is(prefix):
    assert StorageSettings(prefix=prefix).prefix == prefix


def test_an_unknown_setting_is_found_with_the_setting_that_was_meant(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FLUX2_MODEL_PRECISON", "qfloat8")
    monkeypatch.setenv("FLUX2_MODEL_PRECISION", "bf16")
    (tmp_path / ".env").write_text("FLUX2_S3_BUKET=mine\nFLUX2_S3_REGION=eu-west-1\nOTHER=1\nFLUX2_X=1\n")

    assert find_unknown_settings() == {
        "FLUX2_MODEL_PRECISON": "FLUX2_MODEL_PRECISION",
        "FLUX2_S3_BUKET": "FLUX2_S3_BUCKET",
        "FLUX2_X": None,
    }


def test_a_setting_without_the_2_is_found_and_the_variables_of_other_programs_are_not(monkeypatch):
    monkeypatch.setenv("FLUX_MODEL_PATH", "/models/FLUX.2-dev")
    monkeypatch.setenv("FLUX_WORKER_DEVCE", "cpu")
    monkeypatch.setenv("FLUX_SYNC_INTERVAL", "1m")

    assert find_unknown_settings() == {
        "FLUX_MODEL_PATH": "FLUX2_MODEL_PATH",
        "FLUX_WORKER_DEVCE": "FLUX2_WORKER_DEVICE",
    }


def test_the_home_folder_is_expanded_where_no_shell_does_it(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    dotenv = tmp_path / ".env"
    dotenv.write_text("FLUX2_MODEL_PATH=~/weights\nFLUX2_ADAPTERS_ROOT=~/loras\nAI_TOOLKIT_PATH=~nobody-here/kit\n")

    settings = Settings(_env_file=dotenv)

    assert settings.model.path == f"{tmp_path}/weights"
    assert settings.adapters.root == tmp_path / "loras"
    assert str(settings.ai_toolkit_path) == "~nobody-here/kit"


def test_a_lease_shorter_than_three_renewals_is_refused(monkeypatch):
    monkeypatch.setenv("FLUX2_QUEUE_RENEW_S", "6")

    with pytest.raises(
        ValidationError, match="FLUX2_QUEUE_RENEW_S 6 is more than a third of FLUX2_QUEUE_LEASE_TTL_S 15"
    ):
        Settings()


def test_prices_are_exact_and_need_a_currency(monkeypatch):
    monkeypatch.setenv("FLUX2_PRICE_IMAGE", "0.1")

    with pytest.raises(ValidationError, match="set FLUX2_PRICE_CURRENCY, for example to EUR"):
        Settings()
    monkeypatch.setenv("FLUX2_PRICE_CURRENCY", "EUR")

    assert str(Settings().price.image) == "0.1"
    assert Settings().price.gpu_hour is None


def test_a_retention_shorter_than_the_memory_of_a_key_is_refused_with_the_variable_to_lower(monkeypatch):
    monkeypatch.setenv("FLUX2_QUEUE_RETENTION_S", "3600")

    with pytest.raises(ValidationError, match="set FLUX2_QUEUE_IDEMPOTENCY_TTL_S to at most 3600 as well"):
        Settings()

    monkeypatch.setenv("FLUX2_QUEUE_IDEMPOTENCY_TTL_S", "3600")
    assert Settings().queue.retention_s == 3600


def test_credentials_in_a_dotenv_file_reach_the_store(monkeypatch, tmp_path):
    (tmp_path / ".env").write_text("AWS_ACCESS_KEY_ID=AK\nAWS_SECRET_ACCESS_KEY=SK\nFLUX2_S3_BUCKET=mine\n")
    settings = Settings(_env_file=tmp_path / ".env")

    assert settings.s3.bucket == "mine"
    assert settings.aws_credentials() == {
        "aws_access_key_id": "AK",
        "aws_secret_access_key": "SK",
        "aws_session_token": None,
    }
    assert "SK" not in repr(settings)


def test_settings_cannot_be_changed_after_they_were_read():
    settings = Settings()

    with pytest.raises(ValidationError, match="frozen"):
        settings.queue.cap = 1
    with pytest.raises(ValidationError, match="frozen"):
        settings.ai_toolkit_path = Path("elsewhere")


def test_without_credentials_boto3_searches_its_usual_places():
    assert Settings().aws_credentials() == {}


@pytest.mark.parametrize("token", ["hf_a\nb", "hf_a b", "hf_ä"])
def test_a_token_that_no_header_can_hold_is_refused_without_being_shown(monkeypatch, token):
    monkeypatch.setenv("HF_TOKEN", token)
    with pytest.raises(ValidationError, match="holds a space, a line break or a character beyond ASCII") as refused:
        Settings()
    assert token not in str(refused.value)


@pytest.mark.parametrize(
    "name", ["FLUX2_S3_ENDPOINT_URL", "FLUX2_S3_PUBLIC_ENDPOINT_URL", "FLUX2_API_BASE_URL", "FLUX2_REDIS_URL"]
)
@pytest.mark.parametrize("address", ["https://user:CANARY@s3.example.com", "https://user:CANARY/x@s3.example.com"])
def test_an_address_with_a_login_is_refused_without_being_shown(monkeypatch, name, address):
    monkeypatch.setenv(name, address)

    with pytest.raises(ValidationError) as refused:
        Settings()

    assert "CANARY" not in str(refused.value)
    assert "CANARY" not in str(describe_problem(refused.value))
