"""The packages of images: resolve them anew, or fetch exactly those of the lock.

    python scripts/oci_lock.py make FOLDER     newest of Debian 13, wheels of requirements/; writes deploy/oci/lock.json
    python scripts/oci_lock.py fetch FOLDER    the files that deploy/oci/lock.json names, checked
    python scripts/oci_lock.py fetch FOLDER --or-newest
                                               where mirrors have dropped one: the newest, with a lock in FOLDER

Debian's come through apt with a state of its own (it checks Debian's signatures), wheels through pip by hash.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
import tempfile
import zipfile
from datetime import UTC, datetime
from email.parser import HeaderParser
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name, parse_wheel_filename

ROOT = Path(__file__).resolve().parent.parent
LOCK = ROOT / "deploy" / "oci" / "lock.json"
SUITES = ("trixie", "trixie-updates")
EVERY = ["broker", "client", "enclave", "guest"]
# What Python 3.13 loads, and for the enclave its engine; a guest's kernel, stub and packet filter; what a guest image is
# built with. Nothing is resolved: an image holds what stands here.
DEBIAN = {
    "ca-certificates": ["broker", "client"],
    "libbz2-1.0": [*EVERY, "tools"],
    "libc6": [*EVERY, "initrd", "tools"],
    "libedit2": ["guest"],
    "libbsd0": ["guest"],
    "libexpat1": [*EVERY, "initrd", "tools"],
    "libffi8": [*EVERY, "initrd"],
    "libgcc-s1": [*EVERY, "initrd", "tools"],
    "libgmp10": ["guest"],
    "libgomp1": ["enclave", "guest"],
    "libjansson4": ["guest"],
    "liblz4-1": ["tools"],
    "liblzma5": [*EVERY, "tools"],
    "liblzo2-2": ["tools"],
    "libmd0": ["guest"],
    "libmnl0": ["guest"],
    "libnftables1": ["guest"],
    "libnftnl11": ["guest"],
    "libpython3.13-minimal": [*EVERY, "initrd", "tools"],
    "libpython3.13-stdlib": [*EVERY, "initrd", "tools"],
    "libsqlite3-0": EVERY,
    "libssl3t64": [*EVERY, "tools"],
    "libstdc++6": ["enclave", "guest", "tools"],
    "libtinfo6": ["guest"],
    "libuuid1": EVERY,
    "libxtables12": ["guest"],
    "libzstd1": [*EVERY, "initrd", "tools"],
    "nftables": ["guest"],
    "python3.13-minimal": [*EVERY, "initrd", "tools"],
    "squashfs-tools": ["tools"],
    "systemd-boot-efi": ["stub"],
    "zlib1g": [*EVERY, "initrd", "tools"],
    "zstd": ["tools"],
}
KERNEL = "linux-image-cloud-amd64"  # depends on the newest kernel that is signed: the package that goes in
EXTRAS = {"broker": "broker", "client": "", "enclave": "enclave", "guest": "enclave"}
ENVIRONMENT = {
    "implementation_name": "cpython",
    "os_name": "posix",
    "platform_machine": "x86_64",
    "platform_python_implementation": "CPython",
    "platform_system": "Linux",
    "python_full_version": "3.13.5",
    "python_version": "3.13",
    "sys_platform": "linux",
}
PLATFORMS = [f"manylinux_2_{minor}_x86_64" for minor in (28, 27, 26, 24, 17, 12, 5)]
PLATFORMS += ["manylinux2014_x86_64", "manylinux2010_x86_64", "manylinux1_x86_64", "any"]


def main() -> int:
    """Run as the module's docstring says."""
    action, folder = sys.argv[1], Path(sys.argv[2]).resolve()
    folder.mkdir(parents=True, exist_ok=True)
    if action == "make":
        make(folder)
    elif action == "fetch":
        fetch(folder, newest="--or-newest" in sys.argv)
    else:
        print(__doc__, file=sys.stderr)
        return 2
    return 0


def make(folder: Path, written: Path = LOCK) -> None:
    """Fetch the newest packages into `folder`, an empty one, and write the lock."""
    apt(folder, [*DEBIAN, KERNEL])
    pip(folder)
    debian = [deb(path) for path in folder.glob("*.deb")]
    wheels = list(wheel_entries(folder))
    lock = {
        "format": "sealwright-oci-lock/v1",
        "at": datetime.now(UTC).replace(hour=0, minute=0, second=0).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "architecture": "amd64",
        "debian": sorted(debian, key=lambda one: str(one["name"])),
        "wheels": sorted(wheels, key=lambda one: str(one["name"])),
    }
    written.write_text(json.dumps(lock, indent=1) + "\n")


def fetch(folder: Path, *, newest: bool = False) -> None:
    """Bring what the lock names into `folder`; a file that is there and right is left alone.

    Args:
        newest: where a mirror has dropped a version, take the newest of all, and write their lock into `folder`.

    Raises:
        SystemExit: a file cannot be had, or is another one.
    """
    lock = json.loads(LOCK.read_text())
    missing = [one for one in lock["debian"] if not right(folder, one)]
    (folder / "lock.json").unlink(missing_ok=True)
    if missing:
        try:
            apt(folder, [f"{one['name']}={one['version']}" for one in missing])
        except subprocess.CalledProcessError:
            if not newest:
                sys.exit("mirrors have dropped what the lock names; resolve anew with `make`")
            print("mirrors have dropped what the lock names: taking the newest", file=sys.stderr)
            shutil.rmtree(folder)
            folder.mkdir()
            make(folder, folder / "lock.json")
            return
    if not all(right(folder, one) for one in lock["wheels"]):
        pip(folder)
    wrong = [one["file"] for one in [*lock["debian"], *lock["wheels"]] if not right(folder, one)]
    if wrong:
        sys.exit(f"not to be had as the lock names them: {', '.join(wrong)}; resolve anew with `make`")


