"""The house: common ← client, common ← server, these three ← simulations, all ← cli; Flower's internals in few places;
no circles; packages as the tree has them."""

import ast
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ALLOWED = {
    "common": {"common"},
    "client": {"common", "client"},
    "server": {"common", "server"},
    "simulations": {"common", "client", "server", "simulations"},
}
PUBLIC_FLWR = ("flwr.app", "flwr.clientapp", "flwr.serverapp")
"""what Flower's documentation offers to apps; the rest is its own and may change with any release"""
MAY_IMPORT_INTERNALS = ("client/deploy/", "server/deploy/", "server/grids.py", "simulations/local.py")
LONGEST = 400
"""lines of a file"""
FILES = sorted(path for folder in ALLOWED for path in (ROOT / folder).rglob("*.py"))


def imported(path: Path, *, types: bool = True) -> set[str]:
    """Absolute names of everything a file imports, inside functions too; relative ones start with 'confide.'.

    types: whether what is imported for type checking alone counts.
    """
    package = ("confide", *path.relative_to(ROOT).parent.parts)
    names = set()
    tree = ast.parse(path.read_text(encoding="utf-8"))
    typing = [node for node in ast.walk(tree) if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"]
    left_out = set() if types else {inner for node in typing for inner in ast.walk(node)}
    for node in ast.walk(tree):
        if node in left_out:
            continue
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
            assert side != "common" or where == "common/wire.py", f"{where} imports {name}"
            public = name in ("flwr", *PUBLIC_FLWR) or any(name.startswith(f"{one}.") for one in PUBLIC_FLWR)
            public &= not name.startswith(("flwr.app.user_config", "flwr.app.message."))
            assert public or where.startswith(MAY_IMPORT_INTERNALS), f"{where} imports {name}"
        assert not (parts[0] == "confide" and parts[1:2] == ["cli"]), f"{where} imports the command line"


def test_torch_is_not_imported() -> None:
    """The command answers at once, a site loads no framework for each message, a server none at all."""
    modules = ["confide", "confide.cli.main", "confide.client.app", "confide.client.deploy.node"]
    modules += ["confide.server.deploy.remote", "confide.server.deploy.serving"]
    script = f"""
import importlib, sys
for module in {modules}:  # one after the other: what one loads is there for good, so what none has loaded none loads
    importlib.import_module(module)
    if 'torch' in sys.modules or 'transformers' in sys.modules:
        sys.exit(module)
"""
    done = subprocess.run([sys.executable, "-c", script], check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_a_real_site_and_server_load_nothing_of_simulations() -> None:
    script = (
        "import sys, confide.client.deploy.resident, confide.client.deploy.host, confide.client.secagg, "
        "confide.server.app, confide.server.deploy.serving; "
        "sys.exit(any(name.startswith('confide.simulations') for name in sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0


def test_no_module_imports_itself_by_way_of_others() -> None:
    """Imports inside functions count, too; those for type checking alone do not."""
    names = {".".join(("confide", *path.relative_to(ROOT).with_suffix("").parts)): path for path in FILES}
    found = {name: {other for other in imported(path, types=False) if other in names} for name, path in names.items()}
    done: set[str] = set()

    def visit(name: str, on_the_way: tuple[str, ...]) -> None:
        assert name not in on_the_way, " → ".join((*on_the_way[on_the_way.index(name) :], name))
        if name not in done:
            for other in sorted(found[name] - {name}):
                visit(other, (*on_the_way, name))
            done.add(name)

    for name in sorted(names):
        visit(name, ())


def test_packages_are_those_of_the_tree() -> None:
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]["packages"]
    folders = {path.parent.relative_to(ROOT) for path in [*FILES, *(ROOT / "cli").rglob("*.py")]}
    assert sorted(declared) == sorted({"confide", *(".".join(("confide", *folder.parts)) for folder in folders)})


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_file_is_one_concept(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) <= LONGEST
