"""The process at the other end of ``engine.WorkerProcess``: tasks come in, results go out, until the pipe is closed."""

from __future__ import annotations

import os
import pickle
import signal
import sys

from data_prep.engine import receive, send


def main() -> None:
    """Answer tasks until there are no more."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which closes the pipe
    replies = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a library prints must not come between the replies
    while (request := receive(sys.stdin.buffer)) is not None:
        try:
            function, task = pickle.loads(request)
            reply = pickle.dumps(("value", function(task)))
        except Exception as error:
            reply = pickle.dumps(("raised", error))
        try:
            send(replies, reply)
        except BrokenPipeError:  # the parent was killed; what the task wrote is whole
            return
