"""Each region of AWS, and each way to name it, has links that open; the doctor opens one as a client does."""

import hashlib
import hmac
import shutil
import socket
import ssl
import subprocess
import urllib.request
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qsl, urlsplit

import pytest
from typer.testing import CliRunner

from shared.cli import app
from shared.doctor import run_checks
from shared.errors import StorageUnavailable
from shared.setting_problems import describe_problem
from shared.settings import Settings
from shared.storage import open_store
from shared.storage_check import check_storage, require_storage

BUCKET = "pictures"
SECRET = "secret"


def sign(key, text):
    return hmac.new(key, text.encode(), hashlib.sha256).digest()


class S3Stub(BaseHTTPRequestHandler):
    """S3 of AWS: it answers at the hosts of its region, for that region's signatures, as Amazon's documents say."""

    protocol_version = "HTTP/1.1"

    def _refusal(self):
        """Return the status and the code with which S3 refuses the request; None if it is sound."""
        parts, query = urlsplit(self.path), parse_qsl(urlsplit(self.path).query, keep_blank_values=True)
        fields = dict(query)
        if "X-Amz-Credential" in fields:
            credential, signed, given = (
                fields[f"X-Amz-{name}"] for name in ("Credential", "SignedHeaders", "Signature")
            )
            moment, body_hash = fields["X-Amz-Date"], "UNSIGNED-PAYLOAD"
        else:
            header = dict(
                part.strip().split("=", 1) for part in self.headers["Authorization"].split(" ", 1)[1].split(",")
            )
            credential, signed, given = header["Credential"], header["SignedHeaders"], header["Signature"]
            moment, body_hash = self.headers["X-Amz-Date"], self.headers["X-Amz-Content-SHA256"]
        _, day, region, service, end = credential.split("/")
        if self.headers["Host"].split(":")[0] not in self.server.hosts:
            return 400, "IllegalLocationConstraintException"
        if region != self.server.region:
            return 400, "AuthorizationHeaderMalformed"
        raw = sorted(part for part in parts.query.split("&") if part and not part.startswith("X-Amz-Signature="))
        raw = [part if "=" in part else f"{part}=" for part in raw]
        lines = [f"{name}:{' '.join(self.headers[name].split())}" for name in signed.split(";")]
        canonical = "\n".join([self.command, parts.path, "&".join(raw), *lines, "", signed, body_hash])
        scope = f"{day}/{region}/{service}/{end}"
        text = f"AWS4-HMAC-SHA256\n{moment}\n{scope}\n{hashlib.sha256(canonical.encode()).hexdigest()}"
        key = f"AWS4{SECRET}".encode()
        for part in (day, region, service, end):
            key = sign(key, part)
        return None if hmac.compare_digest(sign(key, text).hex(), given) else (403, "SignatureDoesNotMatch")

    def _serve(self):
        self.server.seen.append(self.headers["Host"])
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        refusal = self._refusal()
        if refusal:
            status, code = refusal
            return self._answer(status, f"<Error><Code>{code}</Code><Message>no</Message></Error>".encode())
        parts = urlsplit(self.path)
        name = parts.path.removeprefix(f"/{BUCKET}/").removeprefix("/")
        objects = self.server.objects
        if self.command == "PUT":
            objects[name] = body
            return self._answer(200, b"")
        if self.command == "DELETE":
            objects.pop(name, None)
            return self._answer(204, b"")
        if "list-type" in parts.query:
            found = "".join(
                f"<Contents><Key>{key}</Key><Size>1</Size><LastModified>2026-01-01T00:00:00.000Z</LastModified></Contents>"
                for key in objects
                if key.startswith(dict(parse_qsl(parts.query))["prefix"])
            )
            return self._answer(200, f"<ListBucketResult>{found}</ListBucketResult>".encode())
        if name in objects:
            return self._answer(200, objects[name])
        return self._answer(404, b"<Error><Code>NoSuchKey</Code></Error>")

    do_GET = do_PUT = do_DELETE = _serve

    def _answer(self, status, body):
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


