"""A real site's folder: site.toml, ledger, keys, and what it keeps between messages.

::

    site.toml      data, limits, policy, peers: everything the server cannot name
    ca.crt         whom the connection trusts
    node.key       P-384, proves the connection to the server (mode 0600)
    site.pub       the line that the server registers and other sites list as a peer
    ledger/        the account of spent privacy, with the site's identity key
    contents.json  a keyed digest of each data set's rows, as the last check or start found them (mode 0600)
    approved/      configurations of runs that were approved by hand, by their hash
    pending/       configurations that were refused for want of approval
    replies/       the last answers of a run, so that a server that lost them gets the same ones
    heads/         heads of the site's own, by data set: they never leave
    site.log       what the connection did; worker.log: what the worker could not do. No content of a record in either
"""

import os
import tempfile
from pathlib import Path

from ...common.config.run import DatasetSection, RunConfig, SiteConfig, SiteSection
from ...common.config.tables import DataSection
from ...common.data.content import ROLES
from ...common.data.files import ROW_FILES, kind_of
from ...common.data.sql import URL
from ...common.errors import ConfigError
from ...common.model.backbones import Folders
from ...common.whole import naming

POLICY = "site.toml"
LEDGER, NODE_KEY, PUBLIC, CA = "ledger", "node.key", "site.pub", "ca.crt"
APPROVED, PENDING, CONTENTS = "approved", "pending", "contents.json"


def load_site(folder: Path) -> tuple[SiteConfig, SiteSection]:
    """site.toml of a deployment. Raises ConfigError."""
    config = SiteConfig.load(folder / POLICY)
    if config.site is None:
        raise ConfigError(
            f"{folder / POLICY}: no [site]; a deployment needs its name and server; see confide site init"
        )
    return config, config.site


def local_path(folder: Path, source: str) -> str:
    """A path of site.toml, relative to it; URLs and absolute paths as they are."""
    if "://" in source:
        scheme, _, rest = source.partition(":///")
        relative = scheme == "sqlite" and rest and not rest.startswith("/")
        return f"sqlite:///{(folder / rest).resolve()}" if relative else source
    return str((folder / source).resolve())


def own_backbones(folder: Path, config: SiteConfig) -> Folders:
    """[backbones] of site.toml: a run's name for a backbone, and where it is here."""
    return tuple((name, local_path(folder, path)) for name, path in config.backbones.items())


def named_dataset(folder: Path, config: SiteConfig, name: str) -> DatasetSection:
    """A data set of site.toml. Raises ConfigError when there is none of this name."""
    if name not in config.datasets:
        raise ConfigError(f"{folder}: no data set '{name}' in {POLICY}; allowed: {', '.join(config.datasets)}")
    return config.datasets[name]


def data_section(folder: Path, dataset: DatasetSection, run: DataSection) -> DataSection:
    """Where a data set's rows are, in the words of a run. Raises ConfigError without a source, or for one whose values
    would not be read one by one: a reader of the hub infers types over whole columns, and a JSON list is read whole."""
    if dataset.source is None:
        raise ConfigError(f"{folder / POLICY}: [datasets.{run.name}] has no source; name a file or an SQL url")
    if not URL.match(dataset.source) and kind_of(Path(dataset.source)) not in ROW_FILES:
        raise ConfigError(
            f"{folder / POLICY}: [datasets.{run.name}] source: received '{dataset.source}'; allowed: a file "
            f"({', '.join(ROW_FILES)}) or an SQL url"
        )
    source = local_path(folder, dataset.source)
    columns = dataset.model_dump(include=set(ROLES))
    told = {"labels": run.labels, "scale": run.scale, "template": run.template, "numbered_tags": run.numbered_tags}
    return DataSection(name=run.name, train=source, test=source, **told, **columns)


def approve(folder: Path, run: RunConfig) -> str:
    """Allows the exact configuration; returns its hash."""
    digest = run.digest()
    place = folder / APPROVED
    place.mkdir(mode=0o700, exist_ok=True)
    write_private(place / f"{digest}.toml", run.to_toml().encode())
    (folder / PENDING / f"{digest[:16]}.toml").unlink(missing_ok=True)
    return digest


def write_private(path: Path, content: bytes) -> None:
    """Whole or not at all, mode 0600, on disk when it returns."""
    with naming(path):
        descriptor, partial = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            Path(partial).replace(path)
        except BaseException:
            Path(partial).unlink(missing_ok=True)
            raise
