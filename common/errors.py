"""The exceptions that confide raises on purpose.

::

    ConfideError                   exit code 1; its text is one line that a user can act on
    ├── ConfigError                exit code 2; nothing has been written
    ├── DataError                  exit code 2; names file, row and column, never shows a row's content
    ├── ModelError                 exit code 2; backbone, targets or task do not fit together
    ├── PrivacyError               a guarantee would not hold: nothing is released
    │   ├── BudgetError            more was asked than was declared or is left; nothing is charged
    │   ├── PolicyError            a site's policy does not allow the run; nothing is charged
    │   └── SecureSumError         a secure sum that cannot go on; no input is revealed
    │       └── KeysLostError      the site holds no keys for it: it takes part again after the next set-up
    ├── LedgerError                an account of spent privacy that cannot be trusted: nothing is released
    ├── RoundError                 the federation cannot go on (too few sites)
    ├── WireError                  a message does not hold what it must
    ├── WorkerError                a site's resident worker is gone, stuck, or answers nonsense
    ├── DeploymentError            a folder, certificate, key or connection that does not serve
    └── StoppedError               exit code 130: the user stopped the run, which can be resumed
"""


class ConfideError(Exception):
    """Base of every error that is meant for the user."""

    exit_code = 1


class ConfigError(ConfideError):
    """A configuration that cannot be run."""

    exit_code = 2


class DataError(ConfideError):
    """A data source that cannot be used; the text holds no content of a row."""

    exit_code = 2


class ModelError(ConfideError):
    """A backbone, task or LoRA target that does not fit."""

    exit_code = 2


class PrivacyError(ConfideError):
    """A privacy guarantee would not hold; the release is withheld."""


class BudgetError(PrivacyError):
    """A site was asked for more than the run declared, or than its data set has left; nothing was charged."""


class RecordsError(BudgetError):
    """A budget is refused for what a data set holds: another's records, or others than before. For the site's operator
    alone; nothing was charged."""


class PolicyError(PrivacyError):
    """A site's policy does not allow what a run asks for; nothing was charged."""


class SecureSumError(PrivacyError):
    """A secure sum cannot go on: too few sites, keys of somebody else, sites that were told different things."""


class KeysLostError(SecureSumError):
    """A site holds no keys of the set-up in use, because it was restarted or joined late."""


class LedgerError(ConfideError):
    """A ledger or receipt that is missing, changed, or older than what was seen."""


class RoundError(ConfideError):
    """The federation cannot go on."""


class WireError(ConfideError):
    """A message that does not hold what it must."""


class WorkerError(ConfideError):
    """The resident worker of a site is gone, stuck, or answers what cannot be."""


class DeploymentError(ConfideError):
    """A folder, certificate, key or connection of a deployment that does not serve."""


class StoppedError(ConfideError):
    """The user stopped a run."""

    exit_code = 130


def first_line(error: BaseException) -> str:
    """What an error says, in one line of at most 160 characters; its kind where it says nothing."""
    return (str(error).strip() or type(error).__name__).splitlines()[0][:160]


def contain(error: BaseException) -> None:
    """Raises an error again that means the process, not the work: Ctrl-C, exit.

    For the places where whatever a record does must not show. A tokenizer in Rust panics with an exception that is no
    Exception.
    """
    if isinstance(error, KeyboardInterrupt | SystemExit | GeneratorExit):
        raise error


def harmless(text: str) -> str:
    """Without characters that a terminal obeys."""
    return "".join(c if c.isprintable() or c in "\n\t" else repr(c)[1:-1] for c in text)
