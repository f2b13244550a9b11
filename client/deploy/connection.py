"""A site's connection to its server: keys, TLS, what a bundle may hold, and what is wrong when it fails."""

import io
import zipfile
from pathlib import Path

import httpx
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_ssh_private_key
from flwr.supercore.interceptors.http.runtime_version import RuntimeVersionHttpInterceptor
from flwr.supernode.fleet_http_client import FleetHttpClient
from flwr.supernode.node_auth_http_interceptor import NodeAuthHttpInterceptor

from ...common.config.run import SiteSection
from ...common.errors import DeploymentError, WireError, WorkerError
from .folder import CA

FRAMING = 2**20
"""bytes beyond a message's arrays that an answer of the server may take"""
_BUNDLE_LIMIT = 2**20


def check_bundle(content: bytes) -> None:
    """Raises WireError unless a bundle holds configuration only, and names our apps."""
    if len(content) > _BUNDLE_LIMIT:
        raise WireError(f"the run's bundle has {len(content):,} bytes; allowed: {_BUNDLE_LIMIT:,}")
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        entries = archive.infolist()
    if sum(entry.file_size for entry in entries) > 4 * _BUNDLE_LIMIT:
        raise WireError("the run's bundle unpacks to more than a configuration needs")
    foreign = [entry.filename for entry in entries if entry.filename not in ("pyproject.toml", ".info/CONTENT")]
    if foreign:
        raise WireError(
            f"the run's bundle holds {len(foreign)} files beside its configuration, e.g. '{foreign[0][:60]}'; this "
            "site runs what it installed, no code from outside"
        )


def read_node_key(path: Path) -> tuple[ec.EllipticCurvePrivateKey, ec.EllipticCurvePublicKey]:
    """Raises DeploymentError: missing, readable by others, or not a P-384 key."""
    try:
        if path.stat().st_mode & 0o077:
            raise DeploymentError(f"{path}: others may read this key; allowed: mode 0600; chmod 600 {path}")
        key = load_ssh_private_key(path.read_bytes(), None)
    except OSError as error:
        raise DeploymentError(f"{path}: the node's key cannot be read: {error.strerror}") from None
    except ValueError:
        raise DeploymentError(f"{path}: not a private key in OpenSSH form") from None
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise DeploymentError(f"{path}: not an elliptic-curve key; make the site's folder anew")
    return key, key.public_key()


def fleet_client(
    folder: Path,
    section: SiteSection,
    keys: tuple[ec.EllipticCurvePrivateKey, ec.EllipticCurvePublicKey],
    seconds: float | None = None,
) -> FleetHttpClient:
    """Flower's client with our CA, our key and a cap on answers. Raises DeploymentError without the CA's certificate.

    seconds: timeout of a call; omitted: Flower's.
    """
    try:
        certificates = (folder / CA).read_bytes()
    except OSError as error:
        raise DeploymentError(f"{folder / CA}: the CA's certificate cannot be read: {error.strerror}") from None
    interceptors = [RuntimeVersionHttpInterceptor(component_name="SuperNode"), NodeAuthHttpInterceptor(*keys)]
    client = FleetHttpClient.from_server_address(section.server, False, certificates, interceptors)
    most = section.max_message + FRAMING

    def capped(response: httpx.Response) -> None:
        """Before the body is read. An encoding could make little of it much."""
        if (encoding := response.headers.get("content-encoding", "identity")) != "identity":
            raise WireError(f"the server's answer is encoded ('{encoding[:20]}'); allowed: bytes as they are")
        length = response.headers.get("content-length", "")
        if not length.isdigit() or int(length) > most:
            raise WireError(f"the server's answer has {length or 'an unknown number of'} bytes; allowed: {most:,}")

    inner = client._client
    inner.follow_redirects = False
    inner.headers["accept-encoding"] = "identity"
    inner.event_hooks = {"response": [capped]}
    if seconds is not None:
        inner.timeout = httpx.Timeout(seconds)
    return client


def connection_problem(error: Exception, section: SiteSection) -> str:
    """What to do about it, in one line."""
    text = str(error)
    if isinstance(error, httpx.HTTPStatusError):
        status = error.response.status_code
        if status in (401, 403, 404, 412):
            return (
                f"{section.server} does not know this site (HTTP {status}): have its operator run "
                "'confide server add-site' with site.pub, and compare the clocks"
            )
        return f"{section.server} answers HTTP {status}"
    if "CERTIFICATE_VERIFY_FAILED" in text or "certificate verify failed" in text:
        detail = text.split("certificate verify failed:")[-1].split("(_ssl")[0].strip()
        return f"{section.server} shows a certificate that {CA} does not vouch for ({detail})"
    if isinstance(error, httpx.ConnectError | httpx.TimeoutException):
        return f"{section.server} cannot be reached ({type(error).__name__})"
    return f"connection to {section.server}: {told(error)}"


def told(error: Exception) -> str:
    """A foreign exception's text may quote content: only its kind is told."""
    return str(error) if isinstance(error, WireError | WorkerError) else type(error).__name__