@pytest.fixture(scope="module")
def certificate(tmp_path_factory):
    """A certificate for hosts of S3 that signs itself, so that it is its own CA, and its key."""
    if shutil.which("openssl") is None:
        pytest.skip("needs the openssl command")
    folder = tmp_path_factory.mktemp("s3-tls")
    made = folder / "certificate.pem", folder / "key.pem"
    regions = ("eu-south-1", "eu-central-1")
    names = ["*.s3.amazonaws.com", "s3.amazonaws.com"]
    names += [f"{prefix}s3.{region}.amazonaws.com" for region in regions for prefix in ("", "*.")]
    subprocess.run(
        [
            "openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-subj",
            "/CN=s3", "-addext", f"subjectAltName={','.join(f'DNS:{name}' for name in names)}", "-days", "1",
            "-out", made[0], "-keyout", made[1],
        ],
        check=True,
        capture_output=True,
    )  # fmt: skip
    return made


@pytest.fixture
def aws(certificate, serve_http, monkeypatch):
    """AWS on this host, whose one region is eu-south-1; DNS and certificates lead every client to it."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), S3Stub)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*certificate)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    server.daemon_threads = True
    server.region, server.objects, server.seen = "eu-south-1", {}, []
    server.hosts = {"s3.eu-south-1.amazonaws.com", f"{BUCKET}.s3.eu-south-1.amazonaws.com"}
    find = socket.getaddrinfo

    def resolve(host, port, *args, **options):
        if str(host).endswith(".amazonaws.com"):
            return find("127.0.0.1", server.server_port, *args, **options)
        return find(host, port, *args, **options)

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    monkeypatch.setenv("AWS_CA_BUNDLE", str(certificate[0]))
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate[0]))
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    monkeypatch.setenv("FLUX2_S3_BUCKET", BUCKET)
    monkeypatch.setenv("FLUX2_REDIS_URL", "redis://127.0.0.1:1/0")
    return serve_http(server)


def report(made):
    return {finding.name: finding for finding in run_checks(made)}


def name_region(way, monkeypatch, tmp_path):
    if way == "profile":
        (tmp_path / "config").write_text("[default]\nregion = eu-south-1\n")
        monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    else:
        monkeypatch.setenv(way, "eu-south-1")


@pytest.mark.parametrize("way", ["FLUX2_S3_REGION", "AWS_REGION", "AWS_DEFAULT_REGION", "profile"])
def test_a_link_has_the_host_and_the_scope_of_a_new_region(way, aws, monkeypatch, tmp_path):
    name_region(way, monkeypatch, tmp_path)
    made = Settings()
    store = open_store(made)
    store.put("results/1.png", b"picture", content_type="image/png")

    url = store.url("results/1.png", expires_s=60)

    assert urlsplit(url).hostname == f"{BUCKET}.s3.eu-south-1.amazonaws.com"
    assert "%2Feu-south-1%2Fs3%2F" in url
    with urllib.request.urlopen(url, timeout=5) as answer:
        assert answer.read() == b"picture"
    found = report(made)
    assert found["storage"].state == "ok"
    assert found["links"].state == "ok"
    assert found["links"].detail == f"a client can open a presigned URL at https://{BUCKET}.s3.eu-south-1.amazonaws.com"
    assert set(aws.seen) == {f"{BUCKET}.s3.eu-south-1.amazonaws.com"}
    assert set(aws.objects) == {"results/1.png"}


def test_the_service_s_own_setting_wins_over_those_of_aws(aws, monkeypatch):
    monkeypatch.setenv("AWS_REGION", "eu-central-1")
    monkeypatch.setenv("FLUX2_S3_REGION", "eu-south-1")

    assert report(Settings())["links"].state == "ok"


@pytest.mark.parametrize(("style", "host"), [("path", "s3."), ("virtual", f"{BUCKET}.s3."), ("auto", f"{BUCKET}.s3.")])
def test_each_style_of_addresses_has_links_that_open(style, host, aws, monkeypatch):
    monkeypatch.setenv("FLUX2_S3_REGION", "eu-south-1")
    monkeypatch.setenv("FLUX2_S3_ADDRESSING_STYLE", style)

    found = report(Settings())["links"]

    assert (found.state, found.detail.rpartition("/")[2]) == ("ok", f"{host}eu-south-1.amazonaws.com")


def test_a_bucket_whose_name_holds_a_dot_is_named_in_the_path(aws, monkeypatch):
    monkeypatch.setenv("FLUX2_S3_REGION", "eu-south-1")
    monkeypatch.setenv("FLUX2_S3_BUCKET", "my.pictures")

    url = open_store(Settings()).url("k", expires_s=60)

    # No certificate covers my.pictures.s3.eu-south-1.amazonaws.com.
    assert url.startswith("https://s3.eu-south-1.amazonaws.com/my.pictures/k?")


def test_the_region_of_another_bucket_is_one_line_with_the_setting_to_change(aws, monkeypatch):
    monkeypatch.setenv("FLUX2_S3_REGION", "eu-central-1")
    aws.hosts.add(f"{BUCKET}.s3.eu-central-1.amazonaws.com")

    found = report(Settings())

    assert found["storage"].state == "failed"
    assert "AuthorizationHeaderMalformed" in found["storage"].detail
    assert found["storage"].remedy == "set FLUX2_S3_REGION to the region of the bucket"
    assert "links" not in found


def test_the_environment_s_region_of_aws_means_nothing_to_another_store(monkeypatch):
    monkeypatch.setenv("AWS_REGION", "eu-south-1")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    monkeypatch.setenv("FLUX2_S3_ENDPOINT_URL", "http://minio:9000")
    monkeypatch.setenv("FLUX2_S3_PUBLIC_ENDPOINT_URL", "https://images.example.com")

    url = open_store(Settings()).url("k", expires_s=60)

    assert url.startswith("https://images.example.com/flux2/k?")
    assert "%2Fus-east-1%2Fs3%2F" in url


def test_another_store_that_aws_own_variable_names_keeps_its_addresses(monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "http://minio:9000")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)

    assert open_store(Settings()).url("k", expires_s=60).startswith("http://minio:9000/flux2/k?")


def test_a_region_that_is_no_code_is_refused_in_one_line(monkeypatch):
    monkeypatch.setenv("FLUX2_S3_REGION", "EU (Frankfurt)")

    with pytest.raises(ValueError, match="Frankfurt") as refused:
        Settings()

    assert describe_problem(refused.value) == (
        "FLUX2_S3_REGION: 'EU (Frankfurt)' is not the code of a region; write for example eu-central-1"
    )


@pytest.mark.parametrize(
    ("name", "value"), [("AWS_REGION", "EU (Frankfurt)"), ("AWS_PROFILE", "nobody"), ("AWS_CONFIG_FILE", "broken")]
)
def test_aws_own_settings_that_cannot_be_used_are_one_line_each(name, value, monkeypatch, tmp_path):
    (tmp_path / "broken").write_text("no section\n")
    monkeypatch.setenv(name, str(tmp_path / value) if value == "broken" else value)
    monkeypatch.setenv("FLUX2_REDIS_URL", "redis://127.0.0.1:1/0")

    with pytest.raises(StorageUnavailable, match="no client for 'flux2'"):
        open_store(Settings())
    printed = CliRunner().invoke(app, ["doctor"])

    assert printed.exit_code == 1
    assert printed.exception is None or isinstance(printed.exception, SystemExit)
    [line] = [line for line in printed.output.splitlines() if "storage" in line.split()[:2]]
    assert "no client for 'flux2'" in line


# ---- links, with the embedded store


class Refusing(BaseHTTPRequestHandler):
    def do_GET(self):
        body = b"<Error><Code>SignatureDoesNotMatch</Code></Error>" if self.server.status == 403 else b"welcome"
        self.send_response(self.server.status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


def with_public(s3, url, settings):
    return settings(
        storage=s3.storage.model_dump(), s3={**s3.s3.model_dump(), "public_endpoint_url": url},
        redis={"url": "redis://127.0.0.1:1/0"},
    )  # fmt: skip


def test_the_doctor_opens_a_link_of_the_embedded_store_and_leaves_nothing(s3, settings):
    found = report(with_public(s3, None, settings))

    assert found["links"].state == "ok"
    assert s3.s3.endpoint_url in found["links"].detail
    assert open_store(s3).list_objects(".flux2-check", limit=10) == []


class Store(BaseHTTPRequestHandler):
    """A store that keeps objects for anybody, and answers requests in `server.refused` with an error."""

    def _serve(self):
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        kind = self.command
        if "list-type" in self.path:
            kind = "LIST"
        elif "X-Amz-Signature" in self.path:
            kind = "LINK"
        if kind in self.server.refused:
            status, body = self.server.refused[kind]
        elif kind == "LIST":
            status, body = 200, b"<ListBucketResult></ListBucketResult>"
        else:
            name = urlsplit(self.path).path
            if kind == "PUT":
                self.server.objects[name] = body
            if kind == "DELETE":
                self.server.objects.pop(name, None)
            status, body = 200, self.server.objects[name] if kind in ("GET", "LINK") else b""
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    do_GET = do_PUT = do_DELETE = _serve

    def log_message(self, *_):
        pass


@pytest.fixture
def store_that_refuses(serve_http, monkeypatch, settings):
    """Make settings of a store that refuses some requests; its objects are the second value."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)

    def make(**refused):
        server = ThreadingHTTPServer(("127.0.0.1", 0), Store)
        server.refused, server.objects = refused, {}
        url = f"http://127.0.0.1:{serve_http(server).server_port}"
        return settings(
            storage={"backend": "s3", "retry_budget_s": 1}, s3={"endpoint_url": url, "addressing_style": "path"},
            redis={"url": "redis://127.0.0.1:1/0"},
        ), server.objects  # fmt: skip

    return make


