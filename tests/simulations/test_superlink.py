"""The handlers on a real SuperLink with TLS, node authentication and SuperNodes, all on this machine."""

import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path

import pytest
import tomli_w
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from confide.common.bundle import write_bundle
from confide.common.config.resolve import resolve
from confide.common.processes import free_port, tool, wait_for
from confide.server.report.render import read_report
from confide.simulations.ray import APPS

SITES = 3


def certificate(folder: Path) -> None:
    """A CA, and a server certificate for 127.0.0.1 signed by it."""
    now = datetime.now(UTC)
    keys = {name: ec.generate_private_key(ec.SECP256R1()) for name in ("ca", "server")}
    names = {name: x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"confide test {name}")]) for name in keys}
    for name, key in keys.items():
        builder = (
            x509.CertificateBuilder()
            .subject_name(names[name])
            .issuer_name(names["ca"])
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - timedelta(minutes=1))
            .not_valid_after(now + timedelta(days=1))
            .add_extension(x509.BasicConstraints(ca=name == "ca", path_length=None), critical=True)
        )
        if name == "server":
            addresses = x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))])
            builder = builder.add_extension(addresses, critical=False)
        signed = builder.sign(keys["ca"], hashes.SHA256())
        (folder / f"{name}.crt").write_bytes(signed.public_bytes(serialization.Encoding.PEM))
    pem = keys["server"].private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.TraditionalOpenSSL, serialization.NoEncryption()
    )
    (folder / "server.key").write_bytes(pem)


def node_key(folder: Path, name: str) -> None:
    key = ec.generate_private_key(ec.SECP384R1())
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.OpenSSH, serialization.NoEncryption()
    )
    public = key.public_key().public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH)
    (folder / name).write_bytes(private)
    (folder / f"{name}.pub").write_bytes(public + b" " + name.encode())


@contextmanager
def running(command: list[str], log: Path, environment: dict[str, str]) -> Iterator[subprocess.Popen]:
    """A process group of our own, ended by its id."""
    with log.open("a") as output:
        process = subprocess.Popen(
            command, env=environment, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
        )
    try:
        yield process
    finally:
        for how in (signal.SIGTERM, signal.SIGKILL):
            try:
                os.killpg(process.pid, how)
                process.wait(timeout=15)
            except ProcessLookupError:
                break
            except subprocess.TimeoutExpired:
                continue


@pytest.mark.slow
def test_distributed_over_tls_and_authenticated_nodes(make_config, local, tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    certificate(home)
    config = resolve(
        make_config(
            run={"rounds": 2},
            privacy={**local, "mode": "distributed"},
            data={"partition": {"clients": SITES}},
            server={"deadline": 120.0},
        )
    )
    config.output.mkdir(parents=True)
    (config.output / "config.toml").write_text(config.to_toml())
    write_bundle(config, home / "app", APPS)
    port = free_port()
    connection = {"address": f"127.0.0.1:{port}", "root-certificates": str(home / "ca.crt")}
    (home / "config.toml").write_text(tomli_w.dumps({"superlink": {"test": connection}}))
    environment = {
        **os.environ,
        "FLWR_HOME": str(home),
        "FLWR_TELEMETRY_ENABLED": "0",
        "OMP_NUM_THREADS": "1",
        "PATH": f"{Path(tool('flwr')).parent}{os.pathsep}{os.environ['PATH']}",
    }
    log = tmp_path / "superlink.log"
    tls = ["--ssl-certfile", "server.crt", "--ssl-keyfile", "server.key", "--ssl-ca-certfile", "ca.crt"]
    tls = [argument if argument.startswith("--") else str(home / argument) for argument in tls]
    with ExitStack() as stack:
        link = stack.enter_context(
            running(
                [
                    *(tool("flower-superlink"), *tls, "--enable-supernode-auth"),
                    *("--disable-runtime-dependency-installation", "--host", "127.0.0.1", "--port", str(port)),
                ],
                log,
                environment,
            )
        )
        wait_for(port, link, log)
        for number in range(SITES):
            node_key(home, f"node-{number}")
            register = [tool("flwr"), "supernode", "register", str(home / f"node-{number}.pub"), "test"]
            subprocess.run(register, env=environment, check=True, capture_output=True)
            node = [
                *(tool("flower-supernode"), "--superlink", f"127.0.0.1:{port}"),
                *("--root-certificates", str(home / "ca.crt")),
                *("--auth-supernode-private-key", str(home / f"node-{number}")),
                *("--node-config", f"partition-id={number} num-partitions={SITES}"),
                *("--host", "127.0.0.1", "--port", str(free_port())),
            ]
            stack.enter_context(running(node, tmp_path / f"node-{number}.log", environment))
        finished = subprocess.run(
            [tool("flwr"), "run", str(home / "app"), "test", "--stream"],
            env=environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=500,
        )
    told = finished.stdout + finished.stderr + log.read_text() + (tmp_path / "node-0.log").read_text()
    assert (config.output / "report.json").is_file(), told[-6000:]
    report = read_report(config.output)
    assert [row["sites"] for row in report["rounds"]] == [["site-1", "site-2", "site-3"]] * 2
    assert all(not row["failed"] for row in report["rounds"])
    assert [site["steps"] for site in report["privacy"]["sites"]] == [2] * SITES
    for path in (log, *tmp_path.glob("node-*.log")):
        assert "secrets" not in path.read_text()
