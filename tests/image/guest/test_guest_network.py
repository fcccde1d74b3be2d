"""The host's network and the filter made of the measured config."""

from __future__ import annotations

import shutil
import socket
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sealwright.crypto.canonical import canonical
from sealwright.errors import FormatError, UnavailableError
from sealwright.image.guest import firewall
from sealwright.image.guest.network import GuestNetwork, find_interface, requests

NETWORK: dict[str, Any] = {
    "format": "sealwright-guest-network/v1",
    "addresses": ["10.0.2.15/24"],
    "gateways": ["10.0.2.2"],
    "hosts": [{"name": "Broker.example", "addresses": ["192.0.2.7", "2001:db8::7"]}],
    "listen": 8443,
    "mtu": 1500,
    "mac": "",
}
CONFIG = canonical(
    {
        "brokers": [
            {"url": "https://broker.example", "root": "x"},
            {"url": "http://203.0.113.9:8080", "root": "y"},
        ],
        "egress": ["[2001:db8::1]:443"],
    }
)


def network(**changes: Any) -> GuestNetwork:
    return GuestNetwork.parse(canonical({**NETWORK, **changes}))


@pytest.mark.parametrize(
    "changes",
    [
        {"addresses": []},
        {"addresses": ["10.0.2.15"]},
        {"addresses": ["10.0.2.15/255.255.255.0"]},
        {"addresses": ["10.0.2.015/24"]},
        {"addresses": ["2001:DB8::1/64"]},
        {"gateways": ["10.0.2.2/24"]},
        {"gateways": ["gateway"]},
        {"hosts": [{"name": "a b", "addresses": ["192.0.2.7"]}]},
        {"hosts": [{"name": "a\n127.0.0.1 b", "addresses": ["192.0.2.7"]}]},
        {"hosts": [{"name": "a", "addresses": ["192.0.2.7; accept"]}]},
        {"hosts": [{"name": "a", "addresses": ["fe80::1%eth0"]}]},
        {"hosts": [{"name": "a", "addresses": ["2001:db8::1%x accept; #"]}]},
        {"addresses": ["fe80::1%x/64"]},
        {"gateways": ["fe80::1%x"]},
        {"hosts": [{"name": "a", "addresses": []}]},
        {"hosts": [{"name": "a", "addresses": ["::1"]}, {"name": "A", "addresses": ["::1"]}]},
        {"listen": 0},
        {"listen": 65536},
        {"mtu": 1279},
        {"mac": "52:54:00:12:34"},
        {"dns": "192.0.2.1"},
    ],
)
def test_another_form_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(FormatError):
        network(**changes)


@given(st.binary(max_size=200))
def test_nothing_but_a_format_error_is_raised(raw: bytes) -> None:
    with pytest.raises(FormatError):
        GuestNetwork.parse(raw)


@given(text=st.text(max_size=40), zone=st.booleans())
def test_an_address_brings_no_text_of_its_own(text: str, zone: bool) -> None:
    """What a host writes into the rules is hex digits, dots and colons."""
    address = f"2001:db8::1%{text}" if zone else text
    try:
        found = network(hosts=[{"name": "broker.example", "addresses": [address]}])
    except FormatError:
        return
    assert set(found.hosts[0].addresses[0]) <= set("0123456789abcdef.:")


def test_names_are_resolved_by_the_list_alone() -> None:
    assert [str(one) for one in network().resolve("broker.EXAMPLE")] == ["192.0.2.7", "2001:db8::7"]
    assert [str(one) for one in network().resolve("[2001:db8::1]")] == ["2001:db8::1"]
    with pytest.raises(UnavailableError) as caught:
        network().resolve("other.example")
    assert (caught.value.code, caught.value.stage) == ("host-not-mapped", "network")
    assert "192.0.2.7 Broker.example\n2001:db8::7 Broker.example\n" in network().hosts_file()


def test_only_what_the_config_names_may_be_reached() -> None:
    rules = firewall.ruleset(CONFIG, network())
    allowed = [line.strip() for line in rules.splitlines() if "daddr" in line]
    assert allowed == [
        "ip6 daddr 2001:db8::1 tcp dport 443 ct state new accept",
        "ip daddr 203.0.113.9 tcp dport 8080 ct state new accept",
        "ip daddr 192.0.2.7 tcp dport 443 ct state new accept",
        "ip6 daddr 2001:db8::7 tcp dport 443 ct state new accept",
    ]
    assert rules.count("policy drop") == 3
    assert "tcp dport 8443 ct state new accept" in rules
    assert "udp" not in rules
    with pytest.raises(UnavailableError):
        firewall.ruleset(CONFIG, network(hosts=[]))


