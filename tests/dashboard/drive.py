"""Uses the dashboard as an owner does, and says what it found. Ends with an error at the first thing that is wrong."""

import contextlib
import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import time
import urllib.request

from browser import Browser, Page

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parents[1]
HOSTILE = "<img src=x onerror=alert(1)>"
LOADED_BYTES_MAX = 200_000
CHANGE_WITHIN_S = 3
# WCAG 1.4.11: the edge of what can be used, against what is beside it.
EDGE_CONTRAST_MIN = 3
HELD_TOKEN = "sessionStorage.getItem('token')"
LIVE = "document.getElementById('live').dataset.live === 'yes'"
SHOWN_STATE = "document.getElementById('now').dataset.state"
# What is told of the first job, and of the one with a name that is markup.
JOB_TOLD = "document.querySelector('#jobs li p').textContent"
ELSEWHERE_TOLD = "[...document.querySelectorAll('#jobs li')].find((one) => one.textContent.includes('<img')).querySelector('p').textContent"
# Each edge, with the background inside and the one outside of it. A checkbox is drawn by the browser; a button that rests is none to use.
EDGES = """[...document.querySelectorAll('button, input, select')].map((node) => {
  const style = (one) => getComputedStyle(one);
  const behind = (one) => { while (one && style(one).backgroundColor.endsWith(', 0)')) one = one.parentElement; return style(one ?? document.body).backgroundColor; };
  const rests = node.ariaDisabled === 'true' || node.disabled || node.type === 'checkbox' || style(node).borderTopWidth === '0px';
  return rests || !node.checkVisibility() ? null : {
    what: (node.id || node.textContent).trim(), pressed: node.ariaPressed === 'true', text: style(document.body).color, ground: style(document.body).backgroundColor,
    edges: ['Top', 'Right', 'Bottom', 'Left'].map((side) => style(node)[`border${side}Color`]), beside: [behind(node), behind(node.parentElement)],
    main: node.classList.contains('main'),
  };
}).filter(Boolean)"""
SHOWS = "document.getElementById('main').innerText.includes({})"


def check(fine, what):
    if not fine:
        raise AssertionError(what)
    print(f"  good: {what}", flush=True)


def until(what, ask, within_s=60):
    deadline = time.monotonic() + within_s
    while True:
        said = ask()
        if said:
            return said
        if time.monotonic() > deadline:
            raise AssertionError(f"waited {within_s} s in vain for {what}")
        time.sleep(0.05)


class Agent:
    """What serves the page: a process that can be killed and started again on the same port."""

    def __init__(self):
        self.port, self.token, self.process = 0, "", None

    @property
    def origin(self):
        return f"http://127.0.0.1:{self.port}"

    def ticket(self):
        return self.post("/api/ticket", {})["ticket"]

    def url(self):
        return f"{self.origin}/#ticket={self.ticket()}"

    def get(self, path):
        with urllib.request.urlopen(self.origin + path, timeout=20) as answer:
            return json.load(answer)

    def file(self, path):
        with urllib.request.urlopen(self.origin + path, timeout=20) as answer:
            return answer.read()

    def post(self, path, body):
        headers = {"authorization": f"Bearer {self.token}", "content-type": "application/json"}
        request = urllib.request.Request(self.origin + path, json.dumps(body).encode(), headers, method="POST")
        with urllib.request.urlopen(request, timeout=20) as answer:
            return json.load(answer)

    def kill(self):
        # Its whole group: a worker may not outlive it either.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        if self.process.stdout:
            self.process.stdout.close()


class StandIn(Agent):
    def start(self):
        self.token = f"stand-in-{time.monotonic_ns()}"
        self.process = subprocess.Popen([sys.executable, HERE / "agent.py", str(self.port), self.token], stdout=subprocess.PIPE, text=True, start_new_session=True)
        self.port = int(self.process.stdout.readline())


