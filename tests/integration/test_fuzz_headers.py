"""Whatever headers and paths a call has, a live API answers it, and never with a server error."""

import http.client
import socket
from urllib.parse import urlsplit

import pytest
from fuzzing import HOSTS, examples, urls
from hypothesis import given
from hypothesis import strategies as st

# What HTTP lets a header hold: bytes without control characters, except a tab.
BYTES = st.text(st.characters(codec="latin-1", exclude_categories=["Cc"], include_characters="\t"), max_size=40)
PATHS = st.one_of(
    st.sampled_from(
        [
            *(
                "/v1/inference",
                "/v1/replays",
                "/v1/sweeps",
                "/v1/requests",
                "/v1/requests/a",
                "/v1/requests/a/cancel",
                "/v1/models",
            ),
            *("/v1/adapters", "/v1/adapters/a", "/v1/adapters?path=a", "/v1/uploads", "/v1/uploads/a", "/metrics"),
            *("/docs", "/docs/files/a", "/docs/files/..%2f..%2fetc%2fpasswd", "/openapi.json", "/ready", "/health"),
            *("//", "/v1/../v1/models", "/%00", "/v1/requests/%ff", "/v1/adapters/%2e%2e", "*", "http://a/v1/models"),
            *("/v1/usage", "/v1/usage?from=0001-01-01&to=0001-12-31", "/v1/usage?from=9999-12-31&to=9999-12-31"),
            *("/v1/usage?group_by=day,day&format=csv", "/v1/requests?tenant=a", "/v1/requests/a/webhook/resend"),
            *("/v1/adapters?path=%00", "/v1/requests?cursor=%ff&limit=1e3", "/v1/adapters?cursor=%ed%a0%80"),
        ]
    ),
    st.text(st.characters(min_codepoint=33, max_codepoint=255, exclude_categories=["Cc"]), max_size=30).map(
        "/v1/{}".format
    ),
)
HEADERS = {
    "Authorization": st.one_of(BYTES, st.builds("{} {}".format, st.sampled_from(["Bearer", "bearer", "Basic"]), BYTES)),
    "Idempotency-Key": BYTES,
    "Prefer": st.one_of(
        BYTES, st.sampled_from(["wait=0", "wait=-1", "wait=9e9", 'wait="0"', "wait=0, wait=0", "wait"])
    ),
    "X-Tenant": BYTES,
    "Host": st.one_of(HOSTS, BYTES),
    "Origin": st.one_of(urls("http://", "https://"), BYTES),
    "Sec-Fetch-Site": st.one_of(BYTES, st.sampled_from(["same-origin", "cross-site", "none"])),
    "X-Forwarded-For": st.one_of(BYTES, st.builds("{}, {}".format, HOSTS, HOSTS)),
    "X-Forwarded-Proto": BYTES,
    "Forwarded": BYTES,
    "Content-Type": st.one_of(BYTES, st.sampled_from(["application/json", "image/png", "application/octet-stream"])),
    "Content-Encoding": BYTES,
    "Content-Digest": st.one_of(BYTES, st.builds("sha-256=:{}:".format, BYTES)),
    "X-Content-SHA256": BYTES,
    "Accept": st.one_of(BYTES, st.sampled_from(["text/csv", "text/html", "*/*;q=x"])),
    "Range": BYTES,
    "Expect": BYTES,
}
JOB = b'{"model": "flux2", "prompts": [{"prompt": "a"}], "loras": []}'
LISTS = st.lists(
    st.sampled_from(sorted(HEADERS)).flatmap(lambda name: st.tuples(st.just(name), HEADERS[name])), max_size=4
)


def call(url, method, path, headers, body):
    """Send a request as it is, without a client that would correct it; return status, type and body, or None."""
    lines = [f"{method} {path} HTTP/1.1", "Connection: close", f"Content-Length: {len(body)}"]
    if "Host" not in [name for name, _ in headers]:
        lines.append(f"Host: {urlsplit(url).netloc}")
    lines += [f"{name}: {value}" for name, value in headers]
    text = "\r\n".join([line.replace("\r", "").replace("\n", "") for line in lines] + ["", ""])
    with socket.create_connection((urlsplit(url).hostname, urlsplit(url).port), timeout=30) as connection:
        connection.sendall(text.encode("latin-1", "replace") + body)
        answer = http.client.HTTPResponse(connection, method=method)
        answer.begin()
        return answer.status, answer.headers.get_content_type(), answer.read()


@pytest.mark.parametrize("keys", ["without keys", "with keys"])
def test_no_headers_and_no_path_make_a_server_error(keys, api, make_key, caplog):
    key = [*make_key(roles=("submit", "read", "admin")).items()] if keys == "with keys" else []

    @examples(80)
    @given(
        method=st.sampled_from(["GET", "POST", "PUT", "DELETE", "HEAD", "OPTIONS", "PATCH"]),
        path=PATHS,
        headers=LISTS,
        body=st.one_of(st.just(b""), st.binary(max_size=20), st.just(JOB)),
        sends_key=st.booleans(),
    )
    def try_call(method, path, headers, body, sends_key):
        sent = [*(key if sends_key else []), *headers]
        status, content_type, text = call(api.url, method, path, sent, body)

        assert status < 500, text
        # The server itself answers what is not HTTP.
        if status >= 400 and method != "HEAD" and text != b"Invalid HTTP request received.":
            assert content_type == "application/problem+json", text

    try_call()

    assert "unexpected error" not in caplog.text
