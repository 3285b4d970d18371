"""Data that lie elsewhere: a real S3 server on this machine, and one that fails in between."""

import contextlib
import functools
import http.client
import io
import itertools
import re
import threading
from dataclasses import asdict
from http.server import BaseHTTPRequestHandler, SimpleHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
import yaml
from PIL import Image

import ssl_lab as sl
from ssl_lab import flags
from ssl_lab.batch import Style
from ssl_lab.cli import WORDS, function, main
from ssl_lab.command_line import parse
from ssl_lab.config import OfARun
from ssl_lab.data import remote
from ssl_lab.data.pictures import find_pictures
from ssl_lab.data.remote import copied, is_address
from ssl_lab.errors import UsageError
from ssl_lab.predict import predict
from ssl_lab.report.finished import Finished

fsspec = pytest.importorskip("fsspec")


def photos(folder, classes=("cat", "dog"), each=6):
    """A folder of small images, each another one."""
    numbers = np.random.default_rng(0)
    for name in classes:
        (folder / name).mkdir(parents=True)
        for n in range(each):
            pixels = numbers.integers(0, 256, (12, 12, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{n}.png")
    return folder


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch):
    monkeypatch.setenv("SSL_LAB_DATA", str(tmp_path / "data"))
    monkeypatch.setattr(remote, "PAUSE", 0.0)
    yield
    fsspec.filesystem("memory").store.clear()
    fsspec.filesystem("memory").pseudo_dirs[:] = [""]


def in_memory(folder, root="memory://photos"):
    fsspec.filesystem("memory").put(str(folder) + "/", root, recursive=True)
    return root


def files_of(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# ---- what is copied


def test_a_pool_from_elsewhere_is_the_one_of_the_folder(tmp_path):
    here = photos(tmp_path / "photos")
    local, there = sl.load(here), sl.load(in_memory(here))
    assert (there.name, there.class_names, there.notes) == (local.name, local.class_names, local.notes)
    np.testing.assert_array_equal(there.truth, local.truth)
    np.testing.assert_array_equal(there.images.take(there.train), local.images.take(local.train))
    assert there.images.fingerprint() == local.images.fingerprint()
    assert there.split(labels=4).manifest() == local.split(labels=4).manifest()


@pytest.mark.parametrize("kind", ["csv", "tar", "pattern", "npz"])
def test_tables_shards_and_arrays(tmp_path, kind):
    here = photos(tmp_path / "photos")
    if kind == "csv":
        (here / "all.csv").write_text("path,label\n" + "".join(f"{c}/{n}.png,{c}\n" for c in ("cat", "dog")
                                                               for n in range(6)))
        local, address = here / "all.csv", f"{in_memory(here)}/all.csv"
    elif kind == "npz":
        np.savez(here / "all.npz", images=np.zeros((4, 8, 8), np.uint8), labels=[0, 1, 0, 1])
        local, address = here / "all.npz", f"{in_memory(here)}/all.npz"
    else:
        import io
        import tarfile

        folder = tmp_path / "shards"
        folder.mkdir()
        for shard in (0, 1):
            with tarfile.open(folder / f"part-{shard}.tar", "w") as tar:
                for name, n in itertools.product(("cat", "dog"), range(3 * shard, 3 * shard + 3)):
                    for suffix, content in (("png", (here / name / f"{n}.png").read_bytes()), ("cls", name.encode())):
                        member = tarfile.TarInfo(f"{name}{n}.{suffix}")
                        member.size = len(content)
                        tar.addfile(member, io.BytesIO(content))
        last = "part-0.tar" if kind == "tar" else "part-*.tar"
        local, address = folder / last, f"{in_memory(folder, 'memory://shards')}/{last}"
    one, other = sl.load(local), sl.load(address)
    np.testing.assert_array_equal(one.images.take(one.train), other.images.take(other.train))
    np.testing.assert_array_equal(one.truth, other.truth)
    assert other.class_names == one.class_names


def test_only_what_changed_is_copied_again(tmp_path, capsys):
    here = photos(tmp_path / "photos")
    address = in_memory(here)
    copy = copied(address)
    assert files_of(copy) == files_of(here)
    times = {path: path.stat().st_mtime_ns for path in copy.rglob("*.png")}
    assert "12 files of memory://photos" in capsys.readouterr().err
    assert copied(address) == copy
    assert capsys.readouterr().err == ""
    memory = fsspec.filesystem("memory")
    memory.pipe_file("/photos/cat/0.png", b"new")
    memory.rm("/photos/dog/5.png")
    copied(address)
    assert "1 files of memory://photos (0.0 MB) are copied" in (said := capsys.readouterr().err)
    assert "1 are not there any more" in said
    assert (copy / "cat" / "0.png").read_bytes() == b"new"
    assert not (copy / "dog" / "5.png").exists()
    assert all(path.stat().st_mtime_ns == times[path] for path in copy.rglob("*.png") if path.name != "0.png")


def test_a_model_predicts_images_from_elsewhere_by_their_addresses(tmp_path):
    found = find_pictures(in_memory(photos(tmp_path / "photos")))
    assert found.known == 12
    first = next(found.stream)
    assert first.name == "memory://photos/cat/0.png"
    assert first.content.read_bytes() == (tmp_path / "photos" / "cat" / "0.png").read_bytes()


def test_a_pattern_at_an_address_names_images_by_it(tmp_path):
    address = in_memory(photos(tmp_path / "photos"))
    assert [picture.name for picture in find_pictures(f"{address}/cat/[01].png").stream] == [
        "memory://photos/cat/0.png", "memory://photos/cat/1.png"]


def test_standard_input_has_all_that_a_path_may_be(tmp_path, monkeypatch):
    address, here = in_memory(photos(tmp_path / "photos")), tmp_path / "photos"
    (here / "dog" / "notes.txt").write_text("")
    lines = [f"{address}/cat/0.png", f"{here}/dog/1.png", "", f"{address}/dog/[23].png", f"{here}/dog",
             f"{address}/none.png", "none.png", f"{address}/cat"]
    monkeypatch.setattr("sys.stdin", io.StringIO("\n".join(lines)))
    found = find_pictures("-", data_dir=tmp_path / "copies")
    pictures = list(found.stream)
    dogs = [f"{here}/dog/{n}.png" for n in range(6)]
    assert [picture.name for picture in pictures] == [
        lines[0], lines[1], f"{address}/dog/2.png", f"{address}/dog/3.png", *dogs, lines[5], lines[6],
        *(f"{address}/cat/{n}.png" for n in range(6))]
    assert pictures[0].content.read_bytes() == (here / "cat" / "0.png").read_bytes()
    assert [str(picture.content) for picture in pictures[10:12]] == [
        f"there is nothing at {address}/none.png", "there is no file or folder none.png"]
    assert (found.known, dict(found.passed_over)) == (None, {".txt": 1})
    monkeypatch.setattr("sys.stdin", io.StringIO(address))
    refused, = find_pictures(["-"], remote_gb=1e-9, data_dir=tmp_path / "other").stream
    assert "at most 1e-09 are copied to this machine" in str(refused.content)


def test_an_audit_copies_no_more_than_it_may(tmp_path):
    with pytest.raises(UsageError, match="at most 1e-09 are copied to this machine; --remote-gb 1 allows it"):
        sl.audit(in_memory(photos(tmp_path / "photos")), remote_gb=1e-9)


@pytest.mark.parametrize("several", [False, True])
def test_what_a_model_reads_from_elsewhere_has_its_limit_and_its_place(tmp_path, several):
    address = in_memory(photos(tmp_path / "photos"))
    given = [address, address] if several else address
    with pytest.raises(UsageError, match="at most 1e-09 are copied to this machine; --remote-gb 1 allows it"):
        find_pictures(given, remote_gb=1e-9)
    assert find_pictures(given, data_dir=tmp_path / "here").known == 12 * (1 + several)
    assert (tmp_path / "here" / "remote").is_dir()


def test_every_word_that_reads_images_says_how_many_gigabytes_may_be_copied_and_where_to():
    taken = {word: {flag.name for flag in flags.of_function(function(word))} for words in WORDS.values()
             for word in words if word != "bench"}
    reading = {word for word, names in taken.items() if names & {"data", "paths"}}
    assert reading == {"train", "predict", "audit", "label", "advise", "find-lr", "report"}
    assert {word for word in reading if not {"data_dir", "remote_gb"} <= taken[word]} == set()


def test_predict_hands_them_on(tmp_path, monkeypatch):
    class AskedError(Exception):
        pass

    def found(paths, *others):
        raise AskedError(paths, *others)

    model = type("Model", (), {"card": type("Card", (), {"style": Style(channels=1)})})
    monkeypatch.setattr("ssl_lab.predict.models.open", lambda run, device, mirror: model)
    monkeypatch.setattr("ssl_lab.predict.find_pictures", found)
    with pytest.raises(AskedError) as asked:
        predict(tmp_path, ("s3://bucket/new",), data_dir=tmp_path, remote_gb=3.5)
    assert asked.value.args == (("s3://bucket/new",), 1, tmp_path, 3.5)


@pytest.mark.parametrize("given_flags", [(), ("--remote-gb=3.5", "--data-dir=here")])
@pytest.mark.parametrize("place", ["report", "a recipe that looks into a run"])
def test_images_of_a_run_are_copied_as_then_unless_flags_say_otherwise(tmp_path, monkeypatch, place, given_flags):
    given = {}

    def load(data, **reading):
        given.update(reading)
        raise UsageError("not today")

    (tmp_path / "config.yaml").write_text("data: s3://bucket/photos\nremote_gb: 30.0\ndata_dir: there\n")
    if place == "report":
        monkeypatch.setattr("ssl_lab.reporting.load", load)
        monkeypatch.setattr("ssl_lab.reporting.write_report", lambda *_: "report.html")
        main(["report", str(tmp_path), *given_flags])
    else:
        monkeypatch.setattr("ssl_lab.report.finished.load", load)
        stored = type("Stored", (), {"class_names": ("a",), "settings": yaml.safe_load(
            (tmp_path / "config.yaml").read_text()), "split": {}})
        monkeypatch.setattr("ssl_lab.report.finished.StoredRun.read", lambda folder: stored)
        monkeypatch.setattr("ssl_lab.report.finished.Card.read", lambda folder: type("Card", (), {"kind": "net"}))
        with pytest.raises(UsageError, match="not today"):
            Finished.of(parse(OfARun, [f"--start={tmp_path}", *given_flags]))
    assert (given["remote_gb"], str(given["data_dir"])) == ((3.5, "here") if given_flags else (30.0, "there"))


def test_what_was_copied_before_the_end_is_not_copied_again(tmp_path, monkeypatch):
    """One file cannot be read: the others wait for it, and the copy of before stays as it was until then."""
    here, memory = photos(tmp_path / "photos"), type(fsspec.filesystem("memory"))
    address = in_memory(here)
    copy, whole, asked, broken = copied(address), memory.cat_file, [], ["/photos/dog/5.png"]

    def cat_file(self, path, start=None, end=None, **given):
        asked.append(path)
        if path in broken:
            raise ConnectionError("the line went dead")
        return whole(self, path, start, end)

    monkeypatch.setattr(memory, "cat_file", cat_file)
    for path in here.rglob("*.png"):
        fsspec.filesystem("memory").pipe_file(f"/photos/{path.relative_to(here).as_posix()}", b"new")
    with pytest.raises(UsageError, match="in 5 tries: the line went dead"):
        copied(address)
    assert files_of(copy) == files_of(here)
    asked.clear()
    broken.clear()
    assert set(files_of(copied(address)).values()) == {b"new"}
    assert asked == ["/photos/dog/5.png"]


@pytest.mark.parametrize(("error", "kept"), [(ConnectionError("the line went dead"), True),
                                             (PermissionError("Access Denied"), False)])
def test_a_folder_that_cannot_be_listed_is_not_one_without_files(tmp_path, monkeypatch, capsys, error, kept):
    """Else its images would leave the copy without a word."""
    here, memory = photos(tmp_path / "photos"), type(fsspec.filesystem("memory"))
    address, whole = in_memory(here), memory.ls
    copy = copied(address)

    def ls(self, path, detail=True, **given):
        if path.rstrip("/").endswith("/dog"):
            raise error
        return whole(self, path, detail, **given)

    monkeypatch.setattr(memory, "ls", ls)
    if kept:
        assert copied(address) == copy
        assert re.search(r"cannot be reached \(the line went dead\); the copy of .* is taken", capsys.readouterr().err)
    else:
        with pytest.raises(UsageError, match="may not be read with the credentials in the environment"):
            copied(address)
    assert files_of(copy) == files_of(here)


def test_https_gives_one_file(tmp_path):
    here = photos(tmp_path / "photos", each=1)
    np.savez(here / "all.npz", images=np.zeros((4, 8, 8), np.uint8), labels=[0, 1, 0, 1])
    server = ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(here)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}"
    try:
        pool = sl.load(f"{address}/all.npz")
        with pytest.raises(UsageError, match=r"there is nothing at http://127.0.0.1:\d+/none.npz"):
            sl.load(f"{address}/none.npz")
        for several in ("photos", "all.csv", "{0..3}.tar"):
            with pytest.raises(UsageError, match=r"is not listed by http; give the address of one .tar or .npz file"):
                sl.load(f"{address}/{several}")
    finally:
        server.shutdown()
        server.server_close()
    np.testing.assert_array_equal(pool.truth, [0, 1, 0, 1])


# ---- what is refused


@pytest.mark.parametrize(("address", "words"), [
    ("s3://key:secret@bucket/photos", r"s3://bucket/photos: an address is recorded .* AWS_ACCESS_KEY_ID"),
    ("https://host/a.tar?X-Amz-Signature=secret", r"https://host/a.tar: an address is recorded"),
    ("memory://nothing", "there is nothing at memory://nothing"),
    ("carrier://pigeon", "carrier"),
])
def test_addresses_that_are_refused(address, words):
    with pytest.raises(UsageError, match=words) as caught:
        sl.load(address)
    assert "secret" not in str(caught.value)


def test_limits(tmp_path, monkeypatch):
    address = in_memory(photos(tmp_path / "photos"))
    with pytest.raises(UsageError, match=r"holds 0.0 GB in 12 files, and at most 1e-09 are .* --remote-gb 1 "):
        sl.load(address, remote_gb=1e-9)
    monkeypatch.setattr(remote, "MOST_FILES", 11)
    with pytest.raises(UsageError, match="more than 11 files; pack them into tar shards"):
        sl.load(address)
    monkeypatch.setattr(remote, "MOST_FILES", 12)
    monkeypatch.setattr(remote.shutil, "disk_usage", lambda path: type("Disk", (), {"free": 10}))
    with pytest.raises(UsageError, match=r"0.0 GB are free; --data-dir names another place"):
        sl.load(address)


def test_a_missing_package_is_named(tmp_path, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "fsspec", None)
    with pytest.raises(UsageError, match=r'fsspec, which is not installed: pip install "ssl_lab\[remote\]"'):
        sl.load("s3://bucket/photos")


def test_names_that_lead_out_of_the_copy_are_refused(monkeypatch):
    class Evil:
        def isfile(self, path):
            return False

        def ls(self, root, detail):
            return [{"name": f"{root}/../../x.png", "size": 1, "type": "file"}]

    with pytest.raises(UsageError, match="would lie outside of the copy"):
        remote._listed(Evil(), "/photos", "gs://photos", None)


def test_what_is_an_address():
    assert [is_address(each) for each in ("s3://a", "C:\\photos", "photos", "hf://datasets/a/b", 3)] == [
        True, False, False, True, False]


# ---- a real server, and one that fails


class Quiet(SimpleHTTPRequestHandler):
    """Serves a folder."""

    def log_message(self, *given):
        pass


class Faulty(BaseHTTPRequestHandler):
    """Passes requests on to the real server, but for the faults that are due: one is taken for each file asked for."""

    behind = 0
    faults: list[str] = []  # noqa: RUF012 (of the one server of a test)
    asked: list[str] = []  # noqa: RUF012

    def _pass_on(self):
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        connection = http.client.HTTPConnection("127.0.0.1", self.behind)
        connection.request(self.command, self.path, body, dict(self.headers))
        answer = connection.getresponse()
        content, status = answer.read(), answer.status
        is_file = self.command == "GET" and self.path.split("?")[0].endswith(".png")
        fault = self.faults.pop(0) if is_file and self.faults else ""
        if is_file:
            self.asked.append(self.headers.get("Range", ""))
        if fault == "503":
            content, status = b"<Error><Code>SlowDown</Code></Error>", 503
        if fault == "gone":
            content, status = b"<Error><Code>NoSuchKey</Code></Error>", 404
        if fault == "short":
            content = content[:50]
        self.send_response(status)
        for name, value in answer.getheaders():
            of_content = name.lower().startswith(("content-", "x-amz-checksum", "etag"))
            if name.lower() not in ("content-length", "transfer-encoding", "connection") and not (fault and of_content):
                self.send_header(name, value)
        length = answer.getheader("Content-Length", len(content)) if self.command == "HEAD" else len(content)
        self.send_header("Content-Length", str(length))
        self.end_headers()
        if fault == "cut":
            self.wfile.write(content[:40])
            self.close_connection = True
            self.connection.close()
        elif self.command != "HEAD":
            self.wfile.write(content)

    do_GET = do_PUT = do_HEAD = do_POST = do_DELETE = _pass_on  # noqa: N815

    def log_message(self, *given):
        pass


@pytest.fixture(scope="module")
def servers():
    moto = pytest.importorskip("moto.server")
    pytest.importorskip("s3fs")
    real = moto.ThreadedMotoServer("127.0.0.1", port=0, verbose=False)
    real.start()
    Faulty.behind = real.get_host_and_port()[1]
    before = ThreadingHTTPServer(("127.0.0.1", 0), Faulty)
    threading.Thread(target=before.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{before.server_port}", f"http://127.0.0.1:{Faulty.behind}"
    before.shutdown()
    before.server_close()
    real.stop()


@pytest.fixture
def bucket(servers, tmp_path, monkeypatch):
    """The address of twelve photos on S3, credentials in the environment."""
    for name, value in (("AWS_ACCESS_KEY_ID", "me"), ("AWS_SECRET_ACCESS_KEY", "hidden"),
                        ("AWS_ENDPOINT_URL", servers[0]), ("AWS_DEFAULT_REGION", "us-east-1"),
                        ("AWS_MAX_ATTEMPTS", "1")):
        monkeypatch.setenv(name, value)
    Faulty.faults[:], Faulty.asked[:] = [], []
    fsspec.get_filesystem_class("s3").clear_instance_cache()  # which would keep the endpoint of the test before
    system = fsspec.filesystem("s3", endpoint_url=servers[1], skip_instance_cache=True)
    if not system.exists("photos"):
        system.mkdir("photos")
        system.put(str(photos(tmp_path / "photos")) + "/", "photos/all", recursive=True)
    else:
        photos(tmp_path / "photos")
    return "s3://photos/all"


def test_training_from_s3_is_training_from_the_folder(bucket, tmp_path):
    hashes = []
    for data in (str(tmp_path / "photos"), bucket):
        pool = sl.load(data).split(labels=4, seed=0)
        net = sl.net("tiny_4", classes=pool.class_names, style=pool.style, seed=0)
        out = tmp_path / f"run-{len(hashes)}"
        sl.Trainer(steps=3, out=out, callbacks=[], device="cpu").fit(sl.FixMatch(net), pool, labeled=4, unlabeled=4)
        hashes.append((out / "model.safetensors").read_bytes())
        for file in out.iterdir():
            assert b"hidden" not in file.read_bytes()
    assert hashes[0] == hashes[1]


@pytest.mark.parametrize("faults", [["503"] * 3, ["cut"] * 3, ["short"] * 3, ["503", "cut", "short", "cut"]])
def test_a_server_that_fails_now_and_then(bucket, tmp_path, faults):
    Faulty.faults[:] = faults
    assert files_of(copied(bucket)) == files_of(tmp_path / "photos")
    assert Faulty.faults == []


def test_what_was_read_of_a_file_is_not_asked_for_again(tmp_path, monkeypatch):
    """Nor after the process ended: each call breaks off after 50 bytes, and each try after two calls."""
    address, asked = in_memory(photos(tmp_path / "photos", classes=("cat", "dog"), each=1)), []
    whole = type(fsspec.filesystem("memory")).cat_file

    def cut(self, path, start=None, end=None, **given):
        asked.append((path, start))
        if len([each for each in asked if each[0] == path]) % 3 == 0:
            raise ConnectionError("the line went dead")
        return whole(self, path, start, end)[:50]

    monkeypatch.setattr(type(fsspec.filesystem("memory")), "cat_file", cut)
    with pytest.raises(UsageError, match=r"in 5 tries: the line went dead\. The same command goes on"):
        copied(address)
    for _ in range(3):
        with contextlib.suppress(UsageError):
            copied(address)
    assert files_of(copied(address)) == files_of(tmp_path / "photos")
    read = [start for path, start in asked if path == "/photos/cat/0.png"]
    assert sorted(set(read)) == list(range(0, max(read) + 1, 50))
    assert len(read) < 2 * len(set(read))


def test_a_server_that_always_fails_is_named_and_goes_on_later(bucket, tmp_path):
    Faulty.faults[:] = ["503"] * 1000
    with pytest.raises(UsageError, match=r"could not be copied in 5 tries: .* The same command goes on"):
        copied(bucket)
    Faulty.faults.clear()
    assert files_of(copied(bucket)) == files_of(tmp_path / "photos")


def test_a_key_that_vanishes(bucket):
    Faulty.faults[:] = ["gone"] * 100
    with pytest.raises(UsageError, match=r"photos/all/.* went away while it was copied; start again"):
        copied(bucket)


def test_no_bucket_and_no_credentials(bucket, monkeypatch, tmp_path):
    for address in ("s3://nowhere", "s3://nowhere/photos", "s3://nowhere/photos/*.png", "s3://photos/none"):
        with pytest.raises(UsageError, match=f"there is nothing at {address.partition('/*')[0]}$"):
            copied(address)
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    for name in ("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"):
        monkeypatch.setenv(name, str(tmp_path / "none"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    fsspec.get_filesystem_class("s3").clear_instance_cache()
    with pytest.raises(UsageError, match="s3://photos/all may not be read with the credentials in the environment"):
        copied(bucket)


def test_a_listing_ends_where_it_is_too_long(bucket, monkeypatch):
    """Whatever follows is not asked for: of ten million keys that would take an hour, and their memory."""
    asked = []
    find = fsspec.get_filesystem_class("s3").find

    def counted(self, *given, **named):
        asked.append(find(self, *given, **named))
        return asked[-1]

    monkeypatch.setattr(fsspec.get_filesystem_class("s3"), "find", counted)
    monkeypatch.setattr(remote, "MOST_FILES", 5)
    with pytest.raises(UsageError, match="s3://photos/all holds more than 5 files; pack them into tar shards"):
        copied(bucket)
    assert [len(found) for found in asked] == [6]


def test_a_whole_copy_is_taken_where_nothing_can_be_reached(bucket, tmp_path, monkeypatch, capsys):
    copied(bucket)
    capsys.readouterr()
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    fsspec.get_filesystem_class("s3").clear_instance_cache()
    assert files_of(copied(bucket)) == files_of(tmp_path / "photos")
    said = capsys.readouterr().err
    assert re.search(r"s3://photos/all cannot be reached \(.*\); the copy of 20\d\d-.* is taken", said)
    with pytest.raises(UsageError, match="cannot be reached"):
        copied("s3://photos/all/cat")


def test_a_listing_holds_no_credentials(bucket):
    listing = (copied(bucket).parent / remote.LISTING).read_text()
    assert "hidden" not in listing
    assert set(asdict(remote.Remote("", "", 0, ""))) == {"name", "path", "size", "mark"}
