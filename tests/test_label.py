"""The labeling page: what it keeps, who may ask it, and keys that are really pressed in a browser."""

import json
import os
import signal
import socket
import sys
import threading
import time
import urllib.error
import urllib.request
from contextlib import closing, contextmanager, suppress
from pathlib import Path

import numpy as np
import pytest
from forked import forked
from small_runs import digit_files, finish

import ssl_lab as sl
from ssl_lab.active.plugins import make_query
from ssl_lab.data import Pool
from ssl_lab.errors import UsageError
from ssl_lab.intervals import wilson
from ssl_lab.label.server import Server, free_port
from ssl_lab.label.session import Session, Thought
from ssl_lab.label.thinker import Thinker

CHROMIUM = Path("/usr/bin/chromium")
KEYS = int(os.environ.get("SSL_LAB_KEYS", "12"))  # pressed in a browser; 100 take a minute


def pool_of(labels) -> Pool:
    """Images of one value each: the embedding of row i is (i, 1)."""
    labels = np.array(labels)
    pixels = np.repeat(np.arange(len(labels), dtype=np.uint8), 64).reshape(-1, 1, 8, 8)
    return Pool.from_arrays(pixels, labels, class_names=["ant", "bee"])


@pytest.fixture
def session(tmp_path):
    pool = pool_of([0, 1, *[-1] * 8])
    angles = np.arange(10) / 10
    return Session(pool, tmp_path, np.column_stack([np.cos(angles), np.sin(angles)]).astype(np.float32))


def again(session: Session) -> Session:
    """As it is after a kill."""
    return Session(pool_of([0, 1, *[-1] * 8]), session.folder, session.embeddings)


def labels_of(session: Session) -> list[int]:
    return session.pool.labels.tolist()


# What is kept

def test_an_answer_is_on_the_disk_when_it_returns(session):
    session.answer("ann", [4], "bee")
    session.answer("ann", [5, 6], "ant")
    session.answer("bob", [7], -2)
    assert labels_of(again(session)) == labels_of(session) == [0, 1, -1, -1, 1, 0, 0, -2, -1, -1]


def test_a_new_class_stays_with_its_name(session):
    session.answer("ann", [4], "  wasp ")
    session.answer("bob", [5], "wasp")
    assert again(session).pool.class_names == session.pool.class_names == ("ant", "bee", "wasp")
    assert labels_of(again(session))[4:6] == [2, 2]


def test_undo_takes_back_the_own_last_answer_also_after_a_kill(session):
    session.answer("ann", [4], "bee")
    session.answer("ann", [4, 5], "ant")
    session.answer("bob", [6], "bee")
    session = again(session)
    assert session.undo("ann") == [4, 5]
    assert labels_of(session)[4:7] == [1, -1, 1]
    assert session.undo("ann") == [4]
    assert session.undo("ann") == []
    assert labels_of(again(session))[4:7] == [-1, -1, 1]


def test_an_answer_that_is_sent_again_counts_once(session):
    session.answer("ann", [4], "bee")
    session = again(session)  # killed after it was written, and before it said so
    session.answer("ann", [4], "bee", retry=True)
    assert session.undo("ann") == [4]
    assert session.undo("ann") == []


def test_two_sessions_lose_nothing(session):
    other = again(session)
    session.answer("ann", [4], "bee")
    other.answer("bob", [5], "ant")
    session.answer("ann", [6], "ant")
    assert labels_of(again(session))[4:7] == [1, 0, 0]


@pytest.mark.parametrize("label", ["", "  ", None, -1])
def test_an_empty_answer_is_refused(session, label):
    with pytest.raises(UsageError, match="a label is missing"):
        session.answer("ann", [4], label)


# What comes next

def test_the_order_of_the_query_comes_first_and_then_all_others(session):
    session.thought = Thought(order=(8, 3, 0))  # 0 has a label
    found = session.next("ann", 20)
    assert found[:2] == [8, 3]
    assert sorted(found) == list(range(2, 10))


def test_nobody_is_given_what_another_one_holds(session):
    first = session.next("ann", 3)
    assert not set(first) & set(session.next("bob", 20))
    assert not set(first) & set(session.next("ann", 2, besides=first))


def test_what_is_skipped_comes_last(session):
    row = session.next("ann")[0]
    session.skip("ann", row)
    assert row not in session.next("ann", 20)
    session.answer("ann", [other for other in range(2, 10) if other != row], "bee")
    assert session.next("ann") == [row]


def test_when_all_are_labeled_nothing_comes(session):
    session.answer("ann", list(range(2, 10)), "bee")
    assert session.next("ann", 3) == session.next("bob") == []


