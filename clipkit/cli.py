"""The ``clipkit`` command. A verb imports what it needs when it is called, so ``clipkit --help`` is instant."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass

from clipkit.errors import ClipkitError, did_you_mean, exit_status


@dataclass(frozen=True)
class Verb:
    """A command: its line in the help, and the function that runs it on the remaining arguments."""

    summary: str
    run: Callable[[list[str]], int]


def _train(arguments: list[str]) -> int:
    from clipkit.train import main

    return main(arguments)


def _verify_gradients(arguments: list[str]) -> int:
    from clipkit.verify import main

    return main(arguments)


def _prepare(arguments: list[str]) -> int:
    from data_prep.__main__ import main

    return main(arguments) or 0


def _filter(arguments: list[str]) -> int:
    from data_prep.filtering import main

    return main(arguments)


def _doctor(arguments: list[str]) -> int:
    from data_prep.doctor import main

    return main(arguments)


def _stream(arguments: list[str]) -> int:
    from clipkit import stream_command

    return stream_command.run(arguments)


def _explain(arguments: list[str]) -> int:
    from clipkit import explain_command

    return explain_command.run(arguments)


def _demo(arguments: list[str]) -> int:
    from demos.__main__ import main

    return main(arguments) or 0


def _command(name: str) -> Callable[[list[str]], int]:
    def run(arguments: list[str]) -> int:
        from clipkit import commands

        return commands.run(name, arguments)

    return run


VERBS = {
    "train": Verb("train a model (also: accelerate launch clipkit/train.py)", _train),
    "prepare": Verb("turn pictures and captions into WebDataset shards", _prepare),
    "filter": Verb("hide samples of prepared shards by their scores, and bring them back", _filter),
    "doctor": Verb("look for what is wrong with data, or with training on them", _doctor),
    "stream": Verb("show the order in which training reads shards, and how fast", _stream),
    "explain": Verb("draw what a method compares in a batch, and what differs between two", _explain),
    "evaluate": Verb("measure a model: retrieval, zero-shot, probes, few labels, sentences", _command("evaluate")),
    "index": Verb("index a folder of pictures", _command("index")),
    "search": Verb("find pictures by words or by a picture", _command("search")),
    "classify": Verb("name pictures with labels of your own", _command("classify")),
    "calibrate": Verb("make the probabilities of classify mean what they say", _command("calibrate")),
    "match": Verb("match pictures with captions", _command("match")),
    "embed": Verb("write embeddings of pictures or lines of text", _command("embed")),
    "verify-gradients": Verb("compare this cluster's gradients with one process's", _verify_gradients),
    "demo": Verb("open the web demo", _demo),
}


def main(arguments: list[str] | None = None) -> int:
    """Run a verb; returns the exit status: 0, or 2 after a message of one line."""
    return exit_status(lambda: _dispatch(sys.argv[1:] if arguments is None else arguments))


def _dispatch(arguments: list[str]) -> int:
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(_help())
        return 0
    if arguments[0] in ("-V", "--version"):
        from clipkit import __version__

        print(f"clipkit {__version__}")
        return 0
    name = arguments[0]
    if name not in VERBS:
        hint = did_you_mean(name, list(VERBS)) or f"; the verbs are {', '.join(VERBS)}"
        raise ClipkitError(f"no verb is called {name!r}{hint}")
    return VERBS[name].run(arguments[1:])


def entry() -> None:
    """The console script."""
    sys.exit(main())


def _help() -> str:
    lines = ["usage: clipkit VERB ...", "", "Image-text alignment: train, measure and use your own models.", ""]
    lines += [f"  {name:17}{verb.summary}" for name, verb in VERBS.items()]
    return "\n".join([*lines, "", "clipkit VERB --help explains a verb."])


if __name__ == "__main__":
    entry()
