"""Machines laid out as folders of pseudo-files, for what detection concludes of them."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path

from sealwright.attester.machine import Machine
from sealwright.testing.software import FakePlatformWarning

_DMI = "sys/class/dmi/id/"
AZURE = {
    f"{_DMI}sys_vendor": "Microsoft Corporation",
    f"{_DMI}product_name": "Virtual Machine",
    f"{_DMI}chassis_asset_tag": "7783-7084-3265-9085-8269-3286-77",
}
GCP = {f"{_DMI}sys_vendor": "Google", f"{_DMI}product_name": "Google Compute Engine"}
EC2 = {f"{_DMI}sys_vendor": "Amazon EC2", f"{_DMI}product_name": "m6a.large"}
QEMU = {f"{_DMI}sys_vendor": "QEMU", f"{_DMI}product_name": "Standard PC (Q35 + ICH9, 2009)"}
LAPTOP = {f"{_DMI}sys_vendor": "LENOVO", f"{_DMI}product_name": "21CB"}
TPM = {"dev/tpmrm0": "", "dev/tpm0": "", "sys/class/tpm/tpm0/tpm_version_major": "2"}
TSM = {"sys/kernel/config/tsm/report/": ""}
GPU = {
    "sys/bus/pci/devices/0000:01:00.0/vendor": "0x10de",
    "sys/bus/pci/devices/0000:01:00.0/class": "0x030200",
    "sys/bus/pci/devices/0000:00:02.0/vendor": "0x8086",
    "sys/bus/pci/devices/0000:00:02.0/class": "0x030000",
    "sys/bus/pci/devices/0000:02:00.0/vendor": "0x10de",
    "sys/bus/pci/devices/0000:02:00.0/class": "0x068000",  # an NVSwitch is a bridge
}

MACHINES: Mapping[str, Mapping[str, str]] = {
    "azure snp": {"flags": "hypervisor sev_snp", **AZURE, **TPM},
    "azure vm": {"flags": "hypervisor", **AZURE, **TPM},
    "gcp tdx": {"flags": "hypervisor tdx_guest", "dev/tdx_guest": "", **GCP, **TSM, **TPM},
    "gcp snp": {"flags": "hypervisor sev_snp", "dev/sev-guest": "", **GCP, **TSM, **TPM},
    "ec2 snp": {
        "flags": "hypervisor sev_snp",
        "dev/sev-guest": "",
        "sys/devices/system/cpu/sev/vmpl": "0",
        **EC2,
        **TSM,
    },
    "qemu snp": {"flags": "hypervisor sev_snp", "dev/sev-guest": "", **QEMU, **TSM},
    "snp host": {"flags": "sev sev_es sev_snp", **LAPTOP},
    "nitro enclave": {"flags": "hypervisor", "dev/nsm": ""},
    "ec2 with nitro tpm": {"flags": "hypervisor", **EC2, **TPM},
    "gramine": {"dev/attestation/attestation_type": "dcap", "flags": ""},
    "sgx host": {"flags": "sgx", "dev/sgx_enclave": "", **LAPTOP},
    "plain vm": {"flags": "hypervisor", **QEMU},
    "laptop": {"flags": "sgx_lc", **LAPTOP, **TPM},
    "gpu box": {"flags": "", **LAPTOP, **GPU},
}


def lay_out(
    root: Path, files: Mapping[str, str], *, kernel: str = "6.16.0", closed: Iterable[str] = ()
) -> Machine:
    """Return the machine of `files` below `root`.

    Args:
        files: path → text; a path that ends in a slash is a folder; `flags` are the CPU's.
        closed: paths that this user may not use.
    """
    warnings.warn("lay_out makes a machine that is none", FakePlatformWarning, stacklevel=2)
    laid = {**files, "proc/sys/kernel/osrelease": kernel}
    laid["proc/cpuinfo"] = (
        f"processor\t: 0\nflags\t\t: fpu {laid.pop('flags', '')}\nbugs\t\t:\n\nprocessor\t: 1\n"
    )
    for name, text in laid.items():
        path = root / name
        (path if name.endswith("/") else path.parent).mkdir(parents=True, exist_ok=True)
        if not name.endswith("/"):
            path.write_text(text + "\n" if text else "")
    shut = {root / path for path in closed}
    return Machine(root, may=lambda path: path.exists() and path not in shut)