def test_a_share_is_given_to_a_second_person_and_agreement_is_counted(session):
    session.twice = 0.5
    session.answer("ann", [2, 3, 4, 5], "ant")
    given = session.next("bob", 20)
    assert {2, 3, 4, 5} <= set(given)
    assert len(set(given[:4]) & {2, 3, 4, 5}) == 2  # half of them
    session.answer("bob", [2], "ant")
    session.answer("bob", [3], "bee")
    progress = session.progress("bob")
    assert (progress["both"], progress["agree"], progress["mine"]) == (2, 1, 2)
    session.undo("bob")
    assert session.progress("bob")["both"] == 1


def test_images_are_dealt_out_to_those_who_know_them(tmp_path):
    pool = pool_of([0, 1, *[-1] * 58])
    x = np.arange(60) / 60
    session = Session(pool, tmp_path, np.column_stack([np.cos(x), np.sin(x)]), annotators=("ann", "bob"))
    assert session.dealt() == {}
    session.thought = Thought(order=(30, 31, 32, 33))
    assert [session.next(who, 4)[:2] for who in ("ann", "bob")] == [
        [row for row, owner in session.dealt().items() if owner == who] for who in ("ann", "bob")]
    for row in range(2, 26):  # ann knows ants alone, bob bees alone, eve both
        truth = "ant" if row % 2 else "bee"
        for who, said in (("eve", truth), ("ann", "ant"), ("bob", "bee")):
            session.answer(who, [row], said)
    probs = np.full((60, 2), 0.5, dtype=np.float32)
    probs[[40, 42]], probs[[41, 43]] = (0.95, 0.05), (0.05, 0.95)
    session.thought = Thought(probs=probs, order=(40, 41, 42, 43))
    assert session.dealt() == {40: "ann", 41: "bob", 42: "ann", 43: "bob"}
    assert session.next("bob", 4)[:2] == [41, 43]
    assert session.next("ann", 4)[:2] == [40, 42]
    assert not {41, 43} & set(session.next("ann", 60))  # bob's page has them
    assert Session(pool, tmp_path / "b", session.embeddings, annotators=("ann",)).next("eve", 58)
    with pytest.raises(UsageError, match="different names"):
        Session(pool, tmp_path / "c", session.embeddings, annotators=("ann", "ann"))


def test_similar_images_are_the_nearest_without_a_label(session):
    assert session.similar(5, 4) == [4, 6, 3, 7]
    session.answer("ann", [4], "bee")
    assert session.similar(5, 3) == [6, 3, 7]


def test_guesses_are_the_models_probabilities(session):
    session.thought = Thought(probs=np.array([[0.2, 0.8]] * 10, dtype=np.float32))
    assert session.guess(5) == [("bee", pytest.approx(0.8)), ("ant", pytest.approx(0.2))]


def test_the_model_is_fitted_to_the_labels_and_chooses(digits, tmp_path):
    train = digits.images.take(digits.train).flatten(1).numpy().astype(np.float32)
    session = Session(digits, tmp_path, train)
    with closing_thinker(Thinker(session, make_query("margin"), make_query("typiclust"), every=3)) as thinker:
        wait_until(lambda: session.thought.labels == 10)
        assert len(session.thought.order) == thinker.ahead
        guessed = session.thought.probs.argmax(axis=1)
        assert (guessed == digits.truth[digits.train]).mean() > 0.4  # one label a class
        rows = session.next("ann", 20)
        for row in rows:
            session.answer("ann", [row], str(digits.truth[row]))
        wait_until(lambda: session.thought.labels >= 28)
    share, low, high = session.progress()["accuracy"]
    assert 0 <= low < share < high <= 1


@pytest.mark.parametrize(("query", "first", "match"), [
    ("bald", "typiclust", "bald needs mc_probs"), ("margin", "margin", "before two classes are known")])
def test_a_query_of_other_arrays_is_refused(session, query, first, match):
    with pytest.raises(UsageError, match=match):
        Thinker(session, make_query(query), make_query(first))


@pytest.mark.parametrize(("right", "total", "low", "high"), [(8, 10, 0.4902, 0.9433), (0, 10, 0, 0.2775), (0, 0, 0, 1)])
def test_wilsons_interval(right, total, low, high):
    assert wilson(right, total) == pytest.approx((low, high), abs=1e-4)


# Who may ask

