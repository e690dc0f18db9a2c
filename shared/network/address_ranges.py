"""Decide which IP addresses belong to the open internet.

The tables stand here because `ipaddress.is_global` differs between releases of Python and misses ranges in all of them:
64:ff9b:1::1 and 2002:7f00:1:: are global for 3.12 and not for 3.13; 192.0.0.9, fec0::1, ::7f00:1, 3fff::1 and 5f00::1
are global for both.

Source:
    IANA's registries of special-purpose addresses, as of October 2025, and RFC 6890, which defines their columns:
    https://www.iana.org/assignments/iana-ipv4-special-registry
    https://www.iana.org/assignments/iana-ipv6-special-registry
"""

from __future__ import annotations

from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

Address = IPv4Address | IPv6Address

# Registered as not "Globally Reachable" (False or N/A), and what no registry of special purposes lists: multicast.
_IPV4_NOT_PUBLIC = tuple(
    IPv4Network(text)
    for text in (
        "0.0.0.0/8",  # this network, RFC 791
        "10.0.0.0/8",  # private use, RFC 1918
        "100.64.0.0/10",  # shared with a provider's NAT, RFC 6598
        "127.0.0.0/8",  # loopback, RFC 1122
        "169.254.0.0/16",  # link-local, also the metadata of clouds, RFC 3927
        "172.16.0.0/12",  # private use, RFC 1918
        # IETF protocol assignments, RFC 6890. The registry calls .9 and .10 reachable, but they are anycast addresses
        # of the nearest NAT (RFC 7723, RFC 8155), which is in one's own network.
        "192.0.0.0/24",
        "192.0.2.0/24",  # documentation, RFC 5737
        "192.88.99.0/24",  # 6to4 relays, deprecated by RFC 7526, and 6a44 relays, RFC 6751
        "192.168.0.0/16",  # private use, RFC 1918
        "198.18.0.0/15",  # benchmarks, RFC 2544
        "198.51.100.0/24",  # documentation, RFC 5737
        "203.0.113.0/24",  # documentation, RFC 5737
        "224.0.0.0/4",  # multicast, RFC 5771
        "240.0.0.0/4",  # reserved, RFC 1112, with the limited broadcast, RFC 919
    )
)

# IANA assigns unicast addresses from this block alone. Outside it are ::1, :: and all of ::/96 (IPv4-compatible),
# 64:ff9b:1::/48 (local NAT64), 100::/64 (discard), 100:0:0:1::/64 (dummy), 5f00::/16 (SRv6 segments), fc00::/7 (unique
# local), fe80::/10 (link-local), fec0::/10 (site-local) and ff00::/8 (multicast).
_IPV6_UNICAST = IPv6Network("2000::/3")
_IPV6_NOT_PUBLIC = tuple(
    IPv6Network(text)
    for text in (
        # IETF protocol assignments, RFC 2928: Teredo, ORCHID, benchmarks, and anycast addresses of the nearest NAT. The
        # registry calls some of them reachable, but no receiver or file server has such an address.
        "2001::/23",
        "2001:db8::/32",  # documentation, RFC 3849
        "2002::/16",  # 6to4, RFC 3056: a gateway may forward to the IPv4 address inside, RFC 7526 deprecates them
        "3fff::/20",  # documentation, RFC 9637
    )
)
# Their last 32 bits are the IPv4 address that a packet reaches: IPv4-mapped, RFC 4291, and NAT64, RFC 6052.
_IPV4_INSIDE = (IPv6Network("::ffff:0:0/96"), IPv6Network("64:ff9b::/96"))


def is_public(address: Address) -> bool:
    """Return whether an address belongs to the open internet; an IPv4 address inside an IPv6 one decides for it."""
    if isinstance(address, IPv4Address):
        return not any(address in network for network in _IPV4_NOT_PUBLIC)
    # A zone (`%eth0`) names an interface of this host.
    if address.scope_id is not None:
        return False
    if any(address in network for network in _IPV4_INSIDE):
        return is_public(IPv4Address(int(address) & 0xFFFF_FFFF))
    return address in _IPV6_UNICAST and not any(address in network for network in _IPV6_NOT_PUBLIC)
