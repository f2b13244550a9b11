"""Certificates and keys of a deployment, and the line by which a site introduces itself.

A site's line is an OpenSSH public key (P-384, for the connection) whose comment is `NAME:LEDGERKEY`, the site's name
and the Ed25519 key that signs its ledger and its part of secure sums.
"""

import hashlib
import os
import re
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from .errors import ConfigError, DeploymentError
from .whole import whole_file

_COMMENT = re.compile(r"([\w.-]{1,64}):([0-9a-f]{64})")
CA_DAYS, LEAF_DAYS = 3650, 397


@dataclass(frozen=True)
class SiteLine:
    """What the server and other sites know a site by."""

    name: str
    node: str
    """OpenSSH public key without comment"""
    identity: str
    """Ed25519, 64 hexadecimal digits"""

    def __str__(self) -> str:
        return f"{self.node} {self.name}:{self.identity}"


def parse_line(text: str, source: str) -> SiteLine:
    """Raises ConfigError for a line that is not a site's."""
    parts = text.split()
    match = _COMMENT.fullmatch(parts[2]) if len(parts) == 3 else None
    if match is None:
        raise ConfigError(f"{source}: not a site's public line; expected the one line of the site's site.pub")
    node = " ".join(parts[:2])
    try:
        key = serialization.load_ssh_public_key(node.encode())
    except (ValueError, UnsupportedAlgorithm):
        key = None
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP384R1):
        raise ConfigError(f"{source}: its key is not P-384; expected the one line of the site's site.pub")
    return SiteLine(match[1], node, match[2])


def fingerprint(keys: dict[str, str]) -> str:
    """Of a list of sites (name → identity): what operators compare by telephone."""
    digest = hashlib.sha256("".join(f"{name}:{keys[name]}\n" for name in sorted(keys)).encode()).hexdigest()[:32]
    return " ".join(digest[i : i + 4] for i in range(0, 32, 4))


def new_node_key(path: Path) -> str:
    """Writes a P-384 key, mode 0600; returns the public part in OpenSSH form."""
    key = ec.generate_private_key(ec.SECP384R1())
    write_secret(
        path,
        key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.OpenSSH, serialization.NoEncryption()
        ),
    )
    public = key.public_key().public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH)
    return public.decode()


def write_secret(path: Path, content: bytes) -> None:
    """Mode 0600 from its first byte on. Raises DeploymentError when the file exists."""
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        raise DeploymentError(f"{path}: is there already; a key is not replaced") from None
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def make_ca(folder: Path) -> None:
    """ca.key and ca.crt."""
    key = ec.generate_private_key(ec.SECP384R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "confide federation CA")])
    usage = _usage(signs=True)
    builder = (
        _certificate(name, name, key.public_key(), CA_DAYS)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(usage, critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    )
    write_secret(folder / "ca.key", _pem(key))
    (folder / "ca.crt").write_bytes(builder.sign(key, hashes.SHA384()).public_bytes(serialization.Encoding.PEM))


def issue(folder: Path, kind: str, names: list[str], days: float = LEAF_DAYS) -> None:
    """KIND.key and KIND.crt, signed by the folder's CA. kind: 'server' or 'operator'; only one may speak for a host.

    names: DNS names and IP addresses. Raises DeploymentError when the CA cannot be read.
    """
    try:
        ca = x509.load_pem_x509_certificate((folder / "ca.crt").read_bytes())
        signer = serialization.load_pem_private_key((folder / "ca.key").read_bytes(), None)
    except (OSError, ValueError):
        raise DeploymentError(f"{folder}: ca.crt and ca.key cannot be read; run confide server init") from None
    if not isinstance(signer, ec.EllipticCurvePrivateKey):
        raise DeploymentError(f"{folder / 'ca.key'}: not an elliptic-curve key")
    key = ec.generate_private_key(ec.SECP384R1())
    purpose = ExtendedKeyUsageOID.SERVER_AUTH if kind == "server" else ExtendedKeyUsageOID.CLIENT_AUTH
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"confide {kind}")])
    builder = (
        _certificate(subject, ca.subject, key.public_key(), days)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(signs=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([purpose]), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key()), critical=False)
    )
    if names:
        builder = builder.add_extension(x509.SubjectAlternativeName([_general(name) for name in names]), False)
    new = folder / f".{kind}.key.new"  # both are there before either replaces an old one
    new.unlink(missing_ok=True)
    try:
        with whole_file(folder / f"{kind}.crt") as certificate:
            write_secret(new, _pem(key))
            certificate.write_bytes(builder.sign(signer, hashes.SHA384()).public_bytes(serialization.Encoding.PEM))
            new.replace(folder / f"{kind}.key")
    finally:
        new.unlink(missing_ok=True)


def expiry(path: Path) -> datetime:
    """When a certificate ends. Raises DeploymentError when there is none."""
    try:
        return x509.load_pem_x509_certificate(path.read_bytes()).not_valid_after_utc
    except (OSError, ValueError):
        raise DeploymentError(f"{path}: not a readable certificate") from None


def _certificate(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, days: float
) -> x509.CertificateBuilder:
    now = datetime.now(UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(hours=1) if days > 0 else now - timedelta(days=2))
        .not_valid_after(now + timedelta(days=days))
    )


def _usage(*, signs: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=signs,
        crl_sign=signs,
        encipher_only=False,
        decipher_only=False,
    )


def _general(name: str) -> x509.GeneralName:
    """Raises ConfigError."""
    try:
        return x509.IPAddress(ip_address(name))
    except ValueError:
        pass
    try:
        return x509.DNSName(name)
    except ValueError:
        raise ConfigError(
            f"names: received '{name}'; allowed: addresses and DNS names in ASCII (xn--… for accents); correct it"
        ) from None


def _pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