def refusal(status, code, message="no"):
    return status, f"<Error><Code>{code}</Code><Message>{message}</Message></Error>".encode()


def checked(made):
    return {finding.name: finding for finding in check_storage(made)}


@pytest.mark.parametrize(
    ("answer", "remedy"),
    [
        (refusal(403, "AccessDenied"), "allow the key to put"),
        (refusal(404, "NoSuchBucket"), "create the bucket, or correct FLUX2_S3_BUCKET"),
        (refusal(400, "ExpiredToken"), "renew the temporary credentials"),
        (refusal(403, "RequestTimeTooSkewed"), "run NTP on this host"),
        (refusal(500, "InternalError"), "read the log of the store"),
        ((404, b"<html>nothing here</html>"), "correct FLUX2_S3_ENDPOINT_URL"),
        ((400, b"Client sent an HTTP request to an HTTPS server."), "correct FLUX2_S3_ENDPOINT_URL"),
    ],
)
def test_each_refusal_of_a_write_has_its_own_remedy(answer, remedy, store_that_refuses):
    made, _ = store_that_refuses(PUT=answer)

    found = checked(made)

    assert found["storage"].state == "failed"
    assert found["storage"].remedy.startswith(remedy)
    assert "links" not in found


def test_a_bucket_that_can_be_written_and_not_read_keeps_no_probe(store_that_refuses):
    made, objects = store_that_refuses(GET=refusal(403, "AccessDenied"))

    with pytest.raises(StorageUnavailable, match=r"GET .* 403 'AccessDenied' 'no'; allow the key to put, get"):
        require_storage(open_store(made))

    assert objects == {}


