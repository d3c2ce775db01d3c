"""A stand-in for the agent: serves the page with the agent's own headers, and says what no quiet machine says: a game, two GPUs
over a day, sensors that are missing, and names that strangers chose with care.

Usage: agent.py PORT TOKEN; it prints the port. Loopback only.
"""

import json
import math
import pathlib
import re
import secrets
import sys
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlparse

AGENT = pathlib.Path(__file__).resolve().parents[2] / "agent/src"
PAGE = {"/": (["index.html"], "text/html"), "/app.js": (["ask.js", "draw.js", "jobs.js", "app.js"], "text/javascript"), "/style.css": (["style.css"], "text/css"),
        "/fleet": (["fleet.html"], "text/html"), "/fleet.js": (["ask.js", "draw.js", "fleet.js"], "text/javascript")}
HOSTILE = "<img src=x onerror=alert(1)>"
NODE = "5f0c" * 16
GPUS = [f"0000:{place:02x}:00.0" for place in [0x01, 0x41, *range(0x42, 0x49)]]
HOUR = 3_600_000
START = int(time.time() * 1000)
METRIC = ["geese-30m", "a" * 64], ["shakespeare", "b" * 64], [HOSTILE, "c" * 64], ["smol-chat", "d" * 64]


def policy_file():
    """The policy of the agent's own source, so that the page is tested under it."""
    text = (AGENT / "api/dashboard.rs").read_text()
    found = re.search(r'ONLY_FROM_HERE: &str = "(.*?)";', text, re.S)
    return re.sub(r"\\\n\s*", "", found.group(1))


POLICY = policy_file()


def now():
    return int(time.time() * 1000)


class World:
    token = ""
    pause = None
    finishing = False
    game = False
    cards = 2
    # Of the job that runs, and when it ended; of the one that another agent ordered, if that runs.
    step, stepped_ms, step_elsewhere = 41, START, None
    tickets = set()
    rigs_paused = set()
    settings = {
        "user_idle": "3 min", "full_screen": "on", "game": "on", "games": "off", "not_games": "off", "remote_desktop": "on", "gpu_others_memory": "10 %",
        "gpu_others_busy": "30 %", "gpu_memory_taken": "50 %", "gpu_temperature_max": "85 °C", "gpu_temperature_band": "10 °C",
        "gpu_power_max": "off", "battery": "on", "battery_min": "50 %", "hours": "off", "processor_others": "50 %",
        "disk_free_min": "20 GB", "traffic_month_max": "off", "rate_max": "off", "metered": "on", "missing": "ignore",
    }


