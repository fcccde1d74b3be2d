"""What is particular to PKCS#11, on a real SoftHSM: logins, lost sessions, keys that must not be, and the command line."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from tests.backends.stands import PIN, SOFTHSM, SoftHsm, pkcs11_settings, settings_file, softhsm
from tests.backends.test_contract import CONTEXT
from tests.broker.test_serve import served

from sealwright.broker.files import write_file
from sealwright.cli import main
from sealwright.errors import SealwrightError


@pytest.fixture
def hsm() -> SoftHsm:
    return softhsm()


@contextmanager
def refused(code: str) -> Iterator[None]:
    with pytest.raises(SealwrightError) as caught:
        yield
    assert caught.value.code == code


@contextmanager
def opened(folder: Path, label: str, **more: Any) -> Iterator[Any]:
    from sealwright.broker.backend.pkcs11 import Pkcs11Backend

    backend = Pkcs11Backend("hsm", pkcs11_settings(folder, label, **more))
    try:
        yield backend
    finally:
        backend.close()


def test_the_root_key_cannot_be_read(hsm: SoftHsm, tmp_path: Path) -> None:
    import pkcs11

    with opened(tmp_path, hsm.token()) as backend:
        backend.rotate()
        with backend._login.session() as session:
            key = backend._key(session, 1)
            with pytest.raises(pkcs11.AttributeSensitive):
                key[pkcs11.Attribute.VALUE]


# python-pkcs11's iterator complains when it is collected after its session was lost.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_session_that_was_lost_is_opened_again(hsm: SoftHsm, tmp_path: Path) -> None:
    with opened(tmp_path, hsm.token()) as backend:
        backend.rotate()
        wrapped = backend.create(CONTEXT)
        backend._login._session.close()  # behind its back: the handle is stale, the login gone
        assert len(backend.unwrap(wrapped, CONTEXT)) == 32


def test_a_wrong_pin_is_denied_and_another_is_read_again(hsm: SoftHsm, tmp_path: Path) -> None:
    label = hsm.token()
    with opened(tmp_path, label) as backend:
        write_file(tmp_path / f"pin-{label}", b"999999")
        with refused("backend-denied"):
            backend.rotate()
        write_file(tmp_path / f"pin-{label}", PIN.encode())
        assert backend.rotate() == "1"


def test_a_pin_that_others_can_read_is_refused(hsm: SoftHsm, tmp_path: Path) -> None:
    label = hsm.token()
    with opened(tmp_path, label) as backend:
        (tmp_path / f"pin-{label}").chmod(0o644)
        with refused("broker-files-exposed"):
            backend.current()


def test_a_missing_token_or_key(hsm: SoftHsm, tmp_path: Path) -> None:
    with opened(tmp_path, "no-such-token") as backend, refused("backend-unavailable"):
        backend.current()
    with opened(tmp_path, hsm.token()) as backend:
        for work in (backend.current, lambda: backend.create(CONTEXT)):
            with refused("backend-key-missing"):
                work()


@pytest.mark.parametrize("attribute", ["EXTRACTABLE", "MODIFIABLE"])
def test_a_key_that_could_leave_or_be_changed_is_refused(
    hsm: SoftHsm, tmp_path: Path, attribute: str
) -> None:
    import pkcs11

    from sealwright.broker.backend.pkcs11 import _TEMPLATE

    with opened(tmp_path, hsm.token()) as backend:
        with backend._login.session() as session:
            template = _TEMPLATE | {getattr(pkcs11.Attribute, attribute): True}
            session.generate_key(pkcs11.KeyType.AES, 256, label="kek-v1", store=True, template=template)
        with refused("backend-key-unfit"):
            backend.current()


def test_two_keys_of_one_label_are_refused(hsm: SoftHsm, tmp_path: Path) -> None:
    import pkcs11

    from sealwright.broker.backend.pkcs11 import _TEMPLATE

    with opened(tmp_path, hsm.token()) as backend:
        backend.rotate()
        with backend._login.session() as session:
            session.generate_key(pkcs11.KeyType.AES, 256, label="kek-v1", store=True, template=_TEMPLATE)
        with refused("backend-key-unfit"):
            backend.create(CONTEXT)


def sealwright(*arguments: str) -> dict[str, Any]:
    """Run the command in a process of its own, as an operator does; return its JSON."""
    code = "import sys; from sealwright.cli import main; sys.exit(main())"
    ran = subprocess.run(
        [sys.executable, "-c", code, *arguments, "--json"], capture_output=True, text=True, timeout=60
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert PIN not in ran.stdout + ran.stderr
    return json.loads(ran.stdout)


@pytest.mark.slow  # starts a broker and a dozen commands, about 6 s
def test_the_commands_from_a_new_token_to_moved_keys(hsm: SoftHsm, tmp_path: Path) -> None:
    """broker backend check, create-key, use, move, rotate, list; broker status; doctor."""
    from tests.broker.support import World

    world = World(tmp_path / "broker")
    with world.open() as running:
        world.add_key(running, kid="k1")
        world.add_key(running, kid="k2")
    label = hsm.token()
    pin = tmp_path / "pin"
    write_file(pin, PIN.encode())
    token_settings = {
        "kind": "pkcs11",
        "module": str(SOFTHSM),
        "token": label,
        "key": "kek",
        "pin_file": str(pin),
    }
    settings_file(world.root / "backends.json", {"hsm": token_settings})
    root = str(world.root)
    assert main(["broker", "backend", "check", root]) == 69
    assert sealwright("broker", "backend", "create-key", root, "hsm") == {"backend": "hsm", "version": "1"}
    checked = sealwright("broker", "backend", "check", root)["backends"]
    assert [(one["name"], one["state"], one["version"]) for one in checked] == [
        ("embedded", "ready", "1"),
        ("hsm", "ready", "1"),
    ]
    found = [one for one in sealwright("doctor", "--broker", root)["findings"] if "backend" in one["name"]]
    assert [(one["name"], one["ok"]) for one in found] == [
        ("key backend embedded", True),
        ("key backend hsm", True),
    ]
    with served(world.root) as (process, url):
        assert process.poll() is None, url
        there = ("--broker", url, "--token-file", str(world.root / "admin-token"))
        assert sealwright("broker", "backend", "use", "hsm", *there)["status"] == "active"
        assert sealwright("broker", "backend", "move", *there)["kids"] == ["k1", "k2"]
        assert sealwright("broker", "backend", "rotate", "hsm", *there)["version"] == "2"
        listed = {one["name"]: one for one in sealwright("broker", "backend", "list", *there)["backends"]}
        assert (listed["hsm"]["keys"], listed["hsm"]["keys_on_older_versions"]) == (2, 2)
        assert sealwright("broker", "backend", "move", *there)["left"] == 0
        key = sealwright("broker", "key", "status", "k1", *there)
        assert (key["backend"], key["backend_version"], key["release"], key["root_key_exportable"]) == (
            "hsm",
            "2",
            "in-broker",
            False,
        )
        assert sealwright("broker", "status", *there)["backend"]["kind"] == "pkcs11"
    os.rename(pin, tmp_path / "pin-away")
    found = [
        one for one in sealwright("doctor", "--broker", root)["findings"] if one["name"] == "key backend hsm"
    ]
    assert [(one["ok"], one["value"]) for one in found] == [(False, "broker-file-missing")]
