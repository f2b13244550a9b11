"""Which rows a site has agreed to have charged: a digest of each data set, taken where nobody but the site sees it.

`confide site check` and the start of `confide site run` read every data set once and keep its digest in contents.json.
A run's reservation in the ledger names that digest, so that no file is opened for a task before the ledger has charged
it; when the rows turn out to be others by then, the run is answered with noise alone, and the site's log asks for a new
check.
"""

import json
from pathlib import Path

from ...common.config.run import SiteConfig
from ...common.config.tables import DataSection
from ...common.data.content import NOBODY
from ...common.data.sources import source_contents
from ...common.errors import ConfideError, DeploymentError
from ...common.ledger.ledger import Ledger
from .folder import CONTENTS, data_section, local_path, write_private

_UNREADABLE = b"unreadable"
"""stands for a file that could not be read: runs are admitted as ever, and answered with noise"""


_HALF = 64
"""hexadecimal digits that say whose records they are; the rest says what they hold"""


def whose(name: str, identity: bytes) -> bytes:
    """Whose records a data set holds: where it holds none, its own."""
    return name.encode() if identity == NOBODY else identity


def keyed(ledger: Ledger, identity: bytes, digest: bytes) -> str:
    """What is kept of a data set's digests: nobody without the site's key can try rows out on it."""
    return (ledger.key.derive("whose", identity) + ledger.key.derive("contents", digest)).hex()


def take_digests(folder: Path, config: SiteConfig, ledger: Ledger, *, only_new: bool = False) -> dict[str, str]:
    """Reads every data set of the site and keeps its digest; name → why it could not be read, of those.

    only_new: leaves alone what is known. Raises DeploymentError where two names hold the same rows, or rows that the
    ledger has charged under another: they would be two budgets for one record; nothing is kept then.
    """
    known = _read(folder)
    failed: dict[str, str] = {}
    found = {name: value for name, value in known.items() if only_new and name in config.datasets}
    for name, dataset in config.datasets.items():
        if name in found:
            continue
        try:
            data = data_section(folder, dataset, DataSection(name=name, test=""))
            identity, digest = source_contents(data.training, data)
            found[name] = keyed(ledger, whose(name, identity), digest)
        except ConfideError as error:
            failed[name], found[name] = str(error), _unreadable(ledger, name)
    _refuse_twins(folder, config, found)
    _refuse_second_names(folder, config, ledger, found)
    if found != known:
        write_private(folder / CONTENTS, json.dumps(found, indent=2).encode() + b"\n")
    return failed


def content_of(folder: Path, ledger: Ledger, dataset: str) -> bytes:
    """64 bytes that a reservation names; the rows are not read for it."""
    return bytes.fromhex(_read(folder).get(dataset) or _unreadable(ledger, dataset))


def _unreadable(ledger: Ledger, dataset: str) -> str:
    return keyed(ledger, _UNREADABLE + dataset.encode(), b"")


def _refuse_twins(folder: Path, config: SiteConfig, found: dict[str, str]) -> None:
    """Rows are the same where their digests of whose they are agree, or where they are read from one place: the same
    rows in other columns are the same people's, too."""
    first: dict[object, str] = {}
    for name, content in found.items():
        source = config.datasets[name].source
        for mark in (content[:_HALF], None if source is None else _place(local_path(folder, source))):
            other = name if mark is None else first.setdefault(mark, name)
            if config.budget(name)[0] != config.budget(other)[0]:
                raise DeploymentError(
                    f"{folder}: data sets '{other}' and '{name}' hold the same rows; a record has one budget: remove "
                    f'one, or write same_as = "{other}" in [datasets.{name}]'
                )


def _refuse_second_names(folder: Path, config: SiteConfig, ledger: Ledger, found: dict[str, str]) -> None:
    """What the ledger has charged under another name; found out here, since a task's answer must not depend on it."""
    for name, content in found.items():
        budget, aliases = config.budget(name)[0], config.aliases(config.budget(name)[0])
        whose = ledger.key.derive("content", bytes.fromhex(content)[: _HALF // 2]).hex()
        if others := ledger.charged_as(whose) - {budget, *aliases}:
            other = min(others)
            raise DeploymentError(
                f"{folder}: data set '{name}' holds the records that were charged as '{other}', and two names would be "
                f'two budgets; write [datasets.{other}] again, and same_as = "{other}" in [datasets.{name}]'
            )


def _place(source: str) -> object:
    """The same for every name of a file, links included."""
    try:
        found = Path(source).stat()
    except OSError:  # SQL, or no file yet
        return source
    return found.st_dev, found.st_ino


def _read(folder: Path) -> dict[str, str]:
    try:
        content = json.loads((folder / CONTENTS).read_text(encoding="ascii"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError):
        raise DeploymentError(f"{folder / CONTENTS}: cannot be read; remove it and run: confide site check") from None
    return {str(name): str(value) for name, value in content.items()}
