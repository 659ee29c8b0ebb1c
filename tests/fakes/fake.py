"""What the fakes of cloud services have in common: an HTTPS and an HTTP listener, access tokens, a log of
requests, and faults that a test orders.

A fake answers as the service's public API reference says, and refuses whatever that doesn't allow: an
unknown path, method, query parameter or field, another content type. Its cryptography is real.

Tests steer it by POST requests with JSON to `/_control/…` on the HTTP listener:

    fault     {"path": regular expression, "times": 1, …}: what the next answers are instead:
              "status", "headers" and "body" (text), or "merge" (fields that replace those of the real
              answer; null removes one), "cut" (the connection ends after that many bytes of the
              body), "delay" (seconds before the answer)
    settings  {"token_lifetime": seconds}: of tokens that are issued from now on
    revoke    forgets every token
    requests  the requests since the last call of this, as "METHOD /path"

and whatever the service adds.
"""

import argparse
import base64
import binascii
import http.server
import json
import re
import secrets
import socket
import ssl
import threading
import time
import urllib.parse


class Refused(Exception):
    """An answer that isn't a success."""

    def __init__(self, status, body, headers=None):
        super().__init__(status)
        self.status, self.body, self.headers = status, body, headers or {}


class Request:
    """A request that has arrived. The header names are in lower case."""

    def __init__(self, method, target, headers, body, is_tls, port):
        self.method, self.body, self.is_tls, self.port = method, body, is_tls, port
        parts = urllib.parse.urlsplit(target)
        self.path = parts.path
        pairs = urllib.parse.parse_qsl(parts.query, keep_blank_values=True)
        self.query = dict(pairs)
        self.has_repeated_parameter = len(self.query) != len(pairs)
        self.headers = {name.lower(): value for name, value in headers.items()}

    def media_type(self):
        return self.headers.get("content-type", "").split(";")[0].strip().lower()

    def bearer(self):
        """The access token, or None."""
        scheme, _, token = self.headers.get("authorization", "").partition(" ")
        return token if scheme == "Bearer" else None

    def form(self):
        """The fields of a form (application/x-www-form-urlencoded), or None."""
        if self.media_type() != "application/x-www-form-urlencoded":
            return None
        try:
            pairs = urllib.parse.parse_qsl(
                self.body.decode("ascii"), strict_parsing=True, errors="strict"
            )
        except (UnicodeDecodeError, ValueError):
            return None
        fields = dict(pairs)
        return fields if len(fields) == len(pairs) else None


class Tokens:
    """The access tokens that a fake has issued. They are opaque, as clients must take them."""

    def __init__(self, prefix):
        self.prefix, self.lifetime, self.issued = prefix, 3600, {}

    def issue(self, **claims):
        """A new token and how many seconds it lives."""
        token = self.prefix + secrets.token_urlsafe(48)
        self.issued[token] = (time.monotonic() + self.lifetime, claims)
        return token, self.lifetime

    def claims(self, token):
        """What a token was issued with; None if it is none, or has expired."""
        expires, claims = self.issued.get(token, (0, None))
        return claims if time.monotonic() < expires else None


