"""Uses the page of all rigs as their owner does, and says what it found. Ends with an error at the first thing that is wrong."""

import json
import os
import pathlib
import subprocess
import sys
import time

from browser import Browser, Page
from drive import CHANGE_WITHIN_S, HELD_TOKEN, HOSTILE, LIVE, LOADED_BYTES_MAX, Real, StandIn, check, edges, fits, pictures, until

ROW = "[...document.querySelectorAll('#rigs tbody tr:not(.opened)')]"
NAMES = f"{ROW}.map((row) => row.querySelector('.name').textContent)"


def states(page):
    """The state that the page shows, by name."""
    return dict(page.value(f"{ROW}.map((row) => [row.querySelector('.name').textContent, row.dataset.state])"))


def opened(browser, agent):
    """From the dashboard to the rigs, by its link; what the page may do wrong by loading."""
    page = Page(browser, agent.url())
    page.wait("the dashboard to be live", LIVE)
    page.wait("the link to the rigs", "!document.getElementById('fleet').hidden")
    page.click("#fleet")
    page.wait("the page of the rigs", f"location.pathname === '/fleet' && document.readyState === 'complete' && {LIVE}")
    page.wait("the rigs", f"{ROW}.length > 1")
    files = sum(len(agent.file(path)) for path in ["/", "/app.js", "/style.css", "/fleet", "/fleet.js"])
    check(files < LOADED_BYTES_MAX, f"all files of both pages are {files} bytes together, below {LOADED_BYTES_MAX}")
    outside = [url for url in page.asked if not url.startswith((agent.origin + "/", "data:")) and url != "about:blank"]
    check(not outside, f"no request goes elsewhere: {outside or len(page.asked)}")
    check(not page.errors, f"the console is quiet {page.errors or ''}")
    check(page.value("location.href") == agent.origin + "/fleet" and page.value(HELD_TOKEN) == agent.token, "the token is in the tab's storage, not in the address")
    return page


def press(page, selector):
    page.wait(f"{selector} to be ready", f"document.querySelector({json.dumps(selector)}).ariaDisabled === 'false'", CHANGE_WITHIN_S)
    page.click(selector)


def pick(page, name):
    page.click(f"#rigs input[aria-label={json.dumps('Select ' + name)}]")


def reads_nothing(browser, agent, token):
    page = Page(browser, f"{agent.origin}/fleet")
    if token:
        page.value(f"sessionStorage.setItem('token', {json.dumps(token)}); location.reload()")
        page.wait("the token to be dropped", f"document.readyState === 'complete' && {HELD_TOKEN} === null")
    page.wait("the explanation", "!document.getElementById('tokenless').hidden")
    check(page.value("document.getElementById('fleet').hidden && !document.querySelector('#rigs tbody tr')"), f"{'with a wrong' if token else 'without a'} token nothing is told of other machines")
    if token:
        check(page.value(HELD_TOKEN) is None, "a token that is wrong is not kept")
    else:
        check(not page.errors and not any("/api/" in url for url in page.asked), "and nothing is asked")
    page.close()


