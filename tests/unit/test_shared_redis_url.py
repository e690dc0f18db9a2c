"""A Redis URL means for Celery what it means for redis-py, or settings refuse it without a word of the password."""

import re
import ssl
import subprocess
import traceback

import pytest
from pydantic import ValidationError
from redis import ConnectionPool, SSLConnection

from shared.ledger.connection import connect
from shared.redis_url import RedisUrl
from shared.settings import Settings


@pytest.mark.parametrize(
    ("url", "broker", "shown"),
    [
        ("redis://", "redis://localhost:6379/0", "redis://localhost:6379/0"),
        ("redis:///3", "redis://localhost:6379/3", "redis://localhost:6379/3"),
        ("redis://h", "redis://h:6379/0", "redis://h:6379/0"),
        ("redis://h:6380/", "redis://h:6380/0", "redis://h:6380/0"),
        ("redis://h/1?db=2", "redis://h:6379/2", "redis://h:6379/2"),
        ("redis://[2001:db8::1]:6380/1", "redis://[2001:db8::1]:6380/1", "redis://[2001:db8::1]:6380/1"),
        ("redis://[fe80::1%25eth0]/1", "redis://[fe80::1%25eth0]:6379/1", "redis://[fe80::1%25eth0]:6379/1"),
        ("redis://:p%40s;s+%2F@h", "redis://:p%40s%3Bs%2B%2F@h:6379/0", "redis://***@h:6379/0"),
        ("redis://me:p@ss@h", "redis://me:p%40ss@h:6379/0", "redis://***@h:6379/0"),
        ("redis://me@h", "redis://me:@h:6379/0", "redis://***@h:6379/0"),
        ("redis://h?username=me&password=a%40b", "redis://me:a%40b@h:6379/0", "redis://***@h:6379/0"),
        ("rediss://h", "rediss://h:6379/0", "rediss://h:6379/0"),
        ("unix:///run/r%20s.sock", "redis+socket:///run/r%20s.sock?virtual_host=0", "unix:///run/r s.sock?db=0"),
        ("unix:///run/r@1.sock?db=2", "redis+socket:///run/r%401.sock?virtual_host=2", "unix:///run/r@1.sock?db=2"),
        ("unix://me:p%3Fw@/r.sock", "redis+socket://me:p%3Fw@/r.sock?virtual_host=0", "unix://***@/r.sock?db=0"),
    ],
)
def test_the_address_and_the_login_are_those_of_redis_py(url, broker, shown):
    parsed = RedisUrl.parse(url)

    expected = {"host": "localhost", "port": 6379, "db": 0, **ConnectionPool.from_url(url).connection_kwargs}
    made = connect(url, timeout_s=1).connection_pool.connection_kwargs
    for name in ("path", "db", "username", "password"):
        assert made.get(name) == expected.get(name)
    if not parsed.is_unix_socket:
        assert (made["host"], made["port"]) == (expected["host"], expected["port"])
    assert parsed.celery_settings()["broker_url"] == broker
    assert str(parsed) == shown


@pytest.mark.parametrize(
    "options",
    [
        "",
        "?ssl_cert_reqs=required",
        "?ssl_cert_reqs=optional",
        "?ssl_cert_reqs=none",
        "?ssl_check_hostname=false",
        "?ssl_check_hostname=no",
        "?ssl_check_hostname=true",
        "?ssl_cert_reqs=none&ssl_check_hostname=true",
        "?ssl_min_version=772&ssl_ciphers=ECDHE%2BAESGCM",
        "?ssl_include_verify_flags=[VERIFY_X509_STRICT]&ssl_exclude_verify_flags=VERIFY_X509_PARTIAL_CHAIN",
        "?ssl_ca_path=/etc",
    ],
)
def test_celery_verifies_as_redis_py_does(options):
    url = f"rediss://h/0{options}"
    names = ("cert_reqs", "check_hostname", "ca_path", "ssl_min_version", "ssl_ciphers", "ssl_include_verify_flags",
             "ssl_exclude_verify_flags")  # fmt: skip

    expected = ConnectionPool.from_url(url).make_connection()
    celery = SSLConnection(**RedisUrl.parse(url).celery_settings()["broker_use_ssl"])
    ledger = connect(url, timeout_s=1).connection_pool.make_connection()

    for name in names:
        assert getattr(celery, name) == getattr(ledger, name) == getattr(expected, name)


@pytest.mark.parametrize("spelling", ["CERT_{}", "cert_{}", "{}"])
@pytest.mark.parametrize("rule", ["REQUIRED", "OPTIONAL", "NONE"])
def test_celerys_spellings_of_the_verification_are_understood(spelling, rule):
    options = RedisUrl.parse(f"rediss://h?ssl_cert_reqs={spelling.format(rule)}").client_options()

    assert SSLConnection(ssl_cert_reqs=options["ssl_cert_reqs"]).cert_reqs is ssl.VerifyMode[f"CERT_{rule}"]


