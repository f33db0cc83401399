"""Certificates and keys for a federation on one machine: made for the occasion, and worth nothing elsewhere."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

import trustme
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

VALID = timedelta(days=1)


def certificates(folder: Path, address: str = "127.0.0.1") -> tuple[Path, Path, Path]:
    """ca.crt, server.pem and server.key: an authority, whose key is kept nowhere, and a server that it vouches for."""
    authority = trustme.CA(path_length=0)
    server = authority.issue_cert("localhost", address, not_after=datetime.now(UTC) + VALID)
    return (
        _written(folder / "ca.crt", authority.cert_pem.bytes()),
        _written(folder / "server.pem", server.cert_chain_pems[0].bytes()),
        _written(folder / "server.key", server.private_key_pem.bytes()),
    )


def node_key(path: Path) -> tuple[Path, Path]:
    """A node's private key, and the public one to register, as ssh-keygen -t ecdsa -b 384 writes them."""
    key = ec.generate_private_key(ec.SECP384R1())
    private = key.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption())
    public = key.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH)
    return _written(path, private), _written(path.with_name(f"{path.name}.pub"), public)


def _written(path: Path, content: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch(mode=0o600)
    path.write_bytes(content)
    return path
