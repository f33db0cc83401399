"""Certificates and keys for a federation on one machine: made for the occasion, and worth nothing elsewhere."""

import datetime
import ipaddress
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat
from cryptography.x509.oid import NameOID

VALID = datetime.timedelta(days=1)


def certificates(folder: Path, address: str = "127.0.0.1") -> tuple[Path, Path, Path]:
    """ca.crt, server.pem and server.key: an authority, and a server of an address that it vouches for."""
    authority, server = ec.generate_private_key(ec.SECP384R1()), ec.generate_private_key(ec.SECP384R1())
    name, issuer = _named("localhost"), _named("FedReFT loopback authority")
    root = (
        _certificate(issuer, issuer, authority.public_key())
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(authority, hashes.SHA256())
    )
    places = [x509.DNSName("localhost"), x509.IPAddress(ipaddress.ip_address(address))]
    own = (
        _certificate(name, issuer, server.public_key())
        .add_extension(x509.SubjectAlternativeName(places), critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .sign(authority, hashes.SHA256())
    )
    key = server.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    return (
        _written(folder / "ca.crt", root.public_bytes(Encoding.PEM)),
        _written(folder / "server.pem", own.public_bytes(Encoding.PEM)),
        _written(folder / "server.key", key),
    )


def node_key(path: Path) -> tuple[Path, Path]:
    """A node's private key, and the public one to register, as ssh-keygen -t ecdsa -b 384 writes them."""
    key = ec.generate_private_key(ec.SECP384R1())
    private = key.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption())
    public = key.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH)
    return _written(path, private), _written(path.with_name(f"{path.name}.pub"), public)


def _named(name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])


def _certificate(subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey) -> x509.CertificateBuilder:
    now = datetime.datetime.now(datetime.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(minutes=5))
        .not_valid_after(now + VALID)
    )


def _written(path: Path, content: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch(mode=0o600)
    path.write_bytes(content)
    return path
