"""The `ssl-lab` command: its words, of which each is a thin call of a function that code can call too."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence

import ssl_lab
from ssl_lab.errors import unknown
from ssl_lab.exits import exit_with_status
from ssl_lab.flags import HELP, overview, width_here
from ssl_lab.signatures import announced

WORDS: Mapping[str, Mapping[str, tuple[str, str]]] = {
    "the first day": {
        "quickstart": ("words:quickstart", "From ten labels to a model in use, on data that comes with it, in minutes"),
        "fetch": ("fetch:fetch", "Brings public data sets and pretrained nets to this machine, verified"),
        "train": ("train:train", "The best classifier that these labels allow, in so many minutes, as a run"),
        "predict": ("predict:predict", "The classes of new images by a finished run"),
        "audit": ("auditing.command:audit_command",
                  "What is wrong with a data set: labels, duplicates, leaks, odd images"),
        "label": ("label.command:label", "A page on this machine to label images with a keyboard, the next by a query"),
        "labels": ("active.people.leaving:labels", "Takes labels along: a CSV of path,label,source,when"),
    },
    "a closer look": {
        "advise": ("advise:advise", "Which way to train on this data with so many labels, by cross-validation"),
        "runs": ("runs:runs", "What the runs of a study are doing: done, running and until when, failed and why"),
        "report": ("reporting:report", "Writes the page of a run again: what it learned, where it errs"),
        "find-lr": ("find_lr:find_lr",
                    "Which learning rate to take: a test of rising rates, a picture and a number"),
        "export": ("export:export", "Writes a run's net for timm, ONNX or TorchScript, and checks it"),
        "query": ("active.command:query_command", "Chooses images to label next from your own arrays"),
    },
    "what is here": {
        "list": ("words:list_", "Methods, techniques, queries, views, nets, data sets and recipes, with their papers"),
        "bench": ("bench:", "Times steps, nets, views or queries on this machine"),
        "cache": ("words:cache", "What is kept on disk to start faster, and how to remove it"),
        "env": ("words:env", "Versions, the device, and which precision is picked here and why; --version: its own"),
    },
}
"""The words by title: where each lies, which is imported when it is called, and what it does."""
BENCH: Mapping[str, str] = {word: f"bench.{word}:bench_{word}" for word in ("step", "nets", "views", "query")}
"""The words of `ssl-lab bench`, and where each lies."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point of `ssl-lab`. What takes time to be imported is imported only when it is asked for."""
    argv = list(sys.argv[1:] if arguments is None else arguments)
    exit_with_status(lambda: _run(argv))


def _run(argv: list[str]) -> None:
    word = argv[0] if argv else "--help"
    if word == "--version":
        print(f"ssl_lab {ssl_lab.__version__}")
    elif word in HELP:
        said = {title: {name: does for name, (_, does) in words.items()} for title, words in WORDS.items()}
        print(overview("ssl-lab", said, width_here()))
    else:
        from ssl_lab import command_line

        if word == "bench":
            words = {name: announced(place) for name, place in BENCH.items()}
            command_line.run_command(words, "ssl-lab bench", argv[1:])
        else:
            command_line.run_command({word: function(word)}, "ssl-lab", argv)


def function(word: str) -> Callable[..., object]:
    """What a word calls. UsageError, with the nearest ones, for one that there is not."""
    places = {name: place for words in WORDS.values() for name, (place, _) in words.items()}
    if word not in places:
        raise unknown("word", word, places, "`ssl-lab --help` explains them.")
    return announced(places[word])


if __name__ == "__main__":  # under torchrun, which starts modules
    main()
