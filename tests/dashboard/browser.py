"""Chromium without a window, by its debugging pipe: open a page, press keys, read what it shows, take pictures.

Needs nothing but Python and Chromium. Must never use the network.
"""

import base64
import contextlib
import json
import os
import pathlib
import select
import subprocess
import time

KEYS = {"Tab": (9, ""), "Enter": (13, "\r"), "ArrowLeft": (37, ""), "Escape": (27, ""), " ": (32, " ")}


class Browser:
    def __init__(self, program, folder):
        down, self.write_end = os.pipe()
        self.read_end, up = os.pipe()
        arguments = ["--headless=new", "--remote-debugging-pipe", f"--user-data-dir={folder}", "--no-first-run", "--disable-gpu", "--disable-extensions",
                     "--disable-background-networking", "--disable-component-update", "--disable-sync", "--hide-scrollbars", "--disable-dev-shm-usage", "about:blank"]
        if os.geteuid() == 0:
            arguments.insert(0, "--no-sandbox")
        # Chromium reads orders from descriptor 3 and answers on 4; a shell puts them there.
        shell = ["bash", "-c", f'exec 3<&{down} 4>&{up}; exec "$@"', "bash", program, *arguments]
        self.log = open(pathlib.Path(folder).with_suffix(".log"), "wb")
        self.process = subprocess.Popen(shell, pass_fds=(down, up), stdout=self.log, stderr=self.log)
        os.close(down)
        os.close(up)
        self.buffer, self.number, self.answers, self.pages = b"", 0, {}, {}

    def order(self, method, session=None, wait_s=60, **parameters):
        self.number += 1
        message = {"id": self.number, "method": method, "params": parameters, **({"sessionId": session} if session else {})}
        os.write(self.write_end, json.dumps(message).encode() + b"\0")
        number, deadline = self.number, time.monotonic() + wait_s
        while number not in self.answers:
            self.listen(deadline)
        answer = self.answers.pop(number)
        if "error" in answer:
            raise AssertionError(f"{method}: {answer['error']}")
        return answer["result"]

    def listen(self, deadline):
        """Takes in what has come; waits for something until the deadline."""
        ready, _, _ = select.select([self.read_end], [], [], max(0, deadline - time.monotonic()))
        if not ready:
            raise TimeoutError("Chromium does not answer")
        got = os.read(self.read_end, 1 << 20)
        if not got:
            raise AssertionError("Chromium ended")
        *messages, self.buffer = (self.buffer + got).split(b"\0")
        for message in map(json.loads, messages):
            if "id" in message:
                self.answers[message["id"]] = message
            elif message.get("sessionId") in self.pages:
                self.pages[message["sessionId"]].heard(message["method"], message["params"])

    def close(self):
        self.process.terminate()
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


