"""`ssl-lab label`: from data to the page, and back to the terminal."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import tyro

from ssl_lab.active.people.answers import read_json
from ssl_lab.active.people.carry import carried
from ssl_lab.active.plugins import make_query
from ssl_lab.config import AS_USUAL, ReadingSettings
from ssl_lab.data import announce, load
from ssl_lab.data.files import data_folder
from ssl_lab.engine import Runtime
from ssl_lab.engine.folder import alone_in
from ssl_lab.features import FeatureStore
from ssl_lab.files import write_text
from ssl_lab.label.server import Server
from ssl_lab.label.session import Session
from ssl_lab.label.thinker import Thinker
from ssl_lab.nets import net as named
from ssl_lab.nets.start import start_net


def label(data: Annotated[str, tyro.conf.Positional], query: str = "typiclust", first_query: str = "typiclust",
          model: str | None = None, net: str = "pixels", weights: Path | None = None, pretrained: bool = False,
          out: Path | None = None, port: int = 8765, twice: float = 0.0, annotators: tuple[str, ...] = (),
          read: Annotated[ReadingSettings, tyro.conf.OmitArgPrefixes] = AS_USUAL, seed: int = 0,
          device: str = "auto") -> None:
    """Label images in a browser, with a keyboard; the next image is chosen by a query, its class guessed by a model.

    The page is for this machine alone. Each answer is on the disk before the next image shows; started again, the same
    command goes on. Several people may label at once, each with a name.

    Args:
        data: folder of images, CSV of path,label, the name of a data set, or package.module:Mine.
        query: what chooses the images (see `ssl-lab list queries`): one of embeddings and probabilities.
        first_query: the same, while fewer than two classes are known.
        model: folder of a run whose net sees the images, or lite0; its features are what images are compared by.
        net: the same, of a net by name (see `ssl-lab list nets`).
        weights: of that net, from this file.
        pretrained: its published weights.
        out: folder of the labels (default: runs/label-NAME).
        port: of the page; if another program has it, the next free one.
        twice: share of images that are given to a second person, to see how far people agree.
        annotators: names of those who will label: the images are dealt out among them, each to who knows such images
            best, as far as images that several have labeled (--twice) tell.
        read: how images are listed and read.
        seed: of the query.
        device: cpu, cuda, or auto.
    """
    pool = load(data, **read.reading(net=model or net))
    announce(pool)
    folder = out or Path("runs") / f"label-{pool.name}"
    classes = max(2, pool.classes)
    eye = (start_net(model, classes, pool.style) if model else
           named(net, classes, pool.style, pretrained=pretrained, weights=weights, seed=seed))
    with alone_in(folder):
        pool, _ = carried(pool, folder)
        store = FeatureStore.build(eye, pool, data_folder(read.data_dir) / "features", Runtime.start(device))
        session = Session(pool, folder, store.features[pool.train], twice, annotators)
        before = read_json(folder / "server.json", {})
        server = Server(session, before.get("port", port), before.get("token"))
        write_text(folder / "server.json", json.dumps({"port": server.server_address[1], "token": server.token}) + "\n")
        thinker = Thinker(session, make_query(query), make_query(first_query), ahead=max(30, 10 * len(annotators)),
                          seed=seed)
        thinker.start()
        if annotators and not twice:
            print("note: images are dealt out evenly: how reliable each person is, only images tell that several have "
                  "labeled (--twice 0.1)", file=sys.stderr)
        print(f"{len(pool.train)} images to label, {len(session.pool.labeled)} labeled so far, in {folder}\n"
              f"Open {server.url}\nCtrl-C ends it; the same command goes on.")
        try:
            server.serve_forever(poll_interval=0.1)
        except KeyboardInterrupt:
            print(f"\n{len(session.pool.labeled)} labels in {folder}. Take them along:\n"
                  f"  ssl-lab labels {folder} --to labels.csv")
        finally:
            server.server_close()
            thinker.end()
            thinker.join(20)  # a thread that is cut off within native code aborts the process
