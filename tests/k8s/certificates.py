"""The cluster's certificates: an authority of its own and a pair for every process, so all connections are checked."""

from __future__ import annotations

import base64
import ipaddress
import json
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from k8s.layout import API_PORT, GATEWAY, Layout

LIFETIME = timedelta(days=30)
USES = [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]

SIGNS = x509.KeyUsage(
    digital_signature=False,
    content_commitment=False,
    key_encipherment=False,
    data_encipherment=False,
    key_agreement=False,
    key_cert_sign=True,
    crl_sign=True,
    encipher_only=False,
    decipher_only=False,
)


def names(common_name: str, organization: str = "") -> x509.Name:
    """Returns a subject; to Kubernetes the common name is the user, the organization the group."""
    attributes = [x509.NameAttribute(NameOID.COMMON_NAME, common_name)]
    if organization:
        attributes.append(x509.NameAttribute(NameOID.ORGANIZATION_NAME, organization))
    return x509.Name(attributes)


def write_key(path: Path, key: ec.EllipticCurvePrivateKey) -> None:
    """Writes a private key that only this user can read."""
    path.touch(mode=0o600)
    form = serialization.PrivateFormat.TraditionalOpenSSL
    path.write_bytes(key.private_bytes(serialization.Encoding.PEM, form, serialization.NoEncryption()))


class Authority:
    """Issues certificates into one folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.key = ec.generate_private_key(ec.SECP256R1())
        self.name = names("corebound-k8s")
        self.file = folder / "authority.crt"
        builder = self._builder(self.name, self.key)
        builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        builder = builder.add_extension(SIGNS, critical=True)
        self.file.write_bytes(builder.sign(self.key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM))

    def _builder(self, subject: x509.Name, key: ec.EllipticCurvePrivateKey) -> x509.CertificateBuilder:
        now = datetime.now(UTC)
        builder = x509.CertificateBuilder().subject_name(subject).issuer_name(self.name).public_key(key.public_key())
        builder = builder.serial_number(x509.random_serial_number())
        # Strict clients, such as Python from 3.13 on, ask for both.
        own, issuer = x509.SubjectKeyIdentifier, x509.AuthorityKeyIdentifier
        builder = builder.add_extension(own.from_public_key(key.public_key()), critical=False)
        builder = builder.add_extension(issuer.from_issuer_public_key(self.key.public_key()), critical=False)
        return builder.not_valid_before(now - timedelta(hours=1)).not_valid_after(now + LIFETIME)

    def issue(
        self, file_name: str, user: str, group: str = "", hosts: Sequence[str] = (), addresses: Sequence[str] = ()
    ) -> None:
        """Writes a key and a certificate for a user, who is also a server at the given names and addresses."""
        key = ec.generate_private_key(ec.SECP256R1())
        builder = self._builder(names(user, group), key)
        builder = builder.add_extension(x509.ExtendedKeyUsage(USES), critical=False)
        places: list[x509.GeneralName] = [x509.DNSName(host) for host in hosts]
        places += [x509.IPAddress(ipaddress.ip_address(address)) for address in addresses]
        if places:
            builder = builder.add_extension(x509.SubjectAlternativeName(places), critical=False)
        signed = builder.sign(self.key, hashes.SHA256())
        write_key(self.folder / f"{file_name}.key", key)
        (self.folder / f"{file_name}.crt").write_bytes(signed.public_bytes(serialization.Encoding.PEM))

    def signing_pair(self, file_name: str) -> None:
        """Writes the key that service accounts' tokens are signed with, and its public half."""
        key = ec.generate_private_key(ec.SECP256R1())
        write_key(self.folder / f"{file_name}.key", key)
        form = serialization.PublicFormat.SubjectPublicKeyInfo
        public = key.public_key().public_bytes(serialization.Encoding.PEM, form)
        (self.folder / f"{file_name}.pub").write_bytes(public)


def kubeconfig(layout: Layout, file_name: str) -> Path:
    """Writes how the owner of a certificate reaches the API server, and returns the file."""

    def encoded(name: str) -> str:
        return base64.b64encode((layout.keys / name).read_bytes()).decode()

    cluster = {"server": f"https://{GATEWAY}:{API_PORT}", "certificate-authority-data": encoded("authority.crt")}
    user = {
        "client-certificate-data": encoded(f"{file_name}.crt"),
        "client-key-data": encoded(f"{file_name}.key"),
    }
    whole = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "corebound-k8s", "cluster": cluster}],
        "users": [{"name": file_name, "user": user}],
        "contexts": [{"name": "corebound-k8s", "context": {"cluster": "corebound-k8s", "user": file_name}}],
        "current-context": "corebound-k8s",
    }
    path = layout.run / f"{file_name}.kubeconfig"
    path.touch(mode=0o600)
    path.write_text(json.dumps(whole) + "\n", encoding="utf-8")
    return path