class Real(Agent):
    def __init__(self, skein, folder, name, genesis, bootstrap=None, more=()):
        super().__init__()
        self.skein, self.folder, self.data, self.genesis, self.bootstrap, self.listen, self.more = skein, folder, folder / name, genesis, bootstrap, "127.0.0.1:0", more

    def start(self):
        running = self.data / "agent.json"
        running.unlink(missing_ok=True)
        arguments = ["up", "--headless", "--device", "cpu", "--threads", "1", "--listen", self.listen, "--api", f"127.0.0.1:{self.port}", "--data-dir", self.data, "--network", self.genesis]
        story = open(self.data.with_suffix(".story"), "ab")
        self.process = subprocess.Popen([self.skein, *arguments, *(["--bootstrap", self.bootstrap] if self.bootstrap else []), *self.more], stdout=subprocess.DEVNULL, stderr=story, start_new_session=True)
        story.close()

        def told():
            if self.process.poll() is not None:
                raise AssertionError(f"the agent ended at once: {self.data.with_suffix('.story').read_text()}")
            with contextlib.suppress(FileNotFoundError, json.JSONDecodeError):
                return json.loads(running.read_text())

        told = until("the agent to start", told)
        self.port, self.token, self.listen = int(told["api"].rsplit(":", 1)[1]), told["token"], told["listen"]
        self.address = f"{told['node']}@{told['listen']}"

    def train(self, name, rounds):
        text = "".join(f"Goose {number} says honk {number * 7 % 13} times to goose {number * 3 % 11}.\n" for number in range(2_000))
        (self.folder / "text.txt").write_text(text)
        job = self.folder / f"{name}.toml"
        job.write_text(f'kind = "train"\nname = "{name}"\ndata = "text.txt"\noutput = "{name}"\nrounds = {rounds}\ninner_steps = 10\nbatch = 4\ncontext = 32\n'
                       "learning_rate = 0.003\nseed = 1\n[shape]\nlayers = 2\nwidth = 32\nheads = 2\ncontext = 32\n")
        ran = subprocess.run([self.skein, "run", job, "--detach", "--data-dir", self.data], capture_output=True, text=True, timeout=120)
        check(ran.returncode == 0, f"a training job is submitted {ran.stderr}")
        return ran.stdout.strip()


def headers(agent):
    """What the browser is told about the page's files."""
    for path, kind in [("/", "text/html"), ("/app.js", "text/javascript"), ("/style.css", "text/css")]:
        with urllib.request.urlopen(agent.origin + path, timeout=20) as answer:
            said, body = answer.headers, answer.read()
        fine = said["content-type"] == f"{kind}; charset=utf-8" and said["cache-control"] == "no-cache" and said["x-content-type-options"] == "nosniff"
        fine = fine and said["referrer-policy"] == "no-referrer"
        check(fine and agent.token.encode() not in body, f"{path} is {kind}, never stale, and without the token")
        rules = said["content-security-policy"]
        needed = ["default-src 'none'", "script-src 'self'", "style-src 'self'", "connect-src 'self'", "base-uri 'none'", "form-action 'none'", "frame-ancestors 'none'"]
        check(all(one in rules for one in needed) and "unsafe" not in rules and "http" not in rules, f"{path} may load nothing from elsewhere")


def loads(browser, agent):
    """The page, loaded and live, with everything checked that a page may do wrong by loading."""
    headers(agent)
    page = Page(browser, agent.url())
    page.wait("the page to be live", LIVE)
    page.wait("all parts to have their answers", "document.getElementById('log').dataset.verified !== 'unknown' && document.querySelectorAll('#settings form').length > 10")
    until("the requests to end", lambda: page.value("1") and not page.under_way, 20)
    check(page.bytes < LOADED_BYTES_MAX, f"all that was loaded is {page.bytes} bytes, below {LOADED_BYTES_MAX}")
    outside = [url for url in page.asked if not url.startswith((agent.origin + "/", "data:")) and url != "about:blank"]
    check(not outside, f"no request goes elsewhere: {outside or len(page.asked)}")
    check(not page.errors, f"the console is quiet {page.errors or ''}")
    check(page.value("location.href") == agent.origin + "/" and page.value("history.length") <= 2, "the ticket is not in the address any more")
    check(page.value(HELD_TOKEN) == agent.token, "the token is in this tab's storage")
    workers = agent.get("/api/status")["workers"]
    rows = page.value("document.querySelectorAll('#workers tbody tr').length")
    check(rows == len(workers) and page.value("document.getElementById('workers').hidden") == (len(workers) == 1), f"{len(workers)} workers are told of, one by one where there are several")
    told = agent.get("/api/status")["policy"]
    page.wait("the state of the API", f"{SHOWN_STATE} === {json.dumps(told['state'])}", 5)
    page.wait("the headline of the API", f"document.getElementById('headline').textContent === {json.dumps(told['headline'])}", 5)
    print(f"  good: the page says {told['headline']!r}, as the API does", flush=True)
    return page


