"""Sealwright: confidential computing for AI as one composable stack."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sealwright.client.httpx_transport import async_http_client, http_client
    from sealwright.client.receipts import receipt_of as receipt

__version__ = "0.1.0"
__all__ = ["__version__", "async_http_client", "http_client", "receipt"]

_LAZY = {
    "async_http_client": ("sealwright.client.httpx_transport", "async_http_client"),
    "http_client": ("sealwright.client.httpx_transport", "http_client"),
    "receipt": ("sealwright.client.receipts", "receipt_of"),
}


def __getattr__(name: str) -> Any:
    """Import what is asked for: `import sealwright` itself stays cheap."""
    if name not in _LAZY:
        raise AttributeError(f"module 'sealwright' has no attribute {name!r}")
    module, attribute = _LAZY[name]
    return getattr(importlib.import_module(module), attribute)


def __dir__() -> list[str]:
    return __all__
