"""``python -m demos`` and ``clipkit demo``: which model, which pictures, which address."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

import tyro

from clipkit.errors import ClipkitError, exit_status
from clipkit.inference import Aligner, Index, load
from clipkit.inference.calibration import SavedCalibration, read_calibration
from clipkit.model_option import DEFAULT_RUN
from clipkit.search_commands import folder_index
from clipkit.training.console import Console

CALIBRATION = "calibration.json"
INDEX = "index"  # the folder of a run that holds the index of its held-out pictures


@dataclass(frozen=True)
class Demo:
    """Open a page to search, match and classify pictures with a model."""

    run: tyro.conf.Positional[str] = DEFAULT_RUN
    """Run directory, or whatever else `clipkit search --model` takes."""
    folder: Path | None = None
    """Folder of pictures to search. Default: the pictures that the run was tested on."""
    index: Path | None = None
    """Index made by `clipkit index`, instead of a folder."""
    calibration: Path | None = None
    """File made by `clipkit calibrate`, for the classify page. Default: calibration.json of the run, if it has one."""
    pretrained: str | None = None
    """Weights, for open_clip names."""
    device: str | None = None
    """cpu, cuda, mps. Default: the best there is."""
    host: str = "127.0.0.1"
    """Address to listen on. The default is reached from this machine only; 0.0.0.0 is everybody's."""
    port: int = 7860
    """Port to listen on."""


def main(arguments: list[str] | None = None) -> int:
    """Serve the demo until it is interrupted; returns the exit status.

    Raises:
        ClipkitError: no such run, folder or index, or a port that is taken.
    """
    options = tyro.cli(Demo, args=arguments, prog="clipkit demo")
    if options.folder is not None and options.index is not None:
        raise ClipkitError("--folder and --index both say what to search; give one of them")
    if options.run == DEFAULT_RUN and not Path(DEFAULT_RUN).exists():
        raise ClipkitError(f"{DEFAULT_RUN}: no such run here; train it with `clipkit train`, or name another run")
    model = load(options.run, options.pretrained, device=options.device)
    calibration = find_calibration(model, options.run, options.calibration)
    index = find_index(model, options.run, options.folder, options.index)

    from demos.app import build_app, serve

    serve(build_app(model, index, calibration), options.host, options.port)
    return 0


def find_index(model: Aligner, run: str, folder: Path | None, index: Path | None) -> Index | None:
    """What there is to search: the folder, the index, the run's own pictures, or nothing."""
    if folder is not None:
        return folder_index(model, folder, Console(speaks=True))
    own = Path(run) / INDEX
    if index is None and not own.is_dir():
        return None
    return Index.open(index or own, model)


def find_calibration(model: Aligner, run: str, file: Path | None) -> SavedCalibration | None:
    """The calibration to classify with: the file, the run's own if it still fits, or none."""
    own = Path(run) / CALIBRATION
    if file is None and not own.is_file():
        return None
    path = file or own
    try:
        return read_calibration(path.read_bytes(), str(path), model)
    except OSError as error:
        raise ClipkitError(f"{path}: cannot be read ({error.strerror}); make it with clipkit calibrate") from None
    except ClipkitError as error:
        if file is not None:
            raise
        print(f"clipkit: not used: {error}", file=sys.stderr)
        return None


if __name__ == "__main__":
    sys.exit(exit_status(main))
