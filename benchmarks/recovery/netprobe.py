"""Answers the HEAD requests to 8.8.8.8 by which SkyPilot's controller makes sure that it has a network.

Without an answer it looks at no job at all (sky/jobs/controller.py and sky/backends/backend_utils.py, 0.14.1), and a
lab has no way out. A program of its own, started inside: `python netprobe.py CERTIFICATE KEY`.
"""

from __future__ import annotations

import ssl
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

ADDRESS = "8.8.8.8"


class Answer(BaseHTTPRequestHandler):
    def do_HEAD(self) -> None:
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """A question every 15 s is not worth a line each."""


def main(certificate: str, key: str) -> None:
    server = ThreadingHTTPServer((ADDRESS, 443), Answer)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    server.serve_forever()


if __name__ == "__main__":
    main(*sys.argv[1:])