@pytest.mark.skipif(shutil.which("nft") is None, reason="nft is not installed: apt-get install nftables")
def test_nft_takes_the_rules() -> None:
    rules = firewall.ruleset(CONFIG, network())
    command = [shutil.which("unshare") or "unshare", "-n", shutil.which("nft") or "nft", "-c", "-f", "-"]
    done = subprocess.run(command, input=rules.encode(), capture_output=True, check=False)
    error = done.stderr.decode()
    if (
        "Operation not permitted" in error
        or "cache initialization failed" in error
        or "Unable to init" in error
    ):
        pytest.skip("this kernel has no nf_tables, or lets us have none")
    assert (done.returncode, error) == (0, "")


def test_rules_that_are_refused_stop_the_start(tmp_path: Path) -> None:
    nft = tmp_path / "nft"
    nft.write_text("#!/bin/sh\ncat > /dev/null\necho 'syntax error, line 1' >&2\nexit 1\n")
    nft.chmod(0o755)
    with pytest.raises(UnavailableError, match="syntax error") as caught:
        firewall.load("table", nft=str(nft))
    assert (caught.value.code, caught.value.stage) == ("firewall-refused", "firewall")


def test_netlink_requests_are_in_the_kernels_form() -> None:
    """rtnetlink(7): lengths, and the attributes of each request."""
    found = []
    for raw in requests(
        network(addresses=["10.0.2.15/24", "2001:db8::5/64"], gateways=["10.0.2.2", "fe80::1"]), 2, 1
    ):
        length, kind, flags, _, _ = struct.unpack_from("=IHHII", raw)
        assert length == len(raw)
        assert flags & 5 == 5
        head = {16: 16, 20: 8, 24: 12}[kind]
        found.append((kind, raw[16 : 16 + head], dict(attributes(raw[16 + head :]))))
    assert [kind for kind, _, _ in found] == [16, 16, 20, 20, 24, 24, 24]
    assert found[1][2] == {4: struct.pack("=I", 1500)}
    assert found[2][1] == bytes([socket.AF_INET, 24, 0, 0]) + struct.pack("=I", 2)
    assert found[2][2] == {1: bytes([10, 0, 2, 15]), 2: bytes([10, 0, 2, 15])}
    assert found[3][2][8] == struct.pack("=I", 2)  # IFA_F_NODAD
    assert found[4][2] == {5: bytes([10, 0, 2, 2]), 4: struct.pack("=I", 2)}
    assert found[5][1][1] == 128  # the gateway is on no network of ours: a route to it first
    assert found[6][1][1] == 0


def attributes(raw: bytes) -> list[tuple[int, bytes]]:
    found = []
    while raw:
        length, kind = struct.unpack_from("=HH", raw)
        found.append((kind, raw[4:length]))
        raw = raw[-(-length // 4) * 4 :]
    return found


def test_the_kernel_takes_the_requests() -> None:
    """In a network namespace of its own: the addresses and routes are there afterwards."""
    code = (
        "import socket,struct;from sealwright.image.guest import network as n;"
        "s=socket.socket(socket.AF_NETLINK,socket.SOCK_RAW,0);s.bind((0,0));"
        "net=n.GuestNetwork(addresses=['10.9.8.7/24'],gateways=['10.9.8.1'],hosts=[],listen=1,mtu=1400,mac='');"
        "[n._send(s,r) for r in n.requests(net,1,1)];"
        "print(open('/proc/net/route').read(),open('/proc/net/fib_trie').read())"
    )
    command = ["unshare", "-n", sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if "unshare failed" in done.stderr:
        pytest.skip("no network namespace may be made here")
    assert done.returncode == 0, done.stderr
    assert "0108090A" in done.stdout
    assert "10.9.8.7" in done.stdout


def interface(folder: Path, name: str, mac: str, *, device: bool = True) -> None:
    (folder / name).mkdir()
    (folder / name / "address").write_text(mac + "\n")
    if device:
        (folder / name / "device").mkdir()


def test_the_one_interface_is_found(tmp_path: Path) -> None:
    interface(tmp_path, "lo", "00:00:00:00:00:00", device=False)
    with pytest.raises(UnavailableError) as caught:
        find_interface("", sys_net=tmp_path, wait_s=0)
    assert (caught.value.code, caught.value.stage) == ("no-interface", "network")
    interface(tmp_path, "eth0", "52:54:00:12:34:56")
    assert find_interface("", sys_net=tmp_path, wait_s=0) == "eth0"
    interface(tmp_path, "eth1", "52:54:00:12:34:57")
    assert find_interface("52:54:00:12:34:57", sys_net=tmp_path, wait_s=0) == "eth1"
    for mac in ("", "52:54:00:12:34:58"):
        with pytest.raises(UnavailableError):
            find_interface(mac, sys_net=tmp_path, wait_s=0)
