"""Keys and certificates for a federation on one machine: made for one federation, and of no use elsewhere."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

import trustme
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

VALID = timedelta(days=1)  # the server's certificate


def certificates(folder: Path, address: str = "127.0.0.1") -> tuple[Path, Path, Path]:
    """Writes ca.crt, server.pem, server.key: an authority, whose key is not stored, and a server that it has signed."""
    authority = trustme.CA(path_length=0)
    server = authority.issue_cert("localhost", address, not_after=datetime.now(UTC) + VALID)
    return (
        _written(folder / "ca.crt", authority.cert_pem.bytes()),
        _written(folder / "server.pem", server.cert_chain_pems[0].bytes()),
        _written(folder / "server.key", server.private_key_pem.bytes()),
    )


def node_key(path: Path) -> tuple[Path, Path]:
    """Writes a node's private key and its public key, for the superlink, as ssh-keygen -t ecdsa -b 384 does."""
    key = ec.generate_private_key(ec.SECP384R1())
    private = key.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption())
    public = key.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH)
    return _written(path, private), _written(path.with_name(f"{path.name}.pub"), public)


def _written(path: Path, content: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch(mode=0o600)
    path.write_bytes(content)
    return path