def stand_in(browser, out):
    agent = StandIn()
    agent.start()
    try:
        page = opened(browser, agent)
        check(page.text("#headline") == "6 rigs: 2 working, 1 waiting, 1 paused, 1 trouble, 1 gone", f"the headline counts them: {page.text('#headline')!r}")
        check(HOSTILE in page.value(NAMES) and page.value("document.images.length") == 0, "a name that is markup is shown as text")
        cards = dict(page.value(f"{ROW}.map((row) => [row.querySelector('.name').textContent, row.children[3].textContent])"))
        check(cards["attic"] == "6" and cards[HOSTILE] == "–", f"what is not measured yet is neither GPU nor CPU: {cards}")
        check("432345579.00 coins" in page.text("#facts"), f"exact coins are added exactly: {page.text('#facts')!r}")
        check(page.value(f"{ROW}.find((row) => row.dataset.state === 'gone').textContent.includes('3 h 1 min ago')"), "a rig that is gone says since when")
        for width in [360, 600, 900, 1100, 1280]:
            fits(page, width)
        pictures(page, out, "fleet")
        for name in ["cellar", "attic", "shed"]:
            page.value(f"{ROW}.find((row) => row.querySelector('.name').textContent === '{name}').querySelector('.name').click()")
        told = page.text("#rigs tbody")
        check(all(words in told for words in ["it works again below 75 °C", "85 °C", "did not answer within 60 s", "9.1 GB of memory used", "memory not measured", "RTX 3060", "when it was last seen: Working"]),
              "an opened row tells reasons, devices, and what was not measured")
        for width in [360, 1280]:
            fits(page, width)
        pictures(page, out, "fleet-opened")

        page.value("document.activeElement.blur()")
        page.click("#filters [data-state='working']")
        check(len(page.value(NAMES)) == 2, f"a filter leaves those that work: {page.value(NAMES)}")
        check(page.value("document.querySelector('#orders [data-order=\"resume\"]').ariaDisabled") == "true" and page.text("#selected") == "Select the rigs first", "orders rest while no rig is selected")
        page.click("#all")
        check(page.text("#selected") == "to 2 rigs", "all that are shown are selected at once")
        page.click("#filters [data-state='all']")
        check(page.value("document.getElementById('all').indeterminate") and page.text("#selected") == "to 2 rigs", "some of all")
        press(page, "[data-opens='pause']")
        edges(page, "the page of all rigs")
        pictures(page, out, "fleet-pause")
        press(page, "#pause [data-body='{}']")
        page.wait("the pause", f"{ROW}.filter((row) => row.dataset.state === 'paused').length === 3", CHANGE_WITHIN_S)
        check(states(page)["attic"] == "paused" and states(page)["rig-with-a-rather-long-name.in-the-garage.example"] == "waiting", "who was selected is paused, and nobody else")
        page.click("#all")
        press(page, "[data-opens='update']")
        press(page, "#update button")
        page.wait("what came of it", "document.querySelectorAll('#told .bad').length === 2", CHANGE_WITHIN_S)
        check("hint: name one in config.toml" in page.text("#told"), "an order that fails says why for each rig")
        check(page.text("#told b").startswith("desk, attic, cellar, ") and page.text("#told li:last-child b") == "shed", "rigs with the same answer stand together")
        fits(page, 360)
        pictures(page, out, "fleet-told")
        press(page, "#orders [data-order='resume']")
        page.wait("the rigs to go on", f"{ROW}.filter((row) => row.dataset.state === 'working').length === 2", CHANGE_WITHIN_S)
        keyboard(page)
        check(not page.errors, f"the console was quiet all the time {page.errors or ''}")
        reads_nothing(browser, agent, None)
        reads_nothing(browser, agent, "wrong")
        agent.kill()
        page.click("#again")
        page.wait("silence to be told", "!document.getElementById('silent').hidden", 30)
        check("does not answer" in page.text("#silent"), "an agent that was killed is missed")
        agent.start()
        page.value(f"location.hash = 'ticket={agent.ticket()}'")
        page.wait("the page to be live again", f"{LIVE} && document.getElementById('silent').hidden", 30)
        page.close()
    finally:
        agent.kill()


def keyboard(page):
    """A pause without a mouse."""
    page.value("document.querySelectorAll('#rigs tbody input:checked').forEach((box) => box.click()); document.getElementById('again').focus()")

    def reach(what, arrived):
        for presses in range(1, 40):
            page.key("Tab")
            if page.value(arrived):
                outline = page.value("getComputedStyle(document.activeElement).outlineStyle + getComputedStyle(document.activeElement).outlineWidth")
                check(outline == "solid2px", f"Tab reaches {what} ({presses} presses), and shows it")
                return
        raise AssertionError(f"Tab does not reach {what}")

    reach("a rig", "document.activeElement.ariaLabel === 'Select attic'")
    page.key(" ")
    page.wait("it to be selected", "document.getElementById('selected').textContent === 'to 1 rig'", 2)
    page.key("Tab")
    before = page.value("document.querySelectorAll('#rigs tr.opened').length")
    page.key("Enter")
    page.wait("its row to open or close", f"document.querySelectorAll('#rigs tr.opened').length !== {before}", 2)
    page.value("document.getElementById('again').focus()")
    reach("Pause…", "document.activeElement.textContent === 'Pause…'")
    page.key("Enter")
    page.wait("the choice of times", "!document.getElementById('pause').hidden", 2)
    page.key("Escape")
    check(page.value("document.getElementById('pause').hidden && document.activeElement.textContent === 'Pause…'"), "Escape closes it and gives the focus back")
    page.key("Enter")
    reach("30 min", "document.activeElement.textContent === '30 min'")
    page.key("Enter")
    page.wait("the pause by Enter", f"{ROW}.find((row) => row.querySelector('.name').textContent === 'attic').dataset.state === 'paused'", CHANGE_WITHIN_S)


