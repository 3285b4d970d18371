"""Imports go one way: a file imports from its own folder or from a lower level."""

import ast
from pathlib import Path

ROOT = Path(__file__).parent.parent / "ssl_lab"
LEVELS = [
    {"batch", "schedule", "losses", "errors", "files", "config", "command_line", "exits", "intervals", "calibration",
     "class_names", "notes", "processes", "at_hand", "afterwards", "texts"},
    {"data", "views", "nets", "optim"},
    {"methods"},
    {"techniques"},
    {"engine", "presets", "pretraining_presets"},
    {"features", "analysis"},
    {"report"},
    {"active"},
    {"model", "finetune", "rounds", "stages"},
    {"ensemble"},
    {"ways"},
    {"advise", "auditing", "bench", "comparison", "export", "testing", "quickstart", "label", "predict", "fetch",
     "find_lr", "reporting", "estimator", "begun", "refits"},
    {"train", "study", "papers", "compress"},
    {"catalog"},
    {"cli", "__init__"},
]
LEVEL = {name: number for number, names in enumerate(LEVELS) for name in names}


def _imports(file: Path) -> set[str]:
    """The rooms of ssl_lab that a file imports, anywhere in it."""
    rooms = set()
    for node in ast.walk(ast.parse(file.read_text())):
        names = []
        if isinstance(node, ast.ImportFrom) and node.module:
            assert node.level == 0, f"{file}: relative import"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        rooms |= {name.split(".")[1] for name in names if name.startswith("ssl_lab.")}
    return rooms


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