def press(page, selector):
    """The mouse on a button, once the page lets it be pressed."""
    page.wait(f"{selector} to be ready", f"document.querySelector({json.dumps(selector)}).ariaDisabled === 'false'", CHANGE_WITHIN_S)
    page.click(selector)


def pauses(page, agent):
    def state():
        return agent.get("/api/status")["policy"]

    before = page.value(SHOWN_STATE)
    press(page, "#orders [data-body*='1800']")
    took = page.wait("the page to say that it is paused", f"{SHOWN_STATE} === 'paused'", CHANGE_WITHIN_S)
    check(state()["state"] == "paused" and state()["pause"]["until_ms"], f"the mouse on Pause 30 min pauses, on the page after {took:.2f} s and in the API")
    page.wait("the reason", SHOWS.format("'looked at again'"), CHANGE_WITHIN_S)
    press(page, "#orders [data-order='resume']")
    page.wait("the page to say that it goes on", f"{SHOWN_STATE} !== 'paused'", CHANGE_WITHIN_S)
    check(state()["pause"] is None and page.value("document.querySelector(\"[data-order='resume']\").ariaDisabled") == "true", "Resume ends it, and then rests")
    for body, blocks in [('{"gpu":true}', "gpu"), ('{"until":"tomorrow"}', "all")]:
        press(page, f"#orders [data-body='{body}']")
        until(f"the pause of {body}", lambda: (state()["pause"] or {}).get("blocks") == blocks, CHANGE_WITHIN_S)
        press(page, "#orders [data-order='resume']")
        until("the end of the pause", lambda: state()["pause"] is None, CHANGE_WITHIN_S)
    press(page, "#orders [data-order='finish']")
    until("finishing", lambda: state()["finishing"], CHANGE_WITHIN_S)
    page.wait("the page to say so", SHOWS.format("'No new work is taken until you resume'"), CHANGE_WITHIN_S)
    press(page, "#orders [data-order='resume']")
    until("the end of finishing", lambda: not state()["finishing"], CHANGE_WITHIN_S)
    print("  good: GPU only, until tomorrow and finish work as well", flush=True)
    # What another client orders is seen too, without anybody touching the page.
    page.wait("the state of before", f"{SHOWN_STATE} === '{before}'", 10)
    agent.post("/api/pause", {})
    took = page.wait("the pause of another client", f"{SHOWN_STATE} === 'paused'", 6)
    agent.post("/api/resume", {})
    page.wait("the resume of another client", f"{SHOWN_STATE} !== 'paused'", 6)
    print(f"  good: what another client orders is shown after {took:.2f} s", flush=True)


def keyboard(browser, agent):
    """Without a mouse, from the top of a page that was just opened."""
    page = Page(browser, agent.url())
    page.wait("the page to be live", f"{LIVE} && {SHOWN_STATE} !== 'paused'", 30)
    reached = None
    for presses in range(1, 12):
        page.key("Tab")
        reached = page.value("document.activeElement.textContent")
        if reached == "Pause 30 min":
            break
    check(reached == "Pause 30 min", f"Tab reaches Pause ({presses} presses)")
    outline = page.value("getComputedStyle(document.activeElement).outlineStyle + getComputedStyle(document.activeElement).outlineWidth")
    check(outline == "solid2px", "the focus is visible")
    page.key("Enter")
    page.wait("the pause by Enter", f"{SHOWN_STATE} === 'paused'", CHANGE_WITHIN_S)
    check(page.value("document.activeElement.textContent") == "Pause 30 min", "the focus stays where it was")
    check(page.text("#announce") == page.text("#headline"), "the change is announced to screen readers")
    for _ in range(3):
        page.key("Tab")
    page.key("Enter")
    page.wait("the resume by Enter", f"{SHOWN_STATE} !== 'paused'", CHANGE_WITHIN_S)
    print("  good: Enter presses Pause and Resume", flush=True)
    page.close()


