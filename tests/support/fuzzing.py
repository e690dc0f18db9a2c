"""How many examples the fuzzing tests try, and texts that parsers of addresses read differently."""

import os

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

#: Set by `make fuzz`; 0 in `make test`.
EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", "0"))


def examples(usual):
    """Settings of a test: `usual` examples, always the same ones, or as many other ones as `make fuzz` asks for."""
    return settings(
        max_examples=EXAMPLES or usual,
        derandomize=not EXAMPLES,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )


#: Hosts in many spellings: private and public, names and addresses.
HOSTS = st.one_of(
    st.sampled_from(
        [
            *(
                "127.0.0.1",
                "127.1",
                "0x7f.1",
                "2130706433",
                "017700000001",
                "0",
                "localhost",
                "LOCALHOST",
                "a.localhost",
            ),
            *("10.0.0.1", "169.254.169.254", "192.168.1.1", "172.31.255.255", "100.64.0.1", "224.0.0.1", "0.0.0.0"),
            *("[::1]", "[::]", "[::ffff:127.0.0.1]", "[::ffff:7f00:1]", "[64:ff9b::7f00:1]", "[fe80::1%25eth0]"),
            *("[fd00::1]", "[2002:7f00:1::]", "[2001:db8::1]", "[fec0::1]", "[::127.0.0.1]", "[::1", "::1", "[]"),
            *("8.8.8.8", "[2606:4700::1111]", "example.com", "EXAMPLE.com.", "a_b.example", "xn--e1afmkfd.example"),
            *(
                "127.0.0.1.",
                "127.0.0.1%00.example.com",
                "example.com@127.0.0.1",
                "１２７.0.0.1",
                "exa\u00admple.com",
                "。",
            ),
        ]
    ),
    st.ip_addresses(v=4).map(str),
    st.ip_addresses(v=6).map(lambda address: f"[{address}]"),
    st.text(max_size=12),
)

_PORTS = st.one_of(st.just(""), st.sampled_from([":443", ":80", ":8080", ":0", ":", ":99999", ":-1", ":１", ":4 43"]))
_PATHS = st.one_of(
    st.sampled_from(
        ["", "/", "/a.safetensors", "/a?token=x", "/a#b", "//b", "/../a", "/%2e%2e/a", "\\a", "/a\r\nX: y"]
    ),
    st.text(max_size=20),
)
_LOGINS = st.sampled_from(["", "", "", "user@", "user:hunter2@", ":hunter2@", "a@b@", "user:pa/ss@", "%40@"])


def urls(*schemes):
    """URLs with one of the schemes, or with another one."""
    scheme = st.one_of(
        st.sampled_from(schemes), st.sampled_from(["HTTPS://", "https:", "https:/", "http://", "//", ""])
    )
    parts = st.tuples(scheme, _LOGINS, HOSTS, _PORTS, _PATHS).map("".join)
    return st.one_of(parts, parts, st.text(max_size=60))
