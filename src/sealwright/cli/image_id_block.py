"""`sealwright image id-block`: the owner's signature over an SNP guest's measurement and policy."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Annotated

import typer
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from sealwright.cli._files import hex_option
from sealwright.cli._group import FILE, Json
from sealwright.cli._keys import read_secret
from sealwright.cli._output import emit
from sealwright.errors import SettingsError
from sealwright.image.idblock import IdBlock, key_digest, sign_id_block

_DEFAULT_POLICY = 0x30000  # SMT allowed, and the bit that is always set


def id_block(
    measurement: Annotated[str, typer.Option(metavar="HEX", help="From `image predict`.")],
    id_key: Annotated[Path, typer.Option(help="P-384 private key, PEM, mode 0600.", **FILE)],
    author_key: Annotated[
        Path | None, typer.Option(help="That certifies the ID key; P-384, PEM.", **FILE)
    ] = None,
    policy: Annotated[str, typer.Option(metavar="HEX", help="Guest policy.")] = f"{_DEFAULT_POLICY:016x}",
    family_id: Annotated[str, typer.Option(metavar="HEX", help="16 bytes.")] = "00" * 16,
    image_id: Annotated[str, typer.Option(metavar="HEX", help="16 bytes.")] = "00" * 16,
    svn: Annotated[int, typer.Option(min=0, max=(1 << 32) - 1, help="Counts security fixes.")] = 0,
    as_json: Json = False,
) -> None:
    """Sign an ID block, and print it as QEMU takes it, with the key digests that reports will have."""
    block = IdBlock(
        measurement=hex_option(measurement, 48, "--measurement") or b"",
        policy=int.from_bytes(hex_option(policy, 8, "--policy") or b"", "big"),
        family_id=hex_option(family_id, 16, "--family-id") or b"",
        image_id=hex_option(image_id, 16, "--image-id") or b"",
        guest_svn=svn,
    )
    signer = _key(id_key)
    author = None if author_key is None else _key(author_key)
    result: dict[str, object] = {
        "id_block": base64.b64encode(block.encode()).decode(),
        "id_auth": base64.b64encode(sign_id_block(block, signer, author)).decode(),
        "id_key_digest": key_digest(signer.public_key()).hex(),
        "author_key_digest": None if author is None else key_digest(author.public_key()).hex(),
    }
    emit(result, as_json=as_json, lines=[f"{name}  {value}" for name, value in result.items() if value])


def _key(path: Path) -> ec.EllipticCurvePrivateKey:
    """Return the P-384 key in a file that others cannot read. Raises SettingsError `malformed-id-key`."""
    try:
        key = load_pem_private_key(read_secret(path), password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        key = None
    if not isinstance(key, ec.EllipticCurvePrivateKey) or not isinstance(key.curve, ec.SECP384R1):
        raise SettingsError(f"{path.name} is no P-384 private key in PEM", code="malformed-id-key")
    return key
