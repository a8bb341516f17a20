"""An edge in its own process, with the tests' tiny router. Arguments: descriptor, registry URL, seconds to drain.

A fourth, `debug`, lets every library log everything, and an expert that hangs be given up soon.
"""

from __future__ import annotations

import logging
import os
import signal
import socket
import sys
from dataclasses import replace

from collegium.experts.processes import die_with_parent, forbid_core_dumps
from collegium.experts.registry import Registry
from collegium.serve.edge import Server, create_app
from collegium.serve.log import configure
from collegium.serve.settings import EdgeSettings
from collegium.serve.snapshot import Sources
from leaks import log_everything
from serve_kit import KeywordRouter

if __name__ == "__main__":
    descriptor, url, drain = sys.argv[1:4]
    die_with_parent(signal.SIGHUP)
    forbid_core_dumps()
    log_everything()
    settings = EdgeSettings(drain=float(drain), metrics_folder=os.environ["PROMETHEUS_MULTIPROC_DIR"], header_time=1)
    if sys.argv[4:] == ["debug"]:
        configure(logging.DEBUG)
        logging.getLogger().setLevel(logging.DEBUG)
        settings = replace(
            settings, header_time=10, first_byte=1, between_events=1, total=3, patience=0.1, breaker_failures=10**6
        )
    app = create_app(settings, Registry(url), KeywordRouter(), Sources("internal", os.environ))
    listener = socket.socket(fileno=int(descriptor))
    Server(app, settings, listener).run(sockets=[listener])
    print("ended", flush=True)
