"""Speaks the part of the local API that the tray uses, in place of an agent whose state a test can choose.

Writes agent.json into the data directory, answers /api/status from a state that orders change, and keeps a record of
all orders. Must never be used where a real agent can be.
"""

import contextlib
import http.server
import json
import pathlib
import secrets
import threading
import time


class Agent:
    """One run of an agent: a port and a token of its own."""

    def __init__(self, data_dir):
        self.orders = []
        self.tickets = []
        self.looks = 0
        self.silent = threading.Event()
        self.token = secrets.token_hex(16)
        self.fresh()
        agent = self

        class Door(http.server.BaseHTTPRequestHandler):
            def log_message(self, *_):
                pass

            def answer(self, code, body):
                text = json.dumps(body).encode()
                self.send_response(code)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(text)))
                with contextlib.suppress(ConnectionError):  # The tray does not wait for ever.
                    self.end_headers()
                    self.wfile.write(text)

            def do_GET(self):
                if self.path.partition("?")[0] != "/api/status":
                    self.answer(404, {})
                    return
                while agent.silent.is_set():
                    time.sleep(0.02)
                agent.looks += 1
                self.answer(200, agent.status)

            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                if self.headers["Authorization"] != f"Bearer {agent.token}":
                    self.answer(401, {"error": {"message": "this needs the agent's token\nhint: none"}})
                    return
                if self.path == "/api/ticket":
                    agent.tickets.append(secrets.token_hex(32))
                    self.answer(200, {"ticket": agent.tickets[-1], "lives_s": 30})
                    return
                agent.orders.append((self.path, body))
                agent.obey(self.path, body)
                self.answer(200, agent.status["policy"])

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Door)
        self.server.daemon_threads = True
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        self.api = "127.0.0.1:%d" % self.server.server_address[1]
        self.file = pathlib.Path(data_dir) / "agent.json"
        written = self.file.with_suffix(".new")
        written.write_text(json.dumps({"pid": 1, "api": self.api, "token": self.token}))
        written.rename(self.file)

    def fresh(self):
        policy = {"state": "working", "headline": "Working", "allowed": "all", "reasons": [], "sensors": []}
        policy |= {"pause": None, "finishing": False}
        self.status = {"working": True, "reasons": [], "earned_today": "12.34000000", "policy": policy}

    def obey(self, path, body):
        policy = self.status["policy"]
        if path == "/api/pause" and body.get("gpu"):
            policy |= {"state": "working", "headline": "Working on the processor; the GPU is paused"}
            policy["pause"] = {"blocks": "gpu", "until_ms": None}
        elif path == "/api/pause":
            policy |= {"state": "paused", "headline": "Paused: for 30 min, by the owner"}
            policy["pause"] = {"blocks": "all", "until_ms": 1}
        elif path == "/api/resume":
            self.fresh()
        elif path == "/api/finish":
            policy["finishing"] = True

    def wait_for_user(self):
        self.status["policy"] |= {
            "state": "waiting",
            "headline": "Waiting: you used this machine 40 s ago",
            "reasons": [
                {"rule": "user_active", "text": "you used this machine 40 s ago; work goes on after 3 min without input"},
                {"rule": "gpu_in_use", "text": "<b>my_game & co</b> uses the GPU (2.1 GB)"},
            ],
        }

    def trouble(self):
        text = "the worker for GPU 0 crashed 3 times"
        self.status["policy"] |= {"state": "trouble", "headline": "Trouble: " + text, "reasons": [{"text": text}]}

    def leave(self):
        self.file.unlink(missing_ok=True)
        self.die()

    def die(self):
        """Ends without removing agent.json."""
        self.server.shutdown()
        self.server.server_close()
