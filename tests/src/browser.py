"""A browser that is told by lines of JSON on standard input what to do, and answers each by one. It is started with this
program's arguments, too.

{"open": URL, "width": W, "height": H}   goes there
{"eval": EXPRESSION}                     what it comes to
{"shot": FILE}                           a picture of the whole page, as PNG
"""
import base64, json, os, subprocess, sys, tempfile

to_browser, from_us = os.pipe()
to_us, from_browser = os.pipe()


def take_pipes():
    # Where it looks for them. Neither may be the other's number before it is moved.
    ours, theirs = os.dup(to_browser), os.dup(from_browser)
    os.dup2(ours, 3)
    os.dup2(theirs, 4)


profile = tempfile.TemporaryDirectory()
browser = subprocess.Popen(
    ["chromium", "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run",
     "--disable-background-networking", "--proxy-server=direct://", f"--user-data-dir={profile.name}",
     "--remote-debugging-pipe", *sys.argv[1:], "about:blank"],
    stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, close_fds=False,
    preexec_fn=take_pipes)
os.close(to_browser)
os.close(from_browser)
said, number, session = b"", 0, None


def call(method, **params):
    """Chrome DevTools Protocol: one call, and its answer; events in between are of no interest."""
    global said, number
    number += 1
    message = {"id": number, "method": method, "params": params}
    if session is not None:
        message["sessionId"] = session
    os.write(from_us, json.dumps(message).encode() + b"\0")
    while True:
        while b"\0" not in said:
            more = os.read(to_us, 1 << 20)
            if not more:
                raise SystemExit("the browser has ended")
            said += more
        line, said = said.split(b"\0", 1)
        answer = json.loads(line)
        if answer.get("id") == number:
            if "error" in answer:
                raise SystemExit(f"{method}: {answer['error']}")
            return answer["result"]


target = call("Target.createTarget", url="about:blank")["targetId"]
session = call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
try:
    for line in sys.stdin:
        asked, answer = json.loads(line), None
        if "open" in asked:
            call("Emulation.setDeviceMetricsOverride", width=asked["width"], height=asked["height"], deviceScaleFactor=1,
                 mobile=asked["width"] < 600)
            answer = call("Page.navigate", url=asked["open"]).get("errorText")
        elif "eval" in asked:
            made = call("Runtime.evaluate", expression=asked["eval"], returnByValue=True)
            answer = made["result"].get("value", made.get("exceptionDetails", {}).get("text"))
        elif "shot" in asked:
            picture = call("Page.captureScreenshot", captureBeyondViewport=True)
            with open(asked["shot"], "wb") as file:
                file.write(base64.b64decode(picture["data"]))
        print(json.dumps(answer), flush=True)
finally:
    browser.kill()
    browser.wait()