def right(folder: Path, entry: dict[str, Any]) -> bool:
    """Say whether the file of an entry is there and has its digest."""
    path = folder / entry["file"]
    return path.exists() and hashlib.sha256(path.read_bytes()).hexdigest() == str(entry["sha256"])


def apt(folder: Path, packages: list[str]) -> None:
    """Download Debian packages with a state, sources and cache that are not this machine's."""
    with tempfile.TemporaryDirectory() as name:
        state = Path(name)
        for part in ("state/lists/partial", "cache/archives/partial"):
            (state / part).mkdir(parents=True)
        signed = "[signed-by=/usr/share/keyrings/debian-archive-keyring.gpg]"
        lines = [f"deb {signed} http://deb.debian.org/debian {suite} main" for suite in SUITES]
        lines.append(f"deb {signed} http://deb.debian.org/debian-security trixie-security main")
        (state / "sources.list").write_text("\n".join(lines) + "\n")
        options = {
            "Dir::State": f"{state}/state",
            "Dir::Cache": f"{state}/cache",
            "Dir::Etc::sourcelist": f"{state}/sources.list",
            "Dir::Etc::sourceparts": "/dev/null",
            "Dir::State::status": "/dev/null",
            "APT::Architecture": "amd64",
            "APT::Sandbox::User": "root",
        }
        command = ["apt-get", "-qq", *(word for item in options.items() for word in ("-o", "=".join(item)))]
        subprocess.run([*command, "update"], check=True, stdout=sys.stderr)
        if KERNEL in packages:
            packages = [*(one for one in packages if one != KERNEL), newest_kernel(command)]
        subprocess.run([*command, "download", *packages], cwd=folder, check=True, stdout=sys.stderr)
    for path in folder.glob("*%3a*.deb"):  # an epoch's colon
        path.replace(path.with_name(unquote(path.name).replace(":", "~~")))


def newest_kernel(apt_get: list[str]) -> str:
    """Return the package that the kernel's newest version is in."""
    command = ["apt-cache", *apt_get[1:], "depends", "--important", KERNEL]
    shown = subprocess.run(
        [one for one in command if one != "-qq"], capture_output=True, text=True, check=True
    )
    return next(line.split()[-1] for line in shown.stdout.splitlines() if "Depends: linux-image-" in line)


def pip(folder: Path) -> None:
    """Download the wheels that requirements/ names for Python 3.13 on Linux, by hash."""
    command = [sys.executable, "-m", "pip", "download", "-qq", "--no-deps", "--require-hashes"]
    command += ["--only-binary", ":all:", "--python-version", "3.13", "--implementation", "cp"]
    for option, values in {"--abi": ["cp313", "abi3", "none"], "--platform": PLATFORMS}.items():
        command += [word for value in values for word in (option, value)]
    subprocess.run(
        [*command, "--dest", str(folder), "-r", str(ROOT / "requirements" / "demo.txt")],
        check=True,
        stdout=sys.stderr,
    )


def deb(path: Path) -> dict[str, object]:
    """Return the lock's entry of a Debian package."""
    fields = ["Package", "Version"]
    shown = subprocess.run(
        ["dpkg-deb", "--showformat=${Package} ${Version}", "--show", str(path)],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split()
    said = dict(zip(fields, shown, strict=True))
    parts = DEBIAN.get(said["Package"], ["kernel"])
    return entry(path, said["Package"], said["Version"], parts)


def wheel_entries(folder: Path) -> list[dict[str, object]]:
    """Return the lock's entries of the wheels that an image needs."""
    wheels: dict[str, tuple[Path, str]] = {}
    for path in folder.glob("*.whl"):
        parsed = parse_wheel_filename(path.name)
        wheels[str(parsed[0])] = (path, str(parsed[1]))
    needed = {image: closure(extra, wheels) for image, extra in EXTRAS.items()}
    found = []
    for name, (path, version) in wheels.items():
        images = sorted(image for image, names in needed.items() if name in names)
        if images:
            found.append(entry(path, name, version, images))
    return found


def closure(extra: str, wheels: dict[str, tuple[Path, str]]) -> set[str]:
    """Return the names of all wheels that the project with one extra requires."""
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    waiting = [*project["dependencies"], *(project["optional-dependencies"][extra] if extra else [])]
    found: set[str] = set()
    seen: set[str] = set()
    while waiting:
        text = waiting.pop()
        if text in seen:
            continue
        seen.add(text)
        wanted = Requirement(text)
        name = canonicalize_name(wanted.name)
        found.add(name)
        for line in requires(wheels[name][0]):
            asked = Requirement(line)
            extras = ["", *wanted.extras]
            if asked.marker is None or any(
                asked.marker.evaluate({**ENVIRONMENT, "extra": one}) for one in extras
            ):
                asked.marker = None
                waiting.append(str(asked))
    return found


def requires(wheel: Path) -> list[str]:
    """Return the Requires-Dist lines of a wheel."""
    with zipfile.ZipFile(wheel) as archive:
        name = next(one for one in archive.namelist() if one.endswith(".dist-info/METADATA"))
        return HeaderParser().parsestr(archive.read(name).decode()).get_all("Requires-Dist") or []


def entry(path: Path, name: str, version: str, images: list[str]) -> dict[str, object]:
    """Return an entry of the lock."""
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    return {"file": path.name, "name": name, "version": version, "sha256": sha256, "images": images}


if __name__ == "__main__":
    sys.exit(main())
