"""goto-rocket's web proc: says where it runs, to whoever asks."""

import os
import signal
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

# What a visitor is told besides the greeting; the platform sets these for each instance.
FACTS = ("APP", "RELEASE", "REV", "INSTANCE", "HOST")


class Rocket(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        lines = [os.environ.get("GREETING", "go to rocket")]
        lines += [f"{fact.lower()}: {os.environ.get('BAZOOKA_' + fact, '-')}" for fact in FACTS]
        body = ("\n".join(lines) + "\n").encode()
        self.send_response(200)
        self.send_header("Content-Type", "text/plain; charset=utf-8")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    do_HEAD = do_GET

    def handle(self):
        try:
            super().handle()
        except ConnectionResetError:
            pass  # How a proxy ends a connection that it kept for more requests.

    def log_message(self, format, *args):
        print(f"{self.address_string()} {format % args}", flush=True)


class Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128


if __name__ == "__main__":
    # New requests have gone elsewhere by the time that SIGTERM comes, so there is nothing to wait for.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    server = Server(("0.0.0.0", int(os.environ["PORT"])), Rocket)
    print(f"listening on {os.environ['PORT']}", flush=True)
    server.serve_forever()