def policy():
    reasons = []

    def reason(rule, blocks, text, value, threshold, again):
        reasons.append({"rule": rule, "blocks": blocks, "text": text, "value": value, "threshold": threshold,
                        "since_ms": now() - 95_000, "look_again_ms": again})

    if World.pause:
        until = World.pause["until_ms"]
        reason("manual", World.pause["blocks"], "you paused work; it goes on when you resume" if until is None else "you paused work; it goes on by itself",
               "paused", "until you resume" if until is None else "with a timer", until or now() + 60_000)
    if World.game:
        reason("game", "all", f"a game is running ({HOSTILE}.exe); work goes on when it has ended", HOSTILE + ".exe", "no game", now() + 4_000)
        reason("user_active", "all", "you used this machine 40 s ago; work goes on after 3 min without input", "40 s", "3 min", now() + 140_000)
        reason("gpu_temperature", "gpu", "GPU 0000:01:00.0 is at 88 °C; it works again below 75 °C", "88 °C", "85 °C", now() + 5_000)
    state, headline, allowed = "working", "Working", "all"
    if reasons and any(one["blocks"] == "all" for one in reasons):
        what = "you paused work" if World.pause else f"a game is running ({HOSTILE}.exe)"
        state, headline, allowed = "paused", f"Paused: {what}", "nothing"
    elif reasons:
        state, headline, allowed = "working", "Working on the processor alone: you paused the GPU", "cpu"
    elif World.finishing:
        headline = "Finishing current work; then waiting until you resume"
    sensors = [
        {"sensor": "user_idle", "value": "40 s"}, {"sensor": "full_screen", "value": "none"}, {"sensor": "game", "value": HOSTILE if World.game else "none"},
        {"sensor": "remote_desktop", "value": "none"}, {"sensor": "power", "value": "mains"},
        {"sensor": "metered", "missing": "NetworkManager does not answer on D-Bus"}, {"sensor": "disk_free", "value": "412 GB"},
        {"sensor": "hours", "value": "mon 14:05"}, {"sensor": "processor_others", "value": "7 %"}, {"sensor": "traffic_month", "value": "18.2 GB"},
    ]
    for place, gpu in enumerate(GPUS[:World.cards]):
        said = [("gpu_busy", "97 %"), ("gpu_temperature", "71 °C"), ("gpu_power", "288 W"), ("gpu_power_limit", "350 W"), ("gpu_memory", "9.1 GB"),
                ("gpu_memory_total", "24 GB"), ("gpu_fan", None if place else "54 %"), ("gpu_others", "none")]
        sensors += [{"sensor": name, "gpu": gpu, **({"value": value} if value else {"missing": "the driver does not say"})} for name, value in said]
    return {"state": state, "headline": headline, "allowed": allowed, "reasons": reasons, "sensors": sensors, "pause": World.pause, "finishing": World.finishing}


def settlements():
    """As many as an agent keeps, each with all who were paid."""
    return [{"epoch": epoch, "height": 20 * epoch, "emission": 4_565_991_324, "minted": 4_565_991_320,
             "claims": [{"node": f"{place:02x}" * 32, "amount": 456_599_132} for place in range(1, 11)]} for epoch in range(1, 65)]


def status(brief):
    return {
        "node": NODE, "pid": 4711, "version": "0.1.0", "network": "test network", "network_id": "0" * 64, "listen": "192.0.2.4:7310", "api": "127.0.0.1:7311",
        "peers": [{"node": f"{place:02x}" * 32, "address": f"198.51.100.{place}:7310", "round_trip_us": None if place == 4 else 9_137 * place + 420,
                   "device": [None, "NVIDIA GeForce RTX 3060", "AMD Radeon RX 7900 XTX", HOSTILE, "AMD Ryzen 9 7950X 16-Core Processor"][place]} for place in range(1, 5)],
        "coordinator": "02" * 32, "term": 3, "visible": True, "working": not World.pause and not World.game, "reasons": [], "policy": policy(), "on_trial": False,
        "earned_today": "12.34000000",
        "offer": {"device": "NVIDIA GeForce RTX 4090", "backend": "vulkan", "matrix_mflops": 41_200_000, "memory_mbps": 930_000, "transfer_mbps": 22_000,
                  "memory_bytes": 12_884_901_888, "open": True, "addresses": [], "issued_at": now(),
                  "workers": [{"matrix_mflops": 41_200_000, "memory_bytes": 12_884_901_888}, {"matrix_mflops": 12_700_000, "memory_bytes": 6_442_450_944}]},
        "workers": [{"index": place, "device": device, "backend": "wgpu", "gpu": GPUS[place], "pid": None if place else 4712, "deaths": 0, "working": not place,
                     "state": "waiting" if place else "working", "headline": "Waiting for work" if place else "Working", "reasons": []}
                    for place, device in enumerate(["NVIDIA GeForce RTX 4090", "NVIDIA GeForce RTX 3060"])],
        "device_reason": "the best that works", "leases": [{"lease": "1" * 64, "job": "a" * 64, "shard": "round 12, part 3", "done": 11, "of": 32}], "leases_taken": 9,
        "log": {"path": "log", "entries": 1_204},
        "ledger": {"epoch": 41, "height": 880, "state": "9" * 64, "balance": "211.90250000", "balance_base_units": 0, "accepted_units": 0, "settlements": [] if brief else settlements()},
        "worker": {"pid": 4712, "deaths": 0}, "bytes_sent": 18_200_000_000, "bytes_received": 9_100_000_000,
        "host": {"system": "Linux 6.1 (Debian 12)", "processor": "AMD Ryzen 9 7950X", "cores": 32, "memory_bytes": 67_000_000_000, "disk_free_bytes": 412_000_000_000},
    }


