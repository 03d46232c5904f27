"""The process at the other end of ``engine.WorkerProcess``: tasks come in, results go out, until the pipe is closed.

When the pipe is closed while a task runs, the parent was killed, and this process ends at once: nobody wants the
result, and another preparation may be waiting for the folder.
"""

from __future__ import annotations

import os
import pickle
import signal
import sys
from queue import SimpleQueue
from threading import Thread

from data_prep.engine import receive, send


def main() -> None:
    """Answer tasks until there are no more."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which closes the pipe
    replies = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a library prints must not come between the replies
    requests: SimpleQueue[bytes] = SimpleQueue()
    Thread(target=_listen, args=(requests,), daemon=True).start()
    while True:
        request = requests.get()
        try:
            function, task = pickle.loads(request)
            reply = pickle.dumps(("value", function(task)))
        except Exception as error:
            reply = pickle.dumps(("raised", error))
        send(replies, reply)


def _listen(requests: SimpleQueue[bytes]) -> None:
    while (request := receive(sys.stdin.buffer)) is not None:
        requests.put(request)
    os._exit(0)
