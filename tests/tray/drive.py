"""Drives tests/tray/run: starts bus, panel, agent and icon, and looks at what a desktop sees of the icon.

Every check waits for a condition with a deadline. Prints one line per check; the first that fails ends the run.
"""

import json
import os
import pathlib
import re
import subprocess
import sys
import time

from agent import Agent

WORK, OUT = map(pathlib.Path, sys.argv[1:])
DATA = WORK / "agent"
DEADLINE_S = 90  # Longer than the tray waits before it asks for a host again; a busy machine needs some of it.
WATCHER = ("org.kde.StatusNotifierWatcher", "/StatusNotifierWatcher", "org.kde.StatusNotifierWatcher")
COLOURS = {"working": "00926a", "waiting": "2f7dc4", "paused": "b07812", "trouble": "db3a2e", "not running": "808080"}
children = []


def start(*command, env=None, **options):
    """A child that ends with this script."""
    child = subprocess.Popen(command, env=os.environ | (env or {}), **options)
    children.append(child)
    return child


def until(what, condition):
    """The condition's value as soon as it holds."""
    end = time.monotonic() + DEADLINE_S
    while time.monotonic() < end:
        value = condition()
        if value:
            print(f"ok   {what}", flush=True)
            return value
        time.sleep(0.05)
    shot("failed")
    raise SystemExit(f"FAIL {what}\n{state()}")


def state():
    try:
        return f"title {title()!r}, menu {[e['label'] for e in menu()]}"
    except (LookupError, TypeError, subprocess.SubprocessError) as error:
        return f"no icon: {error}"


# The bus, the panel and the icon.


def start_bus():
    bus = start("dbus-daemon", "--session", "--nofork", "--print-address", stdout=subprocess.PIPE, text=True)
    os.environ["DBUS_SESSION_BUS_ADDRESS"] = bus.stdout.readline().strip()
    return bus


def start_panel():
    return start("xfce4-panel", "--disable-wm-check", stderr=subprocess.DEVNULL)


def stop(child):
    child.terminate()
    child.wait(10)


def start_tray():
    log = (OUT / "tray.log").open("w")
    return start(*os.environ["TRAY"].split(), str(DATA), stderr=log)


def bus_call(*arguments):
    """An answer's data, or None where nobody answers."""
    done = subprocess.run(
        ["busctl", "--user", "--json=short", "--timeout=5", "--", *arguments], capture_output=True, text=True, check=False
    )
    return json.loads(done.stdout)["data"] if done.returncode == 0 and done.stdout else None


def owned(name):
    bus = ("org.freedesktop.DBus", "/org/freedesktop/DBus", "org.freedesktop.DBus")
    return bus_call("call", *bus, "NameHasOwner", "s", name) == [True]


def items():
    return bus_call("get-property", *WATCHER, "RegisteredStatusNotifierItems") or []


def item():
    """Bus name of the icon, as the host knows it."""
    return items()[0].split("/")[0]


def get(name):
    return bus_call("get-property", item(), "/StatusNotifierItem", "org.kde.StatusNotifierItem", name)


def title():
    return get("Title")


def pixmaps():
    return {width: bytes(data) for width, _, data in get("IconPixmap")}


def menu():
    _, layout = bus_call(
        "call", item(), "/MenuBar", "com.canonical.dbusmenu", "GetLayout", "iias", "0", "-1", "0"
    )
    entries = []
    for child in layout[2]:
        number, raw, _ = child["data"]
        values = {key: value["data"] for key, value in raw.items()}
        if values.get("type") != "separator":
            entries.append({"id": number, "label": "", "enabled": True, "toggle-state": None} | values)
    return entries


def entry(label):
    return next((e for e in menu() if e["label"] == label), None)


def click(label):
    number = entry(label)["id"]
    done = bus_call(
        "call", item(), "/MenuBar", "com.canonical.dbusmenu", "Event", "isvu", str(number), "clicked", "s", "", "0"
    )
    assert done == [] or done is None, done


# What can be seen.


def shot(name):
    path = OUT / f"{name}.png"
    subprocess.run(["import", "-window", "root", str(path)], check=True)
    return path


