"""The README's Python runs as it stands, and what exists has its line there."""

import re
from pathlib import Path

from ssl_lab.active.queries import QUERIES, WRAPPERS
from ssl_lab.methods import METHODS
from ssl_lab.nets import NETS
from ssl_lab.views import VIEWS

README = (Path(__file__).parent.parent / "README.md").read_text()


def test_the_python_blocks_run_in_order(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    for block in re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL):
        exec(compile(block, "README.md", "exec"), names)
    assert "fixmatch on digits with 10 labels: test" in capsys.readouterr().out
    assert (tmp_path / "runs/first/summary.json").exists()


def test_methods_views_and_nets_are_listed():
    for method in METHODS.values():
        assert f"| `{method.name}` |" in README
        assert method.recipe in README
    for query in QUERIES | WRAPPERS:
        assert f"`{query}`" in README
    for view in VIEWS:
        assert f"| `{view}` |" in README
    for family in NETS:
        assert family.partition("{")[0] in README


def test_linked_files_exist():
    root = Path(__file__).parent.parent
    paths = re.findall(r"\b(?:recipes|data_scripts|tests|ssl_lab)/[\w/]+\.py", README)
    assert paths
    assert [path for path in paths if not (root / path).exists()] == []
