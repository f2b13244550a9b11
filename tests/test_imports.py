"""The import law: common ← client, common ← server, these three ← simulations, all ← cli; flwr in few places."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ALLOWED = {
    "common": {"common"},
    "client": {"common", "client"},
    "server": {"common", "server"},
    "simulations": {"common", "client", "server", "simulations"},
}
MAY_IMPORT_FLWR = {
    *(
        "client/app.py",
        "client/handlers.py",
        "client/deploy/resident.py",
        "client/deploy/host.py",
        "client/deploy/node.py",
    ),
    *(
        "server/app.py",
        "server/rounds.py",
        "server/grids.py",
        "server/deploy/control.py",
        "server/deploy/deployment.py",
    ),
    *("server/replies.py", "server/aggregate/strategy.py"),
    "common/wire.py",
}
FILES = sorted(path for folder in ALLOWED for path in (ROOT / folder).rglob("*.py"))


def imported(path: Path) -> set[str]:
    """Absolute names of everything a file imports, inside functions too; relative ones start with 'confide.'."""
    package = ("confide", *path.relative_to(ROOT).parent.parts)
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            module = ".".join((*base, *([node.module] if node.module else [])))
            names |= {module, *(f"{module}.{alias.name}" for alias in node.names)}
    return names


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_the_import_law_holds(path: Path) -> None:
    where = str(path.relative_to(ROOT))
    side = path.relative_to(ROOT).parts[0]
    for name in imported(path):
        parts = name.split(".")
        if parts[0] == "confide" and len(parts) > 1 and parts[1] in ALLOWED:
            assert parts[1] in ALLOWED[side], f"{where} imports {name}"
        if parts[0] == "flwr":
            assert where in MAY_IMPORT_FLWR or side == "simulations", f"{where} imports {name}"
        assert not (parts[0] == "confide" and parts[1:2] == ["cli"]), f"{where} imports the command line"


@pytest.mark.parametrize("module", ["confide", "confide.cli.main", "confide.client.app", "confide.client.deploy.node"])
def test_torch_is_not_imported(module: str) -> None:
    """The command answers at once, and a site's thin app does not load a framework for each message."""
    script = f"import sys, {module}; sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0
