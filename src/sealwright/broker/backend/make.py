"""From settings to backends. Libraries of extras are imported for the backends that are there."""

from __future__ import annotations

from sealwright.broker.backend.base import KeyBackend
from sealwright.broker.backend.settings import (
    AwsSettings,
    AzureSettings,
    GoogleSettings,
    Pkcs11Settings,
    Settings,
    TransitSettings,
)


def make_backend(name: str, settings: Settings) -> KeyBackend:
    """Return the backend that `settings` describe; nothing is opened or asked yet.

    Raises:
        UnavailableError: `backend-extra-missing`. SettingsError: credentials or addresses that cannot be.
    """
    match settings:
        case Pkcs11Settings():
            from sealwright.broker.backend.pkcs11 import Pkcs11Backend

            return Pkcs11Backend(name, settings)
        case TransitSettings():
            from sealwright.broker.backend.transit import TransitBackend

            return TransitBackend(name, settings)
        case AwsSettings():
            from sealwright.broker.backend.aws import AwsBackend

            return AwsBackend(name, settings)
        case AzureSettings():
            from sealwright.broker.backend.azure import AzureBackend

            return AzureBackend(name, settings)
        case GoogleSettings():
            from sealwright.broker.backend.google import GoogleBackend

            return GoogleBackend(name, settings)
