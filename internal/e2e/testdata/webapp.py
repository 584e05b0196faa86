"""A web application with a SQLite database: webapp.py PORT DATABASE.

POST /?client=C&n=N adds a row; 503 when the database does not take it, and nothing was done then.
GET /?client=C answers the highest n of the client and how many rows it has.
"""
import os
import signal
import sqlite3
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlparse

local = threading.local()


def connection():
    if not hasattr(local, "conn"):
        local.conn = sqlite3.connect(sys.argv[2], timeout=2, isolation_level=None)
    return local.conn


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def answer(self, code, text):
        body = text.encode()
        self.send_response(code)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def handle_sql(self, sql, args):
        try:
            row = connection().execute(sql, args).fetchone()
        except sqlite3.OperationalError as e:
            return self.answer(503, str(e))
        return self.answer(200, " ".join(map(str, row or ())))

    def do_GET(self):
        q = parse_qs(urlparse(self.path).query)
        self.handle_sql("SELECT coalesce(max(n), 0), count(*) FROM t WHERE client = ?", [q["client"][0]])

    def do_POST(self):
        q = parse_qs(urlparse(self.path).query)
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.handle_sql("INSERT INTO t(client, n, v) VALUES (?, ?, ?)", [q["client"][0], int(q["n"][0]), body])

    def log_message(self, *args):
        pass


class Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128


signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
Server(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