class Service:
    """What a fake inherits. It has `route(request)`, which returns (status, JSON, headers), and
    `control(name, body)` for what it adds to the controls, which returns JSON or None."""

    def __init__(self, token_prefix):
        self.tokens = Tokens(token_prefix)
        self.lock = threading.Lock()
        self.faults, self.requests = [], []
        self.https_port = self.http_port = None

    def answer(self, request):
        """The answer as (status, body, headers, the fault to apply or None)."""
        if request.path.startswith("/_control/") and not request.is_tls:
            with self.lock:
                return (*self.answer_control(request), None)
        with self.lock:
            self.requests.append(f"{request.method} {request.path}")
            fault = self.next_fault(request.path)
        if fault and "delay" in fault:
            time.sleep(fault["delay"])
        if fault and "status" in fault:
            return fault["status"], fault.get("body", "").encode(), fault.get("headers", {}), fault
        with self.lock:
            try:
                status, body, headers = self.route(request)
            except Refused as refused:
                status, body, headers = refused.status, refused.body, refused.headers
        if fault:
            for name, value in fault.get("merge", {}).items():
                body[name] = value
                if value is None:
                    del body[name]
        headers = {"Content-Type": "application/json; charset=UTF-8", **headers}
        return status, json.dumps(body).encode() if body is not None else b"", headers, fault

    def next_fault(self, path):
        for fault in self.faults:
            if re.search(fault["path"], path) and fault["times"] > 0:
                fault["times"] -= 1
                return fault
        return None

    def answer_control(self, request):
        name = request.path.removeprefix("/_control/")
        body = json.loads(request.body or b"{}")
        if name == "fault":
            self.faults.append({"times": 1, **body})
            answer = {}
        elif name == "settings":
            self.tokens.lifetime = body["token_lifetime"]
            answer = {}
        elif name == "revoke":
            self.tokens.issued.clear()
            answer = {}
        elif name == "requests":
            self.requests, answer = [], self.requests
        else:
            answer = self.control(name, body)
        if answer is None:
            return 404, b"", {}
        return 200, json.dumps(answer).encode(), {"Content-Type": "application/json"}


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    # Headers and body in one segment, or clients wait for the second one.
    wbufsize = -1
    disable_nagle_algorithm = True

    def handle_one(self):
        length = self.headers.get("Content-Length")
        body = self.rfile.read(int(length)) if length else b""
        is_tls = isinstance(self.connection, ssl.SSLSocket)
        port = self.server.server_address[1]
        request = Request(self.command, self.path, self.headers, body, is_tls, port)
        status, body, headers, fault = self.server.service.answer(request)
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if fault and "cut" in fault:
            self.wfile.write(body[: fault["cut"]])
            self.wfile.flush()
            self.connection.shutdown(socket.SHUT_RDWR)
            self.close_connection = True
            return
        self.wfile.write(body)

    do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = do_HEAD = handle_one

    def log_message(self, *_):
        """Says nothing: there are tokens in what it would say."""


class Server(http.server.ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64

    def __init__(self, port, service, context):
        self.service, self.context = service, context
        super().__init__(("127.0.0.1", port), Handler)

    def finish_request(self, request, client_address):
        """In a connection's own thread: a client that is slow with its handshake delays no other."""
        if self.context:
            request = self.context.wrap_socket(request, server_side=True)
        super().finish_request(request, client_address)

    def handle_error(self, *_):
        """Clients that go away and failed handshakes are part of the tests."""


def serve(service):
    """Runs the service as the arguments of the program say."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--http-port", type=int, required=True)
    parser.add_argument("--https-port", type=int, required=True)
    parser.add_argument("--certificate", required=True)
    parser.add_argument("--key", required=True)
    options = parser.parse_args()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(options.certificate, options.key)
    service.https_port, service.http_port = options.https_port, options.http_port
    https = Server(options.https_port, service, context)
    threading.Thread(target=https.serve_forever, daemon=True).start()
    # The one that the harness waits for comes last.
    Server(options.http_port, service, None).serve_forever()


def base64url(data):
    """RFC 7515, appendix C: without padding."""
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def from_base64url(text):
    """The bytes, or ValueError. Padding is refused."""
    if not isinstance(text, str) or not re.fullmatch(r"[A-Za-z0-9_-]*", text):
        raise ValueError
    try:
        data = base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
    except binascii.Error as error:
        raise ValueError from error
    if base64url(data) != text:
        raise ValueError
    return data


def jwt_parts(token):
    """Header, claims, what is signed, and the signature (RFC 7519, 7515), or ValueError."""
    header, claims, signature = token.split(".")
    signed = f"{header}.{claims}".encode()
    return (
        json.loads(from_base64url(header)),
        json.loads(from_base64url(claims)),
        signed,
        from_base64url(signature),
    )