def real(browser, skein, work, out):
    folder = work / "rigs"
    folder.mkdir(parents=True)
    genesis = folder / "genesis.toml"
    genesis.write_text(f'name = "test"\npolicy = "io"\nstarted_at_ms = {int(time.time() * 1000)}\nepoch_ms = 20000\n')
    desk = Real(skein, folder, "desk", genesis, more=["--name", "desk"])
    key = subprocess.run([skein, "fleet", "key", "--data-dir", desk.data], capture_output=True, text=True, timeout=20).stdout.strip()
    agents = [desk]
    try:
        desk.start()
        for name in ["attic", "cellar"]:
            agents.append(Real(skein, folder, name, genesis, desk.address, ["--name", name, "--owner", key]))
            agents[-1].start()

        def seen():
            said = subprocess.run([skein, "fleet", "--json", "--data-dir", desk.data], capture_output=True, text=True, timeout=20)
            rigs = json.loads(said.stdout)["rigs"]
            # Measured, and at rest: a state that stays.
            return [rig["name"] for rig in rigs if rig["report"]["state"] == "waiting" and rig["report"]["workers"]] == ["attic", "cellar", "desk"]

        until("the rigs to answer", seen)
        page = opened(browser, desk)
        check(page.value(NAMES) == ["attic", "cellar", "desk"], "both rigs and the owner's own agent are there")
        pick(page, "attic")
        pick(page, "cellar")
        press(page, "[data-opens='pause']")
        press(page, "#pause [data-body*='1800']")
        took = page.wait("the pause", f"{ROW}.filter((row) => row.dataset.state === 'paused').length === 2", CHANGE_WITHIN_S)
        check(all(agent.get("/api/status")["policy"]["pause"]["until_ms"] for agent in agents[1:]) and desk.get("/api/status")["policy"]["pause"] is None,
              f"both rigs are paused, on the page after {took:.2f} s and on the rigs; the desk is not")
        press(page, "#orders [data-order='resume']")
        page.wait("the rigs to go on", f"!{ROW}.some((row) => row.dataset.state === 'paused')", CHANGE_WITHIN_S)
        press(page, "#orders [data-order='finish']")
        until("finishing", lambda: all(agent.get("/api/status")["policy"]["finishing"] for agent in agents[1:]), CHANGE_WITHIN_S)
        press(page, "[data-opens='update']")
        press(page, "#update button")
        page.wait("the refusals", "document.querySelector('#told .bad b')?.textContent === 'attic, cellar'", CHANGE_WITHIN_S)
        agents[2].kill()
        until("its silence", lambda: page.click("#again") or page.wait("an answer", "document.getElementById('live').dataset.live === 'yes'") and states(page)["cellar"] == "gone", 30)
        page.value(f"{ROW}.find((row) => row.dataset.state === 'gone').querySelector('.name').click()")
        check("when it was last seen: Waiting" in page.text("#rigs tbody"), "a rig that was killed is shown as it was last seen")
        fits(page, 360)
        pictures(page, out, "fleet-real")
        check(not page.errors, f"the console was quiet all the time {page.errors or ''}")
        page.close()
    finally:
        for agent in agents:
            if agent.process:
                agent.kill()


def main():
    work, out = pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2])
    work.mkdir(parents=True, exist_ok=True)
    browser = Browser(os.environ["CHROMIUM"], work / "profile")
    try:
        print("the page of all rigs, of an agent that is a stand-in:")
        stand_in(browser, out)
        if os.environ.get("SKEIN"):
            print("real rigs:")
            real(browser, os.path.abspath(os.environ["SKEIN"]), work, out)
        else:
            print("no SKEIN is given: no real rig was looked at")
    finally:
        browser.close()
    print("all is well")


if __name__ == "__main__":
    main()