def settings(page, agent):
    field = "document.getElementById('set-gpu_temperature_max')"
    before = agent.get("/api/settings")["gpu_temperature_max"]
    for value, wrong in [("900", True), ("79", False)]:
        page.value(f"{field}.focus(); {field}.select()")
        page.type(value)
        page.key("Enter")
        shown = f"!document.getElementById('set-gpu_temperature_max-bad').hidden === {json.dumps(wrong)} && {field}.ariaInvalid === null" if not wrong else "!document.getElementById('set-gpu_temperature_max-bad').hidden"
        if wrong:
            page.wait("the error beside the field", shown, 5)
            check("out of range" in page.text("#set-gpu_temperature_max-bad") and agent.get("/api/settings")["gpu_temperature_max"] == before, "a value out of range is refused beside its field")
            # The browser itself writes down an answer that is no success; this one was asked for.
            page.errors = [error for error in page.errors if not ("400" in error and "/api/settings" in error)]
        else:
            until("the change", lambda: agent.get("/api/settings")["gpu_temperature_max"].startswith("79"), 5)
            page.wait("the error to go", "document.getElementById('set-gpu_temperature_max-bad').hidden", 5)
            print("  good: a value in range is set", flush=True)
    agent.post("/api/settings", {"key": "gpu_temperature_max", "value": before.split()[0]})


def reads_only(browser, agent, given, patience):
    """Without a token, with a ticket that is none or spent, or with the token of an earlier run, everything is read and nothing is ordered."""
    fragment = {"a spent ticket": lambda: f"#ticket={spent(agent)}", "a wrong ticket": lambda: "#ticket=wrong", "a token in the address": lambda: f"#token={agent.token}"}
    page = Page(browser, agent.origin + "/" + fragment.get(given, str)())
    page.wait("the page to be live", LIVE)
    if given == "an older token":
        page.value("sessionStorage.setItem('token', 'older'); location.reload()")
        page.wait("the token to be dropped, though nothing is ordered", f"document.readyState === 'complete' && {HELD_TOKEN} === null && {LIVE}")
    if given:
        page.wait("a state", f"{SHOWN_STATE} !== 'unknown'")
        check(page.value(HELD_TOKEN) is None, f"{given} gives no token")
        page.errors = [error for error in page.errors if "401" not in error]
    page.wait("the explanation", SHOWS.format("'open it from the tray icon or with skein dashboard'"), patience)
    check(page.value("[...document.querySelectorAll('#orders button')].every((one) => one.ariaDisabled === 'true')"), f"with {given or 'no token'}, buttons rest and say how to get one")
    page.click("#orders [data-order='pause']")
    page.wait("a sensor", "document.querySelectorAll('#sensors dd').length > 5")
    check(agent.get("/api/status")["policy"]["pause"] is None and not page.errors, f"reading works, ordering does not {page.errors or ''}")
    page.close()


def spent(agent):
    """A ticket that somebody was quicker to use."""
    ticket = agent.ticket()
    check(agent.post("/api/token", {"ticket": ticket})["token"] == agent.token, "a ticket is good for the token")
    return ticket