@pytest.mark.parametrize(
    ("answer", "remedy"),
    [
        (refusal(403, "AccessDenied"), "allow the key to list"),
        (refusal(404, "NoSuchKey"), "remove the name of the bucket"),
    ],
)
def test_a_key_that_may_not_list_is_a_warning_and_the_links_are_checked(answer, remedy, store_that_refuses):
    made, objects = store_that_refuses(LIST=answer)

    found = checked(made)

    assert found["storage"].state == "warning"
    assert found["storage"].remedy.startswith(remedy)
    assert found["links"].state == "ok"
    assert objects == {}


def test_a_link_that_has_ended_when_it_is_made_points_at_the_clock(store_that_refuses):
    made, objects = store_that_refuses(LINK=refusal(403, "AccessDenied", "Request has expired"))

    found = checked(made)["links"]

    assert (found.state, found.detail.rpartition(" with ")[2]) == ("failed", "403 AccessDenied")
    assert found.remedy.startswith("run NTP on this host")
    assert objects == {}


@pytest.mark.parametrize(("status", "words"), [(403, "403 SignatureDoesNotMatch"), (200, "other bytes")])
def test_a_public_host_that_does_not_serve_the_bucket_is_named(status, words, s3, settings, serve_http):
    server = ThreadingHTTPServer(("127.0.0.1", 0), Refusing)
    server.status = status
    url = f"http://127.0.0.1:{serve_http(server).server_port}"

    found = report(with_public(s3, url, settings))

    assert found["storage"].state == "ok"
    assert found["links"].state == "failed"
    assert url in found["links"].detail
    assert words in found["links"].detail
    assert "FLUX2_S3_PUBLIC_ENDPOINT_URL" in found["links"].remedy


def test_a_public_host_that_only_clients_reach_is_a_warning(s3, settings):
    found = report(with_public(s3, "http://127.0.0.1:1", settings))["links"]

    assert found.state == "warning"
    assert "open a link of a result where your clients run" in found.remedy
