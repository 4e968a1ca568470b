"""The house: imports point down, algorithms stay apart, heavy packages load only on use; no file is
long, nothing is duck-typed, and only Dreamer's own files know what its state holds.

The rules of imports stand in pyproject.toml under [tool.importlinter]; `lint-imports` prints every
broken one.
"""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path

import grimp
import pytest
from importlinter.cli import EXIT_STATUS_ERROR, EXIT_STATUS_SUCCESS

ROOT = Path(__file__).resolve().parent.parent
PYPROJECT = ROOT / "pyproject.toml"
CONTRACTS = tomllib.loads(PYPROJECT.read_text())["tool"]["importlinter"]["contracts"]
HEAVY = {
    "ale_py",
    "cv2",
    "dm_control",
    "imageio",
    "matplotlib",
    "mujoco",
    "nicegui",
    "numba",
    "pygame",
    "tensorboard",
    "triton",
}


def layers(contract_id: str) -> list[set[str]]:
    """The modules of each layer of a contract, highest first, without their punctuation."""
    (contract,) = (entry for entry in CONTRACTS if entry["id"] == contract_id)
    plain = str.maketrans("():|", "    ")
    return [set(layer.translate(plain).split()) for layer in contract["layers"]]


STUDIES, RUNNERS, COMPOSED, _, TOOLS = layers("agents-layers")


@pytest.fixture(scope="module")
def imports() -> grimp.ImportGraph:
    return grimp.build_graph("worldmodel", "agents", cache_dir=None)


def algorithms(imports: grimp.ImportGraph) -> set[str]:
    """Every module of agents that is no study, runner or tool, named in a layer or not."""
    return {
        name
        for name in imports.find_children("agents")
        if name.removeprefix("agents.") not in STUDIES | RUNNERS | TOOLS
    }


def lint(folder: Path) -> subprocess.CompletedProcess[str]:
    """In a process of its own: it sets up logging anew, and with that closes what is open."""
    return subprocess.run(
        [Path(sys.executable).parent / "lint-imports", "--no-cache", "--no-logo"],
        cwd=folder,
        env={"PYTHONPATH": str(folder), "PYTHONSAFEPATH": ""},
        capture_output=True,
        text=True,
    )


def test_the_contracts_hold() -> None:
    done = lint(ROOT)
    assert done.returncode == EXIT_STATUS_SUCCESS, done.stdout + done.stderr