def dies(page, agent):
    agent.kill()
    took = page.wait("the page to say that the agent is silent", "!document.getElementById('silent').hidden", 20)
    check("does not answer" in page.text("#silent") and page.text("#live") == "not answering", f"an agent that was killed is missed after {took:.1f} s: {page.text('#silent')!r}")
    check(page.value("[...document.querySelectorAll('#orders button')].every((one) => one.ariaDisabled === 'true')"), "nothing can be ordered meanwhile")
    agent.start()
    took = page.wait("the page to be live again", f"{LIVE} && document.getElementById('silent').hidden", 30)
    check(page.value("!document.getElementById('main').classList.contains('stale')"), f"{took:.1f} s after the agent is back on its port, the page is live by itself")
    page.wait("the old token to be dropped", "!document.getElementById('tokenless').hidden", 5)
    check(page.value(f"{HELD_TOKEN} === null && [...document.querySelectorAll('#orders button')].every((one) => one.ariaDisabled === 'true')"), "what it may not order any more it does not offer")
    page.value(f"location.hash = 'ticket={agent.ticket()}'")
    page.wait("the new token to be taken", f"{HELD_TOKEN} === {json.dumps(agent.token)} && location.hash === ''")
    page.value("location.hash = 'ticket=wrong'")
    page.wait("a wrong ticket to be put away", "location.hash === ''")
    until("the answer to it", lambda: page.value("1") and any("/api/token" in error for error in page.errors), 5)
    check(page.value(HELD_TOKEN) == agent.token, "a ticket that is none costs no token that is held")
    press(page, "#orders [data-order='pause']")
    page.wait("the pause", f"{SHOWN_STATE} === 'paused'", 5)
    agent.post("/api/resume", {})
    print("  good: with the new agent's token the buttons work again", flush=True)


def fits(page, width):
    page.size(width)
    wide = page.value("document.documentElement.scrollWidth")
    check(wide <= width, f"nothing is wider than a window of {width} pixels ({wide})")


def contrast(one, other):
    def light(colour):
        parts = [int(part) / 255 for part in re.findall(r"\d+", colour)[:3]]
        return sum(weight * (part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4) for weight, part in zip((0.2126, 0.7152, 0.0722), parts))

    dark, bright = sorted([light(one), light(other)])
    return (bright + 0.05) / (dark + 0.05)


def edges(page, what):
    """Whether it is seen where a button or a field ends, and which of several is pressed."""
    for dark in [False, True]:
        page.size(1280, dark=dark)
        page.wait("the colours", f"matchMedia('(prefers-color-scheme: dark)').matches === {json.dumps(dark)}")
        told = page.value(EDGES)
        # What is filled with the colour of its edge ends where the fill does.
        least = min((contrast(edge, beside), one["what"]) for one in told for edge in one["edges"] for beside in [*one["beside"][one["main"]:], one["ground"]])
        check(len(told) > 5 and least[0] >= EDGE_CONTRAST_MIN, f"the edges of {len(told)} buttons and fields of {what}{', when it is dark,' if dark else ''} have a contrast of {least[0]:.2f} or more ({least[1]})")
        pressed = [one for one in told if one["pressed"]]
        check(pressed and all(edge == one["text"] for one in pressed for edge in one["edges"]), "what is pressed has an edge as dark as text" if not dark else "what is pressed has an edge as bright as text")
    page.size(1280)