def point(at):
    """One moment of a day: it works at night, a game is played in the evening, and for half an hour nothing ran."""
    ago = (START - at) / HOUR
    state = "paused" if 2 < ago < 4.5 or 0.2 < ago < 0.35 else "waiting" if 9 < ago < 10 else "working"
    noise = math.sin(at / 47_000) * 2 + math.sin(at / 310_000) * 3
    gpus = []
    for place, gpu in enumerate(GPUS[:World.cards]):
        busy = {"working": 94, "paused": 62 if ago > 1 else 8, "waiting": 3}[state] - place * 12
        gpus.append({"id": gpu, "busy_percent": max(0, min(100, round(busy + noise))), "temperature_c": round(38 + busy * 0.36 + noise / 2 - 3 * place),
                     "power_mw": None if place and ago < 0.5 else round((30 + busy * 2.9 + noise) * 1000), "memory_used_bytes": 9_100_000_000})
    return {"at_ms": at, "gpus": gpus, "state": state, "sent_bytes": 0, "received_bytes": 0}


def history(since):
    first = max(since + 1, START - 24 * HOUR)
    return [point(at) for at in range(first // 10_000 * 10_000 + 10_000, now(), 10_000) if not 6 < (START - at) / HOUR < 6.5]


def jobs():
    def job(place, work, phase, **more):
        name, identity = METRIC[place]
        return {"id": identity, "owner": NODE, "name": name, "work": work, "phase": phase, "round": 0, "step": 0, "steps": 0, "agents": 0, "loss_micronats": None,
                "start_loss_micronats": None, "held_out_micronats": None, "tokens": 0, "samples": 0, "left_out": [], "state": None, "digests_equal": True,
                "regrants": 0, "confirmed": 0, "rejected": 0, "refused": [], "stages": [], "note": None, **more}

    train = {"kind": "train", "rounds": 60, "context": 128}
    elsewhere = {"phase": "failed", "reason": f"no agent has the memory for {HOSTILE}", "round": 2} if World.step_elsewhere is None else \
        {"phase": "running", "round": World.step_elsewhere, "tokens": World.step_elsewhere * 5_000}
    return [
        job(1, train, "done", round=60, start_loss_micronats=4_158_000, held_out_micronats=1_612_000, tokens=9_830_400),
        job(0, train, "running", round=World.step, step=11, steps=32, agents=4, loss_micronats=1_702_000, start_loss_micronats=4_201_000, held_out_micronats=1_745_000, tokens=World.step * 79_900),
        job(2, train, **elsewhere),
        job(3, {"kind": "serve", "context": 2048}, "waiting", note="no agents with enough memory are free"),
    ]


def curve():
    loss = lambda round_: round(1_640_000 + 2_560_000 * math.exp(-round_ / 9) + 15_000 * math.sin(round_ * 1.7))
    return [{"round": one, "tokens": one * 79_900, "at_ms": World.stepped_ms - (World.step - one) * 21_000 + round(6_000 * math.sin(one)), "agents": 4,
             "loss_micronats": None if one == 0 else loss(one) - 40_000, "held_out_micronats": loss(one)} for one in range(World.step + 1)]


def earnings():
    hour = START // HOUR * HOUR
    amounts = [0, .41, .62, .9, 1.1, 1.05, .98, 1.2, 1.1, .2, 0, 0, .3, .75, .8, .9, 1, .6, .55, .7, .85, .9, 1.02]
    return [{"epoch": place, "started_at_ms": hour - (23 - place) * HOUR, "amount": f"{amount:.8f}", "amount_base_units": round(amount * 1e8)} for place, amount in enumerate(amounts)]


def rig(place, name, state, headline, **more):
    backend = more.pop("backend", "wgpu")
    gpus = [{"device": device, "backend": backend, "state": state, "temperature_c": 58 + 7 * place, "power_mw": 141_600 + 9_000 * place, "busy_percent": 97 - place,
             "memory_used_bytes": None if place == 2 else 9_100_000_000} for device in more.pop("gpus", ["NVIDIA GeForce RTX 3060"])]
    report = {"name": name, "node": f"{0xa0 + place:02x}" * 32, "version": "0.1.0", "on_trial": False, "state": state, "headline": headline, "reasons": [], "workers": gpus,
              "leases": int(state == "working"), "leases_taken": 120 + place, "coordinator": "02" * 32, "balance": f"{72_057_594 + place}.00000001", "earned_today": f"{place}.25000000",
              "last_challenge": None, "uptime_s": 86_400 * place + 310, "update_trouble": None, "orders_refused": 0, **more.pop("report", {})}
    return {"node": report["node"], "name": name, "own": place == 0, "connected": True, "answers": True, "trouble": None, "seen_ms": now(), "address": f"192.0.2.{place}:7310",
            "report": report, **more}


def fleet():
    paused = World.rigs_paused
    pause = {"text": "you paused work; it goes on when you resume", "value": "paused", "threshold": "until you resume"}

    def may(place, name, state, headline, **more):
        if f"{0xa0 + place:02x}" * 32 in paused:
            return rig(place, name, "paused", "Paused: you paused work", **{**more, "report": {"reasons": [pause]}})
        return rig(place, name, state, headline, **more)

    rigs = [
        may(0, "desk", "working", "Working"),
        may(1, "attic", "working", "Working", gpus=["NVIDIA GeForce RTX 3060"] * 6),
        may(2, "cellar", "paused", "Paused: GPU 0000:01:00.0 is at 88 °C",
            report={"reasons": [{"text": "GPU 0000:01:00.0 is at 88 °C; it works again below 75 °C", "value": "88 °C", "threshold": "85 °C"}],
                    "update_trouble": "version 0.2.0 did not answer within 60 s; 0.1.0 runs again"}),
        may(3, HOSTILE, "trouble", f"Trouble: {HOSTILE}", report={"reasons": [{"text": HOSTILE, "value": None, "threshold": None}], "orders_refused": 3, "on_trial": True}, gpus=["a card that is not measured yet"], backend=""),
        may(4, "rig-with-a-rather-long-name.in-the-garage.example", "waiting", "Waiting for work", gpus=["AMD Radeon RX 7900 XTX", "NVIDIA GeForce RTX 4090"],
            report={"reasons": [{"text": "no lease: no job needs this agent at the moment", "value": None, "threshold": None}]}),
        rig(5, "shed", "working", "Working", connected=False, answers=False, trouble="not connected", seen_ms=now() - 3 * HOUR - 60_000),
    ]
    return {"key": "77" * 32, "at_ms": now(), "rigs": rigs, "forgotten": []}


def told(path, body):
    """How the rigs take an order: those that are there obey, and none was told where releases are."""
    order, chosen = path.rsplit("/", 1)[1], body.get("rigs")
    here = [one for one in fleet()["rigs"] if not chosen or one["node"] in chosen]
    nodes = {one["node"] for one in here if one["answers"]}
    if order == "pause":
        World.rigs_paused |= nodes
    elif order == "resume":
        World.rigs_paused -= nodes
    after = {one["node"]: one["report"]["headline"] for one in fleet()["rigs"]}

    def one(rig):
        error = "not connected: it was given no order" if not rig["answers"] else \
            "this build knows no place to fetch releases from\nhint: name one in config.toml" if order == "update" else None
        return {"node": rig["node"], "name": rig["name"], "ok": error is None, "error": error, "headline": None if error else after[rig["node"]]}
    return {"rigs": [one(rig) for rig in here]}


class Answers(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def answer(self, code, body, kind="application/json", headers=()):
        data = body if isinstance(body, bytes) else json.dumps(body, separators=(",", ":")).encode()
        self.send_response(code)
        for name, value in [("content-type", kind), ("content-length", str(len(data))), *headers]:
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data)

    def do_GET(self):
        url = urlparse(self.path)
        if url.path in PAGE:
            names, kind = PAGE[url.path]
            headers = [("cache-control", "no-cache"), ("content-security-policy", POLICY), ("x-content-type-options", "nosniff"), ("referrer-policy", "no-referrer")]
            return self.answer(200, b"".join((AGENT / "dashboard" / name).read_bytes() for name in names), kind + "; charset=utf-8", headers)
        said = {
            "/api/status": lambda: status(url.query == "brief=true"), "/api/jobs": jobs, "/api/earnings": earnings, "/api/settings": lambda: World.settings,
            "/api/history": lambda: {"every_s": 10, "points": history(int(parse_qs(url.query).get("since_ms", ["0"])[0]))},
            "/api/log": lambda: {"entries": 1_204, "root": "9a3f" * 16, "verified": True, "message": "good: 310 receipts, 288 acceptances", "checked_at_ms": now()},
        }.get(url.path)
        if said is None and url.path.endswith("/metrics"):
            said = curve if "/a" in url.path or "/b" in url.path else lambda: []
        if url.path == "/api/fleet":
            if self.headers.get("authorization") != f"Bearer {World.token}":
                return self.answer(401, {"error": {"message": "this needs the agent's token\nhint: it is in agent.json"}})
            said = fleet
        if said is None:
            return self.answer(404, {"error": {"message": "no such path"}})
        return self.answer(200, said())

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        if self.path == "/api/token":
            if body["ticket"] not in World.tickets:
                return self.answer(401, {"error": {"message": "used already, or older than 30 s\nhint: open the page again by the tray icon or `skein dashboard`"}})
            World.tickets.remove(body["ticket"])
            return self.answer(200, {"token": World.token})
        if self.headers.get("authorization") != f"Bearer {World.token}":
            return self.answer(401, {"error": {"message": "this needs the agent's token\nhint: it is in agent.json"}})
        if self.path == "/api/ticket":
            ticket = secrets.token_hex(32)
            World.tickets.add(ticket)
            return self.answer(200, {"ticket": ticket, "lives_s": 30})
        if self.path.startswith("/api/fleet/"):
            return self.answer(200, told(self.path, body))
        if self.path == "/api/pause":
            until = now() + body["for_s"] * 1000 if "for_s" in body else now() + 9 * HOUR if "until" in body else None
            World.pause = {"blocks": "gpu" if body.get("gpu") else "all", "until_ms": until}
        elif self.path == "/api/resume":
            World.pause, World.finishing = None, False
        elif self.path == "/api/finish":
            World.finishing = True
        elif self.path == "/game":
            World.game = body["runs"]
        elif self.path == "/step":
            World.step, World.stepped_ms, World.step_elsewhere = body["step"], now(), body["elsewhere"]
        elif self.path == "/cards":
            World.cards = body["count"]
        elif self.path == "/api/settings":
            if body["key"] == "gpu_temperature_max" and not 40 <= int(re.sub(r"\D", "", body["value"]) or 0) <= 110:
                return self.answer(400, {"error": {"message": f"{body['value']} is out of range for `gpu_temperature_max`\nhint: give a value from 40 °C to 110 °C, or `off`"}})
            World.settings[body["key"]] = body["value"]
            return self.answer(200, World.settings)
        return self.answer(200, policy())


if __name__ == "__main__":
    World.token = sys.argv[2]
    server = ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Answers)
    print(server.server_address[1], flush=True)
    server.serve_forever()
