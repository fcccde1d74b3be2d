"""What the image of an agent holds besides the interpreter, its library and package `sealwright`.

All of it is measured into register 0, so each line here is code that data owners must trust.
"""

from __future__ import annotations

# Requirement texts, as `sealwright.attester.quoter.image.measure` takes them.
DISTRIBUTIONS = ("blake3", "cryptography", "joserfc", "numpy", "pydantic", "pyyaml", "rfc8785")