class Page:
    """One tab, and all it asked for and complained about."""

    def __init__(self, browser, url, width=1280, height=900):
        self.browser, self.errors, self.asked, self.bytes, self.under_way = browser, [], [], 0, {}
        # What is asked for again every few seconds is not loading.
        self.loaded = set()
        # A context of its own: what one page keeps, no other one sees.
        context = browser.order("Target.createBrowserContext")["browserContextId"]
        target = browser.order("Target.createTarget", url="about:blank", browserContextId=context, width=width, height=height)["targetId"]
        self.target, self.context = target, context
        self.session = browser.order("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        browser.pages[self.session] = self
        for domain in ["Page", "Network", "Runtime", "Log"]:
            self.order(f"{domain}.enable")
        self.size(width, height)
        self.order("Page.navigate", url=url)
        self.wait("the page to load", "location.protocol === 'http:' && document.readyState === 'complete'")

    def order(self, method, **parameters):
        return self.browser.order(method, self.session, **parameters)

    def heard(self, method, told):
        if method == "Network.requestWillBeSent":
            self.asked.append(told["request"]["url"])
            self.under_way[told["requestId"]] = told["request"]["url"].split("?")[0]
        elif method == "Network.loadingFinished":
            url = self.under_way.pop(told["requestId"], None)
            self.bytes += 0 if url in self.loaded else told["encodedDataLength"]
            self.loaded.add(url)
        elif method == "Network.loadingFailed":
            self.under_way.pop(told["requestId"], None)
        elif method == "Runtime.exceptionThrown":
            details = told["exceptionDetails"]
            self.errors.append(details.get("exception", {}).get("description", details["text"]))
        elif method == "Runtime.consoleAPICalled" and told["type"] in ("error", "warning", "assert"):
            self.errors.append(str([one.get("value", one.get("description")) for one in told["args"]]))
        elif method == "Log.entryAdded" and told["entry"]["level"] in ("error", "warning"):
            self.errors.append(f"{told['entry']['text']} {told['entry'].get('url', '')}")
        elif method == "Page.javascriptDialogOpening":
            self.errors.append(f"a dialog opened: {told['message']}")
            self.browser.number += 1
            message = {"id": self.browser.number, "method": "Page.handleJavaScriptDialog", "params": {"accept": True}, "sessionId": self.session}
            os.write(self.browser.write_end, json.dumps(message).encode() + b"\0")

    def value(self, expression):
        said = self.order("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in said:
            raise AssertionError(f"{expression}: {said['exceptionDetails']}")
        return said["result"].get("value")

    def text(self, selector):
        return self.value(f"document.querySelector({json.dumps(selector)})?.textContent")

    def wait(self, what, expression, within_s=20):
        """Until the expression is true in the page; returns after how many seconds."""
        began = time.monotonic()
        while True:
            try:
                said = self.value(expression)
            except AssertionError as error:
                # Asked just when the page went on to another.
                if "navigated" not in str(error):
                    raise
                said = None
            if said:
                return time.monotonic() - began
            if time.monotonic() - began > within_s:
                raise AssertionError(f"waited {within_s} s in vain for: {what} (the page says {self.text('#state')!r}, {self.text('#headline')!r}; its console {self.errors})")
            time.sleep(0.02)

    def key(self, name):
        code, text = KEYS[name]
        common = {"key": name, "code": "Space" if name == " " else name, "windowsVirtualKeyCode": code, "nativeVirtualKeyCode": code}
        self.order("Input.dispatchKeyEvent", type="keyDown", text=text, **common)
        self.order("Input.dispatchKeyEvent", type="keyUp", **common)

    def type(self, text):
        self.order("Input.insertText", text=text)

    def click(self, selector):
        place = self.value(f"(() => {{ const node = document.querySelector({json.dumps(selector)}); node.scrollIntoView({{block: 'center'}}); "
                           "const box = node.getBoundingClientRect(); return [box.x + box.width / 2, box.y + box.height / 2]; })()")
        for kind in ["mousePressed", "mouseReleased"]:
            self.order("Input.dispatchMouseEvent", type=kind, x=place[0], y=place[1], button="left", clickCount=1)

    def size(self, width, height=900, dark=False):
        self.order("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)
        self.order("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}])

    def picture(self, path, width, dark):
        self.size(width, 900, dark)
        self.value("new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(() => done(true))))")
        height = self.value("document.documentElement.scrollHeight")
        shot = self.order("Page.captureScreenshot", captureBeyondViewport=True, clip={"x": 0, "y": 0, "width": width, "height": height, "scale": 1})
        pathlib.Path(path).write_bytes(base64.b64decode(shot["data"]))

    @contextlib.contextmanager
    def unseen(self):
        """Another tab in front of this one, for as long as that takes."""
        other = self.browser.order("Target.createTarget", url="about:blank", browserContextId=self.context)["targetId"]
        self.wait("the page to be hidden", "document.visibilityState === 'hidden'")
        yield
        self.browser.order("Target.activateTarget", targetId=self.target)
        self.wait("the page to be seen", "document.visibilityState === 'visible'")
        self.browser.order("Target.closeTarget", targetId=other)

    def times_asked(self, path):
        self.value("1")
        return sum(url.split("?")[0].endswith(path) for url in self.asked)

    def close(self):
        self.browser.order("Target.closeTarget", targetId=self.target)