def steps(browser, agent):
    """A curve is fetched when its job came further, and only then; a job that does not has no speed."""
    page = Page(browser, agent.url())
    page.wait("a loss curve", "document.querySelectorAll('#jobs details[open] path.line').length === 3")
    page.wait("its speed", f"{JOB_TOLD}.includes('tokens/s')", 10)

    def poll():
        before = page.times_asked("/api/jobs")
        until("the jobs to be asked for twice", lambda: page.times_asked("/api/jobs") >= before + 2, 20)

    poll()
    check(page.times_asked("/metrics") == 1, f"fetches of the curve of a job that stands still: {page.times_asked('/metrics')}, which is one")
    for step in [42, 43, 44]:
        agent.post("/step", {"step": step, "elsewhere": step - 40})
        page.wait("the step", f"{JOB_TOLD}.startsWith('step {step} of 60') && {ELSEWHERE_TOLD}.startsWith('step {step - 40} of 60')", 10)
        page.wait("the curve's new point", f"document.querySelector('#jobs details[open] figcaption').textContent.includes('step {step} ')", 5)
    check(page.times_asked("/metrics") == 4, "and again with each step")
    check(page.value(f"{JOB_TOLD}.includes('tokens/s') && {ELSEWHERE_TOLD}.includes('tokens/s')"), "a job that goes on has a speed, wherever it was ordered")
    page.value("(() => { const before = Date.now; Date.now = () => before() + 20 * 60_000; })()")
    for what, told in [("a job", JOB_TOLD), ("one that was ordered elsewhere", ELSEWHERE_TOLD)]:
        page.wait(f"{what} to be called stalled", f"{told}.includes('stalled for 20 min')", 10)
        check(not page.value(f"{told}.includes('tokens/s')"), f"{what} without a step for 20 min is called stalled, and has no speed")
    agent.post("/step", {"step": 45, "elsewhere": None})
    page.wait("the job to go on", f"{JOB_TOLD}.startsWith('step 45 of 60') && !{JOB_TOLD}.includes('stalled')", 10)
    print("  good: with its next step it is not", flush=True)
    check(not page.errors, f"the console is quiet {page.errors or ''}")
    page.close()


def unseen(page, browser, agent):
    """A page behind another one asks nothing, for as long as one that is seen asks three times."""
    hidden = Page(browser, agent.url())
    hidden.wait("the page to be live", LIVE)

    def meanwhile(times):
        seen = page.times_asked("/api/status")
        until("the page that is seen to ask", lambda: page.times_asked("/api/status") >= seen + times, 20)
        hidden.value("1")

    with hidden.unseen():
        # What was under way when it was hidden comes to its end.
        meanwhile(2)
        before = len(hidden.asked)
        meanwhile(3)
        check(len(hidden.asked) == before, f"a page that nobody sees asks nothing {hidden.asked[before:]}")
        agent.post("/api/pause", {})
    hidden.wait("the pause of meanwhile", f"{SHOWN_STATE} === 'paused'", CHANGE_WITHIN_S)
    agent.post("/api/resume", {})
    hidden.wait("the resume", f"{SHOWN_STATE} !== 'paused'", 6)
    print("  good: once it is seen, it catches up and goes on", flush=True)
    hidden.close()


def pictures(page, out, name):
    for width, size in [(1280, "wide"), (360, "narrow")]:
        for dark in [False, True]:
            page.picture(out / f"{name}-{size}-{'dark' if dark else 'light'}.png", width, dark)
    page.size(1280)


def stand_in(browser, out):
    agent = StandIn()
    agent.start()
    try:
        page = loads(browser, agent)
        check(page.value("document.querySelectorAll('#c-busy path.line').length") == 2, "both GPUs have a line")
        check(re.fullmatch(r"\d+ \| – W", page.value("document.getElementById('c-power').itsReadout.textContent")), "what a GPU drew half an hour ago is not told as the present")
        check(page.value("document.querySelectorAll('#c-earned rect.bar').length") == 24, "24 hours of earnings")
        check(page.text("#jobs .phase") == "training, running · 68 %", "a job's progress")
        page.wait("a loss curve", "document.querySelectorAll('#jobs details[open] path.line').length === 3")
        check(page.value(SHOWS.format(json.dumps(HOSTILE))), "a job's name that is markup is shown as text")
        check(page.value("document.images.length") == 0, "and is no element")
        check(page.value(SHOWS.format("'missing: NetworkManager does not answer on D-Bus'")), "a missing sensor says why")
        page.value("document.getElementById('c-busy').focus()")
        page.key("ArrowLeft")
        check(":" in (page.value("document.getElementById('c-busy').getAttribute('aria-label')") or "") , "arrow keys read a chart")
        page.value("document.activeElement.blur()")
        page.click("#ranges [data-hours='24']")
        page.wait("a day of points", "document.querySelectorAll('#c-state rect').length >= 7")
        check(page.value("document.querySelector('#c-busy path.line').getAttribute('d').split('M').length") == 3, "a day has its gap where nothing was measured")
        for width in [360, 600, 900, 1280]:
            fits(page, width)
        edges(page, "the dashboard")
        pictures(page, out, "working")
        pauses(page, agent)
        keyboard(browser, agent)
        settings(page, agent)
        agent.post("/game", {"runs": True})
        page.wait("three reasons", "document.querySelectorAll('#reasons li').length === 3", 6)
        reasons = agent.get("/api/status")["policy"]["reasons"]
        shown = page.text("#reasons")
        check(all(one["text"] in shown and one["value"] in shown and one["threshold"] in shown for one in reasons), "every reason has its words, its value and its threshold")
        fits(page, 360)
        pictures(page, out, "paused")
        agent.post("/game", {"runs": False})
        check(not page.errors, f"the console was quiet all the time {page.errors or ''}")
        for given in [None, "a spent ticket", "a wrong ticket", "a token in the address", "an older token"]:
            reads_only(browser, agent, given, 5)
        cards(browser, agent, out)
        steps(browser, agent)
        unseen(page, browser, agent)
        dies(page, agent)
        agent.kill()
        page.wait("silence", "!document.getElementById('silent').hidden", 20)
        pictures(page, out, "silent")
        page.close()
    finally:
        agent.kill()