def test_without_tls_celery_gets_no_tls():
    assert RedisUrl.parse("redis://h").celery_settings()["broker_use_ssl"] is None


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("sentinel://h:26379/0", "Redis URL must specify one of the schemes redis://, rediss://, unix://"),
        ("redis+socket:///run/redis.sock", "Redis URL must specify"),
        ("redis://h?socket_timeout=3", "the option socket_timeout .* set FLUX2_REDIS_TIMEOUT_S instead"),
        ("redis://h?socket_connect_timeout=3", "the option socket_connect_timeout .* set FLUX2_REDIS_TIMEOUT_S"),
        ("redis://h?health_check_interval=3", "the option health_check_interval .* remove it"),
        ("redis://h/2?protocol=3", "the option protocol .* remove it; possible options are db, password, username"),
        ("redis://h?virtual_host=2", "the option virtual_host"),
        ("redis://h?decode_responses=no", "the option decode_responses"),
        ("redis://h?max_connections=3", "the option max_connections"),
        ("redis://h?ssl_cert_reqs=none", "the option ssl_cert_reqs needs a URL that begins with rediss://"),
        ("unix:///r.sock?ssl_ca_certs=x", "the option ssl_ca_certs needs a URL that begins with rediss://"),
        ("rediss://h?ssl_validate_ocsp=true", "the option ssl_validate_ocsp .* remove it; .* ssl_ca_certs"),
        (
            "rediss://h?ssl_cert_reqs=CERT_REQ",
            "ssl_cert_reqs='CERT_REQ' is unknown; write one of required, optional, none",
        ),
        ("rediss://h?ssl_ca_certs=/nowhere.pem", "ssl_ca_certs=/nowhere.pem gives no certificates: .*No such file"),
        ("rediss://h?ssl_ca_certs=/etc/hostname", "ssl_ca_certs=/etc/hostname gives no certificates"),
        ("rediss://h?ssl_ca_data=x", "ssl_ca_data gives no certificates"),
        ("rediss://h?ssl_ca_path=/nowhere", "ssl_ca_path=/nowhere is not a folder"),
        ("rediss://h?ssl_keyfile=/k.pem", "ssl_keyfile needs ssl_certfile"),
        ("rediss://h?ssl_certfile=/c.pem&ssl_password=hush", "ssl_certfile=/c.pem cannot be loaded: .*No such file"),
        ("rediss://h?ssl_min_version=12", r"ssl_min_version=12 is unknown; write one of 771 \(TLSv1_2\)"),
        ("rediss://h?ssl_ciphers=best", "ssl_ciphers='best' selects no cipher"),
        ("rediss://h?ssl_include_verify_flags=strict", "Invalid value for 'ssl_include_verify_flags'"),
        ("redis://h?db=two", "Invalid value for 'db'"),
        ("redis://h?db=-1", "db=-1 is not the number of a database"),
        ("redis://h?db=", "the option db needs one value"),
        ("redis://h?db=1&db=2", "the option db needs one value"),
        ("redis://h/cache", "the path is not the number of a database"),
        ("redis://h/1/2", "the path is not the number of a database"),
        ("redis://a:1,b:2/0", "not a URL of the form"),
        ("redis://h:65536", "not a URL of the form"),
        ("unix://run/redis.sock", "a Unix socket has no host; write three slashes"),
        ("unix://", "a Unix socket has no host; write three slashes"),
        ("redis://:hush/wxyz@h/0", "write special characters of the password as in URLs"),
        ("redis://:1/hushwxyz@h/0", "write special characters of the password as in URLs"),
        ("redis://:hush#wxyz@h/0", "write special characters of the password as in URLs"),
        ("redis://:hush?wxyz@h/0", "write special characters of the password as in URLs"),
        ("redis://:1?hush=wxyz@h/0", "write special characters of the password as in URLs"),
        ("redis://:a@hush/wxyz@h/0", "write special characters of the password as in URLs"),
        ("redis://:hush[wxyz@h/0", "write special characters of the password as in URLs"),
        ("redis://[hush]wxyz@h/0", "write special characters of the password as in URLs"),
        ("redis://:hush℀wxyz@h/0", "write special characters of the password as in URLs"),
        ("redis://h?password=hush&wxyz", r"an option after the \? \(write & in a password as %26\) .* remove it"),
        ("rediss://h?ssl_password=hush&wxyz=1", r"an option after the \? \(write & in a password as %26\)"),
        ("unix://:hush/wxyz@/r.sock", "write special characters of the password as in URLs"),
        ("unix://:1/hushwxyz@/r.sock", "a Unix socket has no host"),
    ],
)
def test_a_url_that_the_clients_would_understand_differently_is_refused(url, said, monkeypatch):
    monkeypatch.setenv("FLUX2_REDIS_URL", url)

    with pytest.raises(ValidationError) as refused:
        Settings()

    (problem,) = refused.value.errors(include_input=False)
    assert problem["loc"] == ("redis", "url")
    assert re.search(said, problem["msg"])
    printed = "".join(traceback.format_exception(refused.value))
    for part in ("hush", "wxyz"):
        assert part not in printed


def test_an_encrypted_key_is_tried_with_its_password_and_never_asked_for_on_the_terminal(tmp_path):
    certificate, key = tmp_path / "certificate.pem", tmp_path / "key.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-subj", "/CN=x",
         "-passout", "pass:hush", "-days", "1", "-out", certificate, "-keyout", key],
        check=True, capture_output=True,
    )  # fmt: skip
    url = f"rediss://h?ssl_certfile={certificate}&ssl_keyfile={key}"

    tls = RedisUrl.parse(f"{url}&ssl_password=hush").celery_settings()["broker_use_ssl"]

    assert tls["ssl_password"] == "hush"
    assert "hush" not in repr(RedisUrl.parse(f"{url}&ssl_password=hush"))
    for password in ("", "&ssl_password=wrong"):
        with pytest.raises(ValueError, match=r"cannot be loaded: .*and ssl_password if the key is encrypted"):
            RedisUrl.parse(f"{url}{password}")
