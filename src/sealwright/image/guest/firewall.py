"""The packet filter of a guest: what the measured config names may be reached, and nothing else.

The addresses behind its names are the host's word; the ports, and that there is nothing more, are measured.
"""

from __future__ import annotations

import subprocess

from sealwright.attester.quoter.peers import allowed_peers
from sealwright.errors import UnavailableError
from sealwright.image.guest.network import GuestNetwork

NFT = "/usr/sbin/nft"
STAGE = "firewall"
_RULES = """\
flush ruleset
table inet sealwright {{
  chain input {{
    type filter hook input priority filter; policy drop;
    iif "lo" accept
    ct state established accept
    ct state invalid drop
    tcp dport {listen} ct state new accept
    icmpv6 type {{ nd-neighbor-solicit, nd-neighbor-advert }} ip6 hoplimit 255 accept
  }}
  chain forward {{
    type filter hook forward priority filter; policy drop;
  }}
  chain output {{
    type filter hook output priority filter; policy drop;
    oif "lo" accept
    ct state established accept
{egress}    icmpv6 type {{ nd-neighbor-solicit, nd-neighbor-advert }} accept
  }}
}}
"""


def ruleset(config: bytes, network: GuestNetwork) -> str:
    """Return the rules that a measured config means on a network.

    Raises:
        UnavailableError: `host-not-mapped`.
    """
    egress = [
        f"    {'ip' if address.version == 4 else 'ip6'} daddr {address} tcp dport {port} ct state new accept\n"
        for host, port in sorted(allowed_peers(config))
        for address in network.resolve(host)
    ]
    return _RULES.format(listen=network.listen, egress="".join(egress))


def load(rules: str, *, nft: str = NFT) -> None:
    """Put the rules in force, all or none.

    Raises:
        UnavailableError: `firewall-refused`.
    """
    done = subprocess.run([nft, "-f", "-"], input=rules.encode(), capture_output=True, check=False)
    if done.returncode:
        reason = done.stderr.decode(errors="replace").strip().partition("\n")[0]
        raise UnavailableError(f"nft refuses the rules: {reason}", code="firewall-refused", stage=STAGE)
