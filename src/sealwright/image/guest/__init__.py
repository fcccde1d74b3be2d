"""What runs inside a guest image: the initrd, and process 1 of the verified root. Spec: docs/spec/guest.md.

The initrd has Python's standard library and nothing else, so what it imports stays within these modules.
"""

from __future__ import annotations

# Files of package `sealwright` that the initrd needs; a test holds them against what its start imports.
INITRD_FILES = (
    "__init__.py",
    "attester/__init__.py",
    "attester/base.py",
    "attester/files.py",
    "attester/nsm.py",
    "attester/tdx.py",
    "attester/tsm.py",
    "crypto/__init__.py",
    "crypto/cbor.py",
    "errors.py",
    "image/__init__.py",
    "image/guest/__init__.py",
    "image/guest/blocks.py",
    "image/guest/configdisk.py",
    "image/guest/devicemapper.py",
    "image/guest/ending.py",
    "image/guest/gpt.py",
    "image/guest/handover.py",
    "image/guest/initrd.py",
    "image/guest/linux.py",
    "image/guest/pcr.py",
    "image/guest/registers.py",
    "image/guest/tdreport.py",
    "image/guest/verity.py",
)
