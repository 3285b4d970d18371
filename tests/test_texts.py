"""Texts that describe things by a name and arguments: the one grammar of methods, queries and schedules."""

import ast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ssl_lab import texts
from ssl_lab.errors import UsageError
from ssl_lab.texts import Call


def read(text):
    return texts.read(text, "thing", "thing(size=2)")


def test_names_arguments_and_what_is_within_them():
    assert read("badge") == Call("badge", called=False)
    assert read(" a.b:C( 1, -2.5 ,x = 'a:b, (c)', y=[True, None, ('s', d:E)] ) ") == Call(
        "a.b:C", (1, -2.5), {"x": "a:b, (c)", "y": [True, None, ["s", Call("d:E", called=False)]]})
    assert read("f(linear(0, 1))").args == (Call("linear", (0, 1)),)


@pytest.mark.parametrize(("text", "canonical"), [
    ("f( a=1,b = 0.70)", "f(a=1, b=0.7)"), ("f()", "f"), ("m.n:F(g( 1 ), x=[1,h:I])", "m.n:F(g(1), x=[1, h:I])"),
    ('f("it\'s")', 'f("it\'s")')])
def test_a_call_is_read_from_how_it_prints(text, canonical):
    assert str(read(text)) == canonical
    assert str(read(canonical)) == canonical


@pytest.mark.parametrize(("text", "words"), [
    ("", "'' describes no thing; expected a name, with arguments as in thing[(]size=2[)]"),
    ("f(", "describes no thing"), ("3", "describes no thing"), ("f(1) + 1", "describes no thing"),
    ("f; import os", "describes no thing"), ("f(x=1, x=2)", "is given twice"),
    ("f(*a)", "no arguments with [*]"), ("f(**a)", "no arguments with [*]"),
    ("f(1 + 2)", "f: 1 [+] 2 is no argument; expected a number, a text in quotes"),
    ("f(lambda: 1)", "is no argument|describes no thing"),
    ("(" * 500, "describes no thing"), ("f(" * 5000 + ")" * 5000, "describes no thing"),
])
def test_what_describes_nothing_says_so(text, words):
    with pytest.raises(UsageError, match=words) as refused:
        read(text)
    assert "\n" not in str(refused.value)


PIECES = ["f", "(", ")", ",", "=", "'", '"', ":", "a.b", "1", "-", "[", "]", "*", "{", "}", "lambda", " "]


@given(text=st.text(max_size=30) | st.lists(st.sampled_from(PIECES), max_size=12).map("".join))
def test_any_text_is_read_or_refused(text):
    try:
        call = read(text)
    except UsageError:
        return
    assert str(read(str(call))) == str(call)


def test_several_are_split_at_outer_commas():
    assert texts.split("margin, prefilter(margin,k_center) ,f('a,(b', x=[1,2])") == [
        "margin", "prefilter(margin,k_center)", "f('a,(b', x=[1,2])"]


@pytest.mark.parametrize(("text", "name"), [
    ("fixmatch", "fixmatch"), ("fixmatch(threshold=0.7, weight=2)", "fixmatch,threshold=0.7,weight=2"),
    ("my_pkg.soft:Soft", "my_pkg.soft.Soft")])
def test_names_of_folders(text, name):
    assert texts.as_file_name(text) == name


def test_names_of_folders_stay_inside_and_apart():
    given = ["f(x='../../etc')", "f(x='.._.._etc')", "f(g(1), 2)", "f(g(1, 2))", "f(x=1)", "f(x='1')", "f" * 300,
             "f" * 299, *(f"f(x='{letter}')" for letter in "/\\ :%?<>|\"é")]
    names = [texts.as_file_name(text) for text in given]
    assert len(set(names)) == len(given)
    assert all("/" not in name and "\\" not in name and len(name) < 100 and name[0] != "." for name in names)


BROKEN = {"raises": "1 / 0\n", "syntax": "def\n", "imports": "import nothing_of_this_name\n"}


@pytest.mark.parametrize(("name", "words"), [
    ("nowhere:F", "cannot load the kind 'nowhere:F': No module named 'nowhere'. Expected package.module:Class"),
    ("mine:G", "module 'mine' has no attribute 'G'; it has F. Expected"),
    ("mine:size", "mine:size is not a subclass of"),
    ("mine:Other", "mine:Other is not a subclass of .*[.]Base"), ("mine.py:F", "No module named 'mine.py'"),
    ("raises:F", r"ZeroDivisionError: division by zero \(.*raises.py, line 1\)"),
    ("syntax:F", r"SyntaxError: .*\(syntax.py, line 1\)"), ("imports:F", "No module named 'nothing_of_this_name'"),
    (":F", "Empty module name"), ("mine:", "describes no|has no attribute"),
])
def test_what_cannot_be_imported_says_why(tmp_path, monkeypatch, name, words):
    for module, content in BROKEN.items():
        (tmp_path / f"{module}.py").write_text(content)
    (tmp_path / "mine.py").write_text("from test_texts import Base\nclass F(Base): pass\nclass Other: pass\nsize = 3\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", [*__import__("sys").path])
    monkeypatch.delitem(__import__("sys").modules, "mine", raising=False)
    assert texts.imported("mine:F", Base, "kind").__name__ == "F"
    with pytest.raises(UsageError, match=words) as refused:
        texts.imported(name, Base, "kind")
    assert "\n" not in str(refused.value)


class Base:
    """What the modules above derive from."""


def test_reading_imports_nothing(tmp_path, monkeypatch):
    (tmp_path / "evil.py").write_text("raise SystemExit('it ran')\n")
    monkeypatch.chdir(tmp_path)
    assert str(read("evil:F(x=evil:G)")) == "evil:F(x=evil:G)"
    assert ast.parse("evil:F", mode="exec")  # an annotation: the reason why colons are replaced
