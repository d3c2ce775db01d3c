"""Serves a directory on loopback, for tests: server.py DIR PORT_FILE.

Writes its port into PORT_FILE. Where a file NAME.cut lies beside NAME, it promises all of NAME, sends half and hangs up.
Where NAME.endless lies beside it, it goes on sending. It ends with its parent.
"""

import ctypes
import functools
import http.server
import os
import signal
import sys


class Handler(http.server.SimpleHTTPRequestHandler):
    def do_GET(self):
        path = self.translate_path(self.path)
        cut, endless = os.path.exists(path + ".cut"), os.path.exists(path + ".endless")
        if not os.path.isfile(path) or not (cut or endless):
            super().do_GET()
            return
        with open(path, "rb") as file:
            data = file.read()
        self.send_response(200)
        if cut:
            self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if cut:
            self.wfile.write(data[: len(data) // 2])
        # Bounded: 64 MiB is endless enough.
        for _ in range(64 * 16 if endless else 0):
            self.wfile.write(b"\0" * 65536)
        self.close_connection = True

    def log_message(self, *_):
        pass

    def handle(self):
        try:
            super().handle()
        except (BrokenPipeError, ConnectionResetError):
            pass


ctypes.CDLL(None).prctl(1, signal.SIGTERM)
directory, port_file = sys.argv[1:]
server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Handler, directory=directory))
with open(port_file + ".part", "w", encoding="ascii") as file:
    file.write(str(server.server_address[1]))
os.rename(port_file + ".part", port_file)
server.serve_forever()