@contextmanager
def serving(session):
    server = Server(session, 18765)
    thread = threading.Thread(target=lambda: server.serve_forever(poll_interval=0.01), daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def server(session):
    with serving(session) as server:
        yield server


def ask(url: str, body: object = None, **headers: str):
    """(status, what came back)."""
    data = None if body is None else json.dumps(body).encode()
    headers = {"Content-Type": "application/json"} | {key.replace("_", "-"): value for key, value in headers.items()}
    try:
        with urllib.request.urlopen(urllib.request.Request(url, data, headers)) as reply:
            content = reply.read()
            return reply.status, json.loads(content) if reply.headers["Content-Type"] == "application/json" else content
    except urllib.error.HTTPError as error:
        with error:
            return error.code, json.loads(error.read())


ANSWER = {"me": "ann", "rows": [4], "label": "bee"}


def test_it_answers_its_page(server, session):
    status, page = ask(server.url)
    assert status == 200
    assert b"<title>Label</title>" in page
    status, news = ask(server.url + "state?me=ann")
    assert [item["row"] for item in news["items"]] == session.next("ann", 4)
    status, news = ask(server.url + "answer", ANSWER | {"have": [5]})
    assert (status, news["progress"]["labeled"], session.pool.labels[4]) == (200, 3, 1)
    assert not {4, 5} & {item["row"] for item in news["items"]}
    assert news["first"]["row"] == 5
    assert ask(server.url + "image/4")[1][:4] == b"\x89PNG"
    assert ask(server.url + "undo", {"me": "ann"})[1]["undone"][0]["row"] == 4


@pytest.mark.parametrize("change", [
    lambda url: url.replace(url.split("/")[3], "guess"), lambda url: url.replace(url.split("/")[3], ""),
    lambda url: url + "../../etc/passwd", lambda url: url + "image/../../x", lambda url: url + "image/99999",
    lambda url: url + "page.html"])
def test_nothing_else_is_there(server, change):
    assert ask(change(server.url))[0] in (403, 404)


@pytest.mark.parametrize("headers", [
    {"Host": "evil.example"}, {"Origin": "http://evil.example"}, {"Origin": "null"}, {"Content_Type": "text/plain"}])
def test_other_pages_cannot_write(server, session, headers):
    status, refusal = ask(server.url + "answer", ANSWER, **headers)
    assert status in (403, 415)
    assert refusal["error"]
    assert session.pool.labels[4] == -1


@pytest.mark.parametrize("body", [
    {}, [], {"me": "ann"}, ANSWER | {"rows": []}, ANSWER | {"rows": [999]}, ANSWER | {"rows": ["x"]},
    ANSWER | {"label": 1}, ANSWER | {"label": ""}, ANSWER | {"me": ""},
    ANSWER | {"me": "split"}, ANSWER | {"rows": [4, 4]}])
def test_what_is_no_answer_is_refused_with_a_word(server, session, body):
    before = labels_of(session)
    status, refusal = ask(server.url + "answer", body)
    assert status in (400, 422)
    assert refusal["error"]
    assert labels_of(session) == before


def test_it_listens_to_this_machine_alone(server):
    assert server.server_address[0] == "127.0.0.1"


def test_a_busy_port_is_passed_over():
    with socket.socket() as busy:
        busy.bind(("127.0.0.1", 0))
        busy.listen()
        assert free_port(busy.getsockname()[1]) > busy.getsockname()[1]


# Keys

@pytest.fixture
def unlabeled(tmp_path):
    """A folder of digits without labels."""
    folder = tmp_path / "images"
    folder.mkdir()
    for number, (content, label) in enumerate(digit_files(130)):
        (folder / f"{label}-{number}.png").write_bytes(content)
    return folder


@pytest.fixture
def serve(unlabeled, tmp_path):
    """Starts `ssl-lab label` on the folder; (process, the page's address) once it is there."""
    started = []

    def begin():
        process = forked("-c", "from ssl_lab.cli import main; main()", "label", unlabeled, "--out", tmp_path / "labels",
                         "--data-dir", tmp_path / "data", "--port", 18800, "--device", "cpu", PYTHONUNBUFFERED="1")
        started.append(process)
        for line in process.stdout:
            if line.startswith("Open "):
                return process, line.split()[1]
        raise AssertionError(process.communicate()[1])

    yield begin
    for process in started:
        process.kill()
        process.communicate()


@pytest.mark.skipif(not CHROMIUM.exists(), reason="needs Debian's chromium")
def test_each_key_is_a_label_though_the_server_is_killed_twice(serve, unlabeled, tmp_path):
    playwright = pytest.importorskip("playwright.sync_api", reason="needs pip install 'ssl_lab[browser]'")
    process, url = serve()
    pressed: dict[str, str] = {}
    with playwright.sync_playwright() as browsers, closing(browsers.chromium.launch(
            executable_path=CHROMIUM, args=["--no-sandbox"])) as browser:
        page = browser.new_page()
        problems = []
        page.on("pageerror", lambda error: problems.append(error))
        page.goto(url + "?me=ann")
        for number in range(KEYS):
            file = page.locator("#caption")
            playwright.expect(file).not_to_be_empty()
            name = file.inner_text()
            label = name[0]
            classes = page.locator(".class .name").all_inner_texts()
            if number in (KEYS // 3, KEYS // 2):
                process.kill()
                process.communicate()
            if label in classes:
                page.keyboard.press(label)
            else:
                page.keyboard.press("n")
                page.keyboard.type(label)
                page.keyboard.press("Enter")
            if number in (KEYS // 3, KEYS // 2):
                playwright.expect(page.locator("#foot")).to_contain_text("The server is away")
                process, again_at = serve()
                assert again_at == url
            pressed[name] = label
            playwright.expect(file).not_to_have_text(name)
        playwright.expect(page.locator("#facts")).to_contain_text(f"{KEYS} of 130 labeled")
        assert not problems
    process.send_signal(signal.SIGINT)
    status, out, err = finish(process)
    assert (status, f"{KEYS} labels in" in out) == (0, True), (out, err)
    assert err.startswith("images: 0 classes, 0 labeled, 130 unlabeled"), err
    assert all(line.startswith("note: ") for line in err.splitlines()[1:]), err
    session = Session(sl.load(unlabeled, tmp_path / "data"), tmp_path / "labels", np.zeros((130, 1), np.float32))
    pool = session.pool
    assert {pool.files[row]: pool.class_names[pool.labels[row]] for row in pool.labeled} == pressed


@pytest.mark.skipif(not CHROMIUM.exists(), reason="needs Debian's chromium")
def test_of_a_thousand_classes_one_is_found_by_typing(tmp_path):
    """The list holds those that the model, and the labeler's last answers, make likely; typing narrows it."""
    playwright = pytest.importorskip("playwright.sync_api", reason="needs pip install 'ssl_lab[browser]'")
    names = [f"{kind} {number:03}" for kind in ("ant", "Bee", "cow", "dog") for number in range(250)]
    pool = sl.Pool.from_arrays(np.random.default_rng(0).integers(0, 256, (1010, 4, 4), dtype=np.uint8),
                               [*range(1000), *[-1] * 10], class_names=names).split(seed=0)
    session = Session(pool, tmp_path / "labels", np.eye(len(pool.train), 4, dtype=np.float32))
    probs = np.full((len(pool.train), 1000), 1e-4, np.float32)
    probs[:, names.index("dog 249")] = 0.6
    session.thought = Thought(10, probs, tuple(pool.train[pool.labels[pool.train] < 0].tolist()))
    with serving(session) as server, playwright.sync_playwright() as browsers, closing(browsers.chromium.launch(
            executable_path=CHROMIUM, args=["--no-sandbox"])) as browser:
        page = browser.new_page(viewport={"width": 390, "height": 800})
        problems = []
        page.on("pageerror", lambda error: problems.append(error))
        page.goto(server.url + "?me=ann")
        listed, file = page.locator(".class .name"), page.locator("#caption")
        pressed = {"1", "2", "n", "Enter", "Shift+Enter", "ArrowDown"}

        def said(*keys):
            before = file.inner_text()
            for key in keys:
                (page.keyboard.press if key in pressed else page.keyboard.type)(key)
            playwright.expect(file).not_to_have_text(before)
            return session.pool.class_names[session.pool.labels[session.pool.ledger.entries[-1].indices[0]]]

        playwright.expect(listed.first).to_have_text("dog 249")
        assert listed.count() == 60
        playwright.expect(page.locator(".more")).to_contain_text("940 more")
        assert said("1") == "dog 249"
        assert said("n", "bee 24", "Enter") == "Bee 240"
        assert said("2") == "Bee 240"  # said before
        assert said("n", "17 cow", "ArrowDown", "Enter") == "cow 117"
        assert said("n", "COW 2", "Shift+Enter") == "COW 2"
        assert said("n", "emu", "Enter") == "emu"
        assert page.evaluate("document.documentElement.scrollWidth") == 390
        assert not problems


@pytest.mark.skipif(sys.platform != "linux", reason="counts this process's threads")
def test_a_browser_that_goes_away_is_no_news(server, capsys):
    with socket.create_connection(server.server_address) as one:
        host = f"127.0.0.1:{server.server_address[1]}"
        one.sendall(f"GET /{server.token}/state?me=x HTTP/1.1\r\nHost: {host}\r\n".encode())
    assert ask(server.url + "state?me=ann")[0] == 200
    assert capsys.readouterr() == ("", "")


def wait_until(true) -> None:
    for _ in range(3000):
        if true():
            return
        time.sleep(0.01)
    raise AssertionError("it did not come true in half a minute")


class closing_thinker:  # noqa: N801
    """A thinker within a block."""

    def __init__(self, thinker: Thinker) -> None:
        self.thinker = thinker

    def __enter__(self) -> Thinker:
        self.thinker.start()
        return self.thinker

    def __exit__(self, *failure: object) -> None:
        self.thinker.end()
        with suppress(RuntimeError):
            self.thinker.join(60)


def test_its_files_are_in_the_package():
    assert (Path(os.path.dirname(sl.__file__)) / "label" / "page.html").exists()
