"""Imports go one way: a file imports from its own folder or from a lower level."""

import ast
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent / "ssl_lab"
LEVELS = [
    {"batch", "seeds", "schedule", "losses", "errors", "files", "config", "command_line", "exits", "intervals",
     "calibration", "class_names", "notes", "processes", "versions", "at_hand", "afterwards", "cost", "locks", "texts",
     "workers", "predictions", "flags", "docstrings", "signatures", "active_settings", "machine"},
    {"data", "views", "nets", "optim"},
    {"methods"},
    {"techniques"},
    {"engine", "build", "presets", "pretraining_presets", "understood"},
    {"features", "analysis", "ladder"},
    {"report", "pace"},
    {"active"},
    {"model", "finetune", "rounds", "stages", "members"},
    {"ensemble", "rapid"},
    {"ways"},
    {"advise", "arms", "auditing", "bench", "comparison", "export", "testing", "quickstart", "label", "predict",
     "fetch", "find_lr", "reporting", "estimator", "begun", "learners", "refits"},
    {"train", "study", "papers", "runs", "compress"},
    {"catalog"},
    {"words"},
    {"cli", "docs", "__init__"},
]
LEVEL = {name: number for number, names in enumerate(LEVELS) for name in names}


FAMILIES = {"consistency", "pretraining", "distillation"}
FILES = {".".join(("ssl_lab", *file.relative_to(ROOT).with_suffix("").parts)).removesuffix(".__init__"): file
         for file in sorted(ROOT.rglob("*.py"))}


@cache
def _names(file: Path, types: bool = False) -> set[str]:
    """What of ssl_lab a file imports, anywhere in it; with what is there for types alone, if wanted."""
    found, typing = set(), set()
    for node in ast.walk(ast.parse(file.read_text())):
        if not types and isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            typing |= {id(each) for each in ast.walk(node)}
        if id(node) in typing:
            continue
        if isinstance(node, ast.ImportFrom) and node.module:
            assert node.level == 0, f"{file}: relative import"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return {name for name in found if name.startswith("ssl_lab.")}


def _imports(file: Path) -> set[str]:
    """The rooms of ssl_lab that a file imports."""
    return {name.split(".")[1] for name in _names(file, types=True)}


def _file_of(name: str) -> str:
    """The file that holds a name: ssl_lab.batch of ssl_lab.batch.At."""
    while name not in FILES:
        name = name.rpartition(".")[0]
    return name


def test_every_room_has_a_level():
    rooms = {path.stem for path in ROOT.iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()}
    assert rooms <= LEVEL.keys(), f"give a level to {rooms - LEVEL.keys()}"


def test_imports_go_downwards():
    wrong = []
    for file in sorted(ROOT.rglob("*.py")):
        here = file.relative_to(ROOT).parts[0].removesuffix(".py")
        wrong += [f"{file.relative_to(ROOT)} imports {room}" for room in _imports(file)
                  if room != here and LEVEL[room] >= LEVEL[here]
                  and not (LEVEL[here] == 0 and LEVEL[room] == 0)]
    assert not wrong, wrong


def test_no_file_imports_itself_by_way_of_others():
    """Round and round: what has no arrow to anything left is taken away, until only circles are there."""
    arrows = {name: {_file_of(each) for each in _names(file)} - {name} for name, file in FILES.items()}
    while free := {name for name, others in arrows.items() if not others}:
        arrows = {name: others - free for name, others in arrows.items() if name not in free}
    while free := arrows.keys() - set().union(*arrows.values()):  # and what only leads to circles
        arrows = {name: others for name, others in arrows.items() if name not in free}
    assert not arrows, f"the imports of {sorted(arrows)} lead back to them"


def test_rooms_of_active_learning_look_down():
    """Queries know no people, people no loop, and the loop no study that runs it."""
    order = {"queries": 0, "people": 1, "study": 3}
    wrong = []
    for name, file in FILES.items():
        if name.startswith("ssl_lab.active."):
            here = order.get(name.split(".")[2], 2)
            wrong += [f"{name} imports {each}" for each in sorted(_names(file, types=True))
                      if each.startswith("ssl_lab.active.") and order.get(each.split(".")[2], 2) > here]
    assert not wrong, wrong


def test_families_do_not_import_each_other():
    """What they share lies beside them in methods/, or below."""
    wrong = []
    for name, file in FILES.items():
        here = name.split(".")[2:3]
        if name.startswith("ssl_lab.methods.") and FAMILIES & {*here}:
            wrong += [f"{name} imports {each}" for each in sorted(_names(file)) if each.startswith("ssl_lab.methods.")
                      and {*each.split(".")[2:3]} & FAMILIES - {*here}]
    assert not wrong, wrong


def test_private_names_stay_in_their_files():
    wrong = [f"{name} imports {each}" for name, file in FILES.items() for each in _names(file)
             if each.rpartition(".")[2].startswith("_")]
    assert not wrong, wrong


def _at_once(file: Path) -> set[str]:
    """What a file imports when it is imported."""
    found = set()
    for node in ast.parse(file.read_text()).body:
        if isinstance(node, ast.ImportFrom):
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return found


@pytest.mark.parametrize("start", ["ssl_lab.report", "ssl_lab.runs", "ssl_lab.config", "ssl_lab.cli"])
def test_what_only_shows_numbers_and_flags_imports_no_torch(start):
    """It takes seconds."""
    waiting, seen = [start], set()
    while waiting:
        file = waiting.pop()
        seen.add(file)
        names = _at_once(FILES[file]) if file != "ssl_lab" else set()
        assert not [name for name in names if name.split(".")[0] == "torch"], file
        rooms = {_file_of(name) for name in names if name.startswith("ssl_lab")}
        waiting += {room.rpartition(".")[0] or room for room in rooms} | rooms - seen
        waiting = [each for each in waiting if each not in seen]