def write(folder: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


@pytest.mark.parametrize(
    ("name", "text", "broken"),
    [
        ("worldmodel/types.py", "import agents.base", "worldmodel never imports agents"),
        ("worldmodel/types.py", "from worldmodel import rssm", "worldmodel: imports point down"),
        ("worldmodel/types.py", "import scripts.train", "nobody imports scripts"),
        ("worldmodel/types.py", "def f():\n    import mujoco", "heavy packages only where"),
        ("worldmodel/stray.py", "", "worldmodel: imports point down"),
        ("agents/base.py", "import agents.run", "agents: imports point down"),
        ("agents/dreamer.py", "import agents.dyna", "algorithms never sideways"),
        ("worldmodel/envs/dmc.py", "import mujoco", None),
    ],
)
def test_the_contracts_can_fail(tmp_path: Path, name: str, text: str, broken: str | None) -> None:
    """On a copy of the house's plan: each rule catches what it is for, and only that."""
    empty = ["worldmodel/__init__.py", "agents/__init__.py", "agents/base.py", "agents/run.py"]
    empty += ["agents/dreamer.py", "agents/dyna.py", "worldmodel/rssm.py"]
    empty += ["worldmodel/envs/__init__.py"]
    lower = set().union(*layers("worldmodel-layers")) - {"envs", "rssm"}
    empty += [f"worldmodel/{layer}.py" for layer in lower]
    write(tmp_path, dict.fromkeys(empty, ""))
    write(tmp_path, {name: text, "pyproject.toml": PYPROJECT.read_text()})
    done = lint(tmp_path)
    assert done.returncode == (EXIT_STATUS_SUCCESS if broken is None else EXIT_STATUS_ERROR), (
        done.stdout + done.stderr
    )
    lines = [line for line in done.stdout.splitlines() if line.endswith("BROKEN")]
    assert [line for line in lines if broken and broken in line] == lines


def test_algorithms_do_not_import_each_other(imports: grimp.ImportGraph) -> None:
    names = algorithms(imports)
    sideways = [
        f"{one} -> {other}"
        for one in sorted(names - {f"agents.{name}" for name in COMPOSED})
        for other in sorted(names - {one})
        if imports.chain_exists(importer=one, imported=other, as_packages=True)
    ]
    assert not sideways


def test_runners_know_no_algorithm_and_no_algorithm_knows_a_runner(
    imports: grimp.ImportGraph,
) -> None:
    """They meet in the lazy table of agents/__init__.py, by name."""
    runners = {f"agents.{name}" for name in RUNNERS} & imports.find_children("agents")
    names = algorithms(imports)
    known = [
        f"{importer} -> {imported}"
        for one, other in ((runners, names), (names, runners))
        for importer in sorted(one)
        for imported in sorted(other)
        if imports.chain_exists(importer=importer, imported=imported, as_packages=True)
    ]
    assert not known


@pytest.mark.parametrize("package", ["worldmodel", "agents"])
def test_importing_a_package_alone_loads_nothing_heavy(package: str) -> None:
    code = f"import sys, {package}; print(*(name for name in sys.modules if '.' not in name))"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert package in done.stdout.split()
    assert HEAVY & set(done.stdout.split()) == set()


LONGEST = 350  # lines of a file
SOURCES = sorted(
    path for top in ("worldmodel", "agents", "scripts") for path in ROOT.glob(f"{top}/**/*.py")
)


def test_no_module_imports_itself_by_way_of_others(imports: grimp.ImportGraph) -> None:
    """Within packages too, and whether an import is at the top, in a function or for types."""
    around = {
        f"{importer} -> {imported}"
        for importer in imports.modules
        for imported in imports.find_modules_directly_imported_by(importer)
        if imports.chain_exists(importer=imported, imported=importer)
    }
    assert not around


def test_no_file_is_long() -> None:
    long = {
        path.relative_to(ROOT).as_posix(): length
        for path in SOURCES
        if (length := len(path.read_text().splitlines())) > LONGEST
    }
    assert not long


def duck_typed(tree: ast.AST) -> Iterator[str]:
    """Each getattr or hasattr of a model, an agent or a state. What these can do, protocols and
    base classes say: worldmodel/capabilities.py and agents/base.py."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and ast.unparse(node.func) in {"getattr", "hasattr"}:
            asked = ast.unparse(node.args[0])
            if re.search(r"(?<![a-z])(model|world|agent|planner|latent|state)(?![a-z])", asked):
                yield f"{node.lineno}: {ast.unparse(node)}"


def state_words(tree: ast.AST) -> Iterator[str]:
    """Each place in code, not in prose, that names a part of Dreamer's state."""
    words = {"deter", "stoch"}
    for node in ast.walk(tree):
        match node:
            case ast.Attribute(attr=name) | ast.Name(id=name) | ast.arg(arg=name):
                found = name in words
            case ast.Constant(value=str(text)):
                found = text in words
            case ast.Call(func=function, keywords=keywords):  # sizes are settings
                found = not ast.unparse(function).endswith("Config")
                found &= any(keyword.arg in words for keyword in keywords)
            case _:
                continue
        if found:
            yield f"{node.lineno}: {ast.unparse(node)[:80]}"


def found_in(check: Callable[[ast.AST], Iterator[str]], but: tuple[str, ...]) -> list[str]:
    return [
        f"{name}:{place}"
        for path in SOURCES
        if not (name := path.relative_to(ROOT).as_posix()).startswith(but)
        for place in check(ast.parse(path.read_text()))
    ]


def test_models_and_agents_are_not_duck_typed() -> None:
    """Environments are not ours, and may be asked."""
    assert not found_in(duck_typed, ("worldmodel/envs/",))
    asked = (
        "getattr(self.model, 'x', 1)",
        "hasattr(trainer.agent, 'x')",
        "getattr(agent_class, 'x')",
    )
    assert all(list(duck_typed(ast.parse(text))) for text in asked)
    assert not list(duck_typed(ast.parse("hasattr(statement, 'x'), hasattr(signal, 'SIGUSR1')")))


def test_only_dreamer_knows_what_its_state_holds() -> None:
    """replay/datasets names what recordings of others hold, in order to leave it out."""
    mine = ("worldmodel/rssm/", "agents/dreamer", "worldmodel/replay/datasets/")
    assert not found_in(state_words, mine)
    known = "state.deter", "x['stoch']", "f(deter=1)", "deter = 1", "def f(stoch): pass"
    assert all(list(state_words(ast.parse(text))) for text in known)
    assert not list(state_words(ast.parse("ModelConfig(deter=8), 'agent.model.deter=8'")))