def cards(browser, agent, out):
    """A machine with more cards than there are colours."""
    agent.post("/cards", {"count": 9})
    page = Page(browser, agent.url())
    page.wait("a line of each card", "document.querySelectorAll('#c-heat path.line').length === 9")
    for what, styles in [("line", "[...document.querySelectorAll('#c-heat path.line')].map((one) => getComputedStyle(one)).map((style) => style.stroke + style.strokeDasharray)"),
                         ("name", "[...document.querySelectorAll('#legend span')].map((one) => getComputedStyle(one, '::before')).map((style) => style.backgroundColor + style.maskImage)")]:
        told = page.value(styles)
        check(len(told) == len(set(told)) == 9, f"no {what} of nine cards looks like another")
    pictures(page, out, "cards")
    page.close()
    agent.post("/cards", {"count": 2})


def real(browser, skein, work, out):
    folder = work / "agents"
    folder.mkdir()
    genesis = folder / "genesis.toml"
    genesis.write_text(f'name = "test"\npolicy = "io"\nstarted_at_ms = {int(time.time() * 1000)}\nepoch_ms = 20000\n')
    first = Real(skein, folder, "first", genesis)
    agents = [first]
    try:
        first.start()
        agents.append(Real(skein, folder, "second", genesis, first.address))
        agents[1].start()
        until("the agents to meet", lambda: any(peer["device"] for peer in first.get("/api/status")["peers"]))
        first.train("geese", 500)
        until("the job to begin", lambda: any(job["round"] >= 2 for job in first.get("/api/jobs")), 120)
        page = loads(browser, first)
        page.wait("the peer", "document.querySelectorAll('#peers tbody tr').length === 1")
        page.wait("the loss curve", "document.querySelectorAll('#jobs details[open] path.line').length === 3", 60)
        check(page.text("#jobs .name") == "geese", "the job is there, with its curve")
        check(page.text("#log").startswith("Verified"), "the log is verified")
        fits(page, 360)
        pictures(page, out, "real")
        pauses(page, first)
        keyboard(browser, first)
        settings(page, first)
        check(not page.errors, f"the console was quiet all the time {page.errors or ''}")
        for given in [None, "a spent ticket", "an older token"]:
            reads_only(browser, first, given, 5)
        dies(page, first)
        page.close()
    finally:
        for agent in agents:
            if agent.process:
                agent.kill()


def main():
    work, out = pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2])
    browser = Browser(os.environ["CHROMIUM"], work / "profile")
    try:
        print("an agent that is a stand-in:")
        stand_in(browser, out)
        if os.environ.get("SKEIN"):
            print("real agents:")
            real(browser, os.path.abspath(os.environ["SKEIN"]), work, out)
        else:
            print("no SKEIN is given: no real agent was looked at")
    finally:
        browser.close()
    print("all is well")


if __name__ == "__main__":
    main()
