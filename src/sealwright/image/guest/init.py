"""Process 1 of the verified root: close the kernel, make the network, start the enclave, and end with it.

Spec: docs/spec/guest.md, stages `handover` to `enclave`. Every failure ends the machine.
"""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import NoReturn

from sealwright.errors import SettingsError, UnavailableError
from sealwright.image.guest import firewall, harden, linux, power, service
from sealwright.image.guest.configdisk import CERTIFICATES, NETWORK, PAYLOAD
from sealwright.image.guest.ending import last_words, say, step
from sealwright.image.guest.handover import Handover, take
from sealwright.image.guest.network import MAX_NETWORK, GuestNetwork, configure
from sealwright.protocol.enclave_config import MAX_CONFIG, EnclaveConfig

HOSTS = Path("/run/hosts")
_GRACE_S = 30  # for the enclave to end after SIGTERM


def main() -> NoReturn:
    """Run all steps, then be the parent of everything; does not return."""
    try:
        found, network = _prepare()
        code = _supervise(_fork_service(found, network))
        say(f"enclave: ended with exit code {code}")
    except BaseException as exc:  # noqa: BLE001 - whatever it is, this machine ends
        say(last_words(exc))
    linux.power_off()
    raise SystemExit(1)


def _prepare() -> tuple[Handover, GuestNetwork]:
    with step("handover"):
        found = take()
    with step("memory"):
        harden.refuse_swap()
        harden.mount_scratch()
    with step("entropy"):
        harden.wait_for_entropy()
    with step("config"):
        EnclaveConfig.parse(found.config, limit=MAX_CONFIG, error=SettingsError)
    with step("network"):
        raw = service.host_file(found, NETWORK)
        network = GuestNetwork.parse(raw, limit=MAX_NETWORK, error=SettingsError)
        HOSTS.write_text(network.hosts_file(), encoding="ascii")
        linux.mount(str(HOSTS), "/etc/hosts", "", linux.MS_BIND)
    with step("firewall"):
        firewall.load(firewall.ruleset(found.config, network))
    with step("network"):
        say(f"network: {configure(network)} has {' '.join(network.addresses)}")
    with step("kernel"):
        harden.close_kernel()
    return found, network


def _fork_service(found: Handover, network: GuestNetwork) -> int:
    """Fork the process that starts the enclave, which keeps root for that; this one gives all of it up."""
    pid = os.fork()
    if pid == 0:
        code = 70
        try:
            code = _service(found, network)
        except BaseException as exc:  # noqa: BLE001 - said on the console, and process 1 ends the machine
            say(last_words(exc))
        finally:
            os._exit(code)
    with step("kernel"):
        linux.no_new_privileges()
        _fork_button_watcher()
        linux.keep_capabilities(frozenset({harden.CAP_KILL, harden.CAP_SYS_BOOT}))
    return pid


def _fork_button_watcher() -> None:
    """Fork a process that hands the power button on to this one as SIGTERM."""
    devices = power.buttons()
    if devices and os.fork() == 0:
        try:
            linux.keep_capabilities(frozenset())
            power.watch(devices, lambda: os.kill(1, signal.SIGTERM))
        finally:
            os._exit(0)


def _service(found: Handover, network: GuestNetwork) -> int:
    with step("host-files"):
        payload, certificates = service.host_file(found, PAYLOAD), service.host_file(found, CERTIFICATES)
        fds = service.open_artefacts(found)
    with step("enclave"):
        listen = service.listener(network)
        running = service.start(found, payload, service.attester_spec(found, certificates), fds, listen)
        listen.close()  # the workload has its own copy: ours would keep the port open after its end
        for fd in fds.values():
            os.close(fd)
        say(f"enclave: started as process {running.pid}")
        return service.serve(running)


def _supervise(pid: int) -> int:
    """Reap whatever ends, hand SIGTERM on, and return the exit code of `pid` once it has ended."""

    def hand_on(_number: int, _frame: object) -> None:
        os.kill(pid, signal.SIGTERM)
        signal.alarm(_GRACE_S)

    def give_up(_number: int, _frame: object) -> None:
        raise UnavailableError("the enclave does not end", code="workload-ended", stage="enclave")

    signal.signal(signal.SIGTERM, hand_on)
    signal.signal(signal.SIGALRM, give_up)
    while True:
        ended, status = os.wait()
        if ended == pid:
            return os.waitstatus_to_exitcode(status)


if __name__ == "__main__":
    main()
