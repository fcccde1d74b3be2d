"""What the image of an enclave holds besides the interpreter, its library and package `sealwright`.

All of it is measured into register 0, so each line here is code that key owners and clients must trust.
"""

from __future__ import annotations

# Requirement texts, as `sealwright.attester.quoter.image.measure` takes them.
DISTRIBUTIONS = (
    "blake3",
    "cryptography",
    "httptools",
    "pydantic",
    "rfc8785",
    "uvicorn",
    "uvloop",
    "xllamacpp",
)
ENTRY = "sealwright.inference.main:main"