def pixels(colour):
    """Where pixels of just that colour are on the screen."""
    raw = subprocess.run(["import", "-window", "root", "-depth", "8", "rgb:-"], capture_output=True, check=True).stdout
    wanted, found = bytes.fromhex(colour), []
    at = raw.find(wanted)
    while at >= 0:
        if at % 3 == 0:
            found.append((at // 3 % 900, at // 3 // 900))
        at = raw.find(wanted, at + 1)
    return found


def seen(state):
    """The icon in the colour of that state, and in no other one."""
    others = [colour for other, colour in COLOURS.items() if other not in (state, "not running")]
    return len(pixels(COLOURS[state])) > 15 and not any(pixels(colour) for colour in others)


def shows(state):
    until(f"the screen shows the icon of `{state}`", lambda: seen(state))
    until(f"the title says `{state}`", lambda: title() == f"Skein: {state}")


# The checks.


def no_bus():
    env = {"DBUS_SESSION_BUS_ADDRESS": "unix:path=/nonexistent/bus"}
    command = [*os.environ["TRAY"].split(), str(DATA)]
    done = subprocess.run(command, env=os.environ | env, capture_output=True, text=True, timeout=10, check=False)
    assert done.returncode == 0 and done.stderr.startswith("no tray here: "), done
    print(f"ok   without a bus: {done.stderr.splitlines()[0]}")


def orders(agent):
    assert [e["label"] for e in menu()] == [
        "Working",
        "Pause 30 minutes",
        "Pause until tomorrow",
        "Pause GPU only",
        "Resume",
        "Finish current work",
        "Earned today: 12.34",
        "Open dashboard",
        "Quit tray",
        "Quit Skein",
    ], menu()
    assert not entry("Resume")["enabled"] and not entry("Working")["enabled"]
    before = pixmaps()
    assert sorted(before) == [16, 22, 24, 32, 48]
    shot("working")

    clicked = time.monotonic()
    click("Pause 30 minutes")
    until("`Pause 30 minutes` reached the agent", lambda: agent.orders == [("/api/pause", {"for_s": 1800})])
    until("the menu says so", lambda: entry("Paused: for 30 min, by the owner"))
    print(f"     {time.monotonic() - clicked:.2f} s from click to menu, by asking every 0.05 s")
    shows("paused")
    assert all(pixmaps()[size] != before[size] for size in before)
    assert entry("Resume")["enabled"] and not entry("Finish current work")["enabled"]
    shot("paused")

    click("Resume")
    until("`Resume` reached the agent", lambda: agent.orders[-1] == ("/api/resume", {}))
    shows("working")
    click("Pause GPU only")
    until("`Pause GPU only` reached the agent", lambda: agent.orders[-1] == ("/api/pause", {"gpu": True}))
    until("it is checked", lambda: entry("Pause GPU only")["toggle-state"] == 1)
    click("Pause GPU only")
    until("a second click resumes", lambda: agent.orders[-1] == ("/api/resume", {}))
    until("it is no longer checked", lambda: entry("Pause GPU only")["toggle-state"] == 0)
    click("Pause until tomorrow")
    until("`Pause until tomorrow` reached the agent", lambda: agent.orders[-1] == ("/api/pause", {"until": "tomorrow"}))
    click("Resume")
    shows("working")
    click("Finish current work")
    until("`Finish current work` reached the agent", lambda: agent.orders[-1] == ("/api/finish", {}))
    until("the menu says that it is under way", lambda: entry("Finishing current work…"))
    click("Resume")
    until("it can be taken back", lambda: entry("Finish current work"))


def by_mouse(agent):
    """A click on the icon opens the menu; a click on its entry reaches the agent."""
    agent.wait_for_user()
    shows("waiting")
    until("reasons are in the menu", lambda: entry("<b>my__game & co</b> uses the GPU (2.1 GB)"))
    x, y = pixels(COLOURS["waiting"])[0]
    before = windows()
    subprocess.run(["xdotool", "mousemove", str(x), str(y)], check=True)
    until("a tooltip opens", lambda: menu_drawn(windows() - before))
    shot("tooltip")
    before = windows()
    subprocess.run(["xdotool", "click", "1"], check=True)
    opened = until("a click opens the menu", lambda: windows() - before)
    until("the menu is drawn", lambda: menu_drawn(opened))
    shot("menu")
    subprocess.run(["xdotool", "key", "Down", "Return"], check=True)
    until("the keyboard's choice reached the agent", lambda: agent.orders[-1] == ("/api/pause", {"for_s": 1800}))
    shows("paused")
    agent.fresh()
    agent.trouble()
    shows("trouble")
    until("it asks for attention", lambda: get("Status") == "NeedsAttention")
    shot("trouble")
    agent.fresh()
    shows("working")


def windows():
    tree = subprocess.run(["xwininfo", "-root", "-tree"], capture_output=True, text=True, check=True).stdout
    return {line.split()[0] for line in tree.splitlines() if re.search(r"0x\w+ .* \d{3,}x\d{2,}\+", line)}


def menu_drawn(opened):
    for window in opened:
        command = ["import", "-window", window, "-format", "%k", "info:-"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode == 0 and int(done.stdout or 0) > 10:
            return True
    return False


def dashboard(agent):
    """`xdg-open` is replaced by a script that keeps what it was given."""
    click("Open dashboard")
    opened = WORK / "opened"
    until("the dashboard was opened", opened.exists)
    until("by its address and a ticket", lambda: agent.tickets and opened.read_text().strip() == f"http://{agent.api}/#ticket={agent.tickets[-1]}")
    shown = json.dumps([get("Title"), get("ToolTip"), menu()]) + (OUT / "tray.log").read_text()
    assert agent.token not in opened.read_text() and agent.token not in shown and agent.tickets[-1] not in shown


def slow_agent(agent):
    """While HTTP waits, D-Bus is answered."""
    agent.silent.set()
    looks = agent.looks
    click("Pause 30 minutes")
    slowest = 0.0
    for _ in range(20):
        begun = time.monotonic()
        assert menu()
        slowest = max(slowest, time.monotonic() - begun)
        time.sleep(0.1)
    assert agent.looks == looks and slowest < 1.0, slowest
    print(f"ok   while the agent is silent, the slowest of 20 menus took {slowest * 1000:.0f} ms with busctl's start")
    until("an agent that stays silent counts as away", lambda: title() == "Skein: not running")
    agent.silent.clear()
    agent.fresh()
    shows("working")


def restarts(agent):
    agent.leave()
    shows("not running")
    labels = [e["label"] for e in menu()]
    assert labels[0] == "Skein is not running" and f"`skein up --data-dir {DATA}` starts one".replace("_", "__") in labels
    shot("away")
    again = Agent(DATA)
    shows("working")
    click("Pause 30 minutes")
    until("the new agent takes orders by its new token", lambda: again.orders == [("/api/pause", {"for_s": 1800})])
    again.die()
    shows("not running")
    third = Agent(DATA)
    shows("working")
    return third


def host_goes(panel, agent):
    stop(panel)
    until("no host is left", lambda: not items())
    looks = agent.looks
    time.sleep(3)  # A span in which the tray would have asked twice.
    assert agent.looks - looks <= 1, "the tray asks the agent though nobody sees the icon"
    panel = start_panel()
    shows("working")
    return panel


def idle(tray, seconds):
    """What the icon costs while nothing changes."""

    def cpu_s():
        fields = pathlib.Path(f"/proc/{tray.pid}/stat").read_text().rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    begun = cpu_s()
    time.sleep(seconds)
    used = cpu_s() - begun
    text = pathlib.Path(f"/proc/{tray.pid}/status").read_text()
    parts = {key: int(kib) for key, kib in re.findall(r"(VmRSS|RssAnon|RssFile|VmHWM|Threads):\s+(\d+)", text)}
    print(f"     idle {seconds} s: {used:.2f} s of CPU ({used / seconds:.2%} of a core), {parts} (KiB, threads)")
    assert parts["VmRSS"] < 30 << 10 and used / seconds < 0.005


def real_agent(skein):
    """A real agent shows its icon, which follows it, pauses it, and goes with it."""
    home = WORK / "real"
    log = (OUT / "agent.log").open("w")
    home.mkdir()
    # This test's own clicks, and whatever else this machine does, keep no agent of the test from work.
    rules = ["user_idle", "full_screen", "game", "processor_others", "gpu_others_busy", "disk_free_min"]
    (home / "policy.toml").write_text("".join(f'{rule} = "off"\n' for rule in rules))
    options = ["--data-dir", str(home), "--listen", "127.0.0.1:0", "--api", "127.0.0.1:0"]
    running = start(skein, "up", *options, stdout=log, stderr=log)
    until("a real agent runs", (home / "agent.json").exists)
    until("and shows an icon", items)
    until("the icon follows it", lambda: title() in ("Skein: working", "Skein: waiting"))
    click("Pause 30 minutes")
    shows("paused")
    shot("real-paused")
    click("Resume")
    until("it goes on", lambda: title() in ("Skein: working", "Skein: waiting"))
    click("Quit Skein")
    until("`Quit Skein` stops the agent", lambda: running.poll() == 0)
    until("and takes the icon along", lambda: not items())


def main():
    DATA.mkdir()
    programs = WORK / "programs"
    programs.mkdir()
    opener = programs / "xdg-open"
    opener.write_text(f'#!/bin/sh\nprintf "%s\\n" "$1" > {WORK}/opened\n')
    opener.chmod(0o755)
    os.environ["PATH"] = f"{programs}:{os.environ['PATH']}"

    no_bus()
    agent = Agent(DATA)
    bus = start_bus()
    tray = start_tray()
    own = f"org.kde.StatusNotifierItem-{tray.pid}-1"
    until("the icon is on the bus before any host", lambda: owned(own))
    panel = start_panel()
    until("a host that came later took the icon", items)
    shows("working")
    orders(agent)
    by_mouse(agent)
    dashboard(agent)
    slow_agent(agent)
    agent = restarts(agent)
    panel = host_goes(panel, agent)
    idle(tray, int(os.environ.get("IDLE_S", "10")))
    click("Quit tray")
    until("`Quit tray` ends it with 0", lambda: tray.poll() == 0)
    assert agent.orders == []

    tray = start_tray()
    until("a second icon", items)
    shows("working")
    click("Quit Skein")
    until("`Quit Skein` reached the agent", lambda: agent.orders == [("/api/down", {})])
    until("and ended the icon", lambda: tray.poll() == 0)
    if skein := os.environ.get("SKEIN"):
        agent.leave()
        until("no icon", lambda: not items())
        real_agent(skein)

    tray = start_tray()
    until("an icon", items)
    stop(bus)
    until("the end of the session ends the icon with 0", lambda: tray.poll() == 0)
    stop(panel)


try:
    main()
    print("tray: all checks passed")
finally:
    for child in reversed(children):
        if child.poll() is None:
            child.kill()
