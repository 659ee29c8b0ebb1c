"""A fake of Azure Key Vault, by its REST reference ("Key Vault REST API", keys) and "Authentication, requests
and responses", and of the services that give out access tokens for it:

    https  /keys/…                       a vault or a managed HSM
           /TENANT/oauth2/v2.0/token     the Microsoft identity platform: client credentials, with a
                                         secret or a federated token
           /TENANT/v2.0/.well-known/openid-configuration
    http   /metadata/identity/oauth2/token   a virtual machine's Instance Metadata Service
           /msi/token                    App Service

In truth each has a host of its own. Not part of it: signing, import, backup, key release, deleted keys,
rotation policies, paging. A test grants permissions by name ("get", "wrapKey", "keys/create", …).

Further controls:

    permissions  {"of": client id, "are": [names]}; "*" is every one, and the default
    client       {"id": …} makes an application and returns its secret
    workload     {"id": …, "subject": …} makes an application that trusts the identity provider, and
                 returns a token of it for that subject
    identity     {"header": …} of App Service; {"missing": true}: the virtual machine has no identity
    resource     {"is": …}: for which tokens must be (default https://vault.azure.net)
    token        {"of": client id} returns a token
"""

import json
import re
import secrets
import time

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding, rsa
from cryptography.hazmat.primitives.keywrap import InvalidUnwrap, aes_key_unwrap, aes_key_wrap

import fake
from fake import Refused, base64url, from_base64url

API_VERSIONS = {"7.4", "7.5", "7.6", "2025-07-01"}
TENANT = "11111111-2222-3333-4444-555555555555"
MANAGED_IDENTITY = "99999999-0000-0000-0000-000000000000"
NAME = r"[0-9a-zA-Z-]{1,127}"
VERSION = r"[0-9a-f]{32}"

ASSERTION_TYPE = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer"

OAEP_SHA256 = padding.OAEP(
    mgf=padding.MGF1(algorithm=hashes.SHA256()), algorithm=hashes.SHA256(), label=None
)
OPERATIONS = {
    "RSA": ["encrypt", "decrypt", "sign", "verify", "wrapKey", "unwrapKey"],
    "oct-HSM": ["encrypt", "decrypt", "wrapKey", "unwrapKey"],
}
ALGORITHMS = {"RSA": {"RSA-OAEP-256"}, "oct-HSM": {"A256KW"}}


def refused(status, code, message, inner=None, headers=None):
    error = {"code": code, "message": message}
    if inner:
        error["innererror"] = {"code": inner}
    return Refused(status, {"error": error}, headers)


def login_refused(status, error, code, description):
    """An error of the identity platform."""
    body = {
        "error": error,
        "error_description": f"AADSTS{code}: {description}",
        "error_codes": [code],
        "timestamp": time.strftime("%Y-%m-%d %H:%M:%SZ", time.gmtime()),
        "trace_id": secrets.token_hex(16),
        "correlation_id": secrets.token_hex(16),
    }
    return Refused(status, body)


class KeyVault(fake.Service):
    def __init__(self):
        super().__init__("eyJ0eXAiOiJKV1Qi.")
        self.keys = {}
        self.permissions = {}
        self.secrets, self.subjects = {}, {}
        self.identity_provider = rsa.generate_private_key(public_exponent=65537, key_size=2048)
        self.identity_header, self.has_identity = None, True
        self.resource = "https://vault.azure.net"

    # Routes

    def route(self, request):
        if not request.is_tls:
            if request.path == "/msi/token":
                return self.token_of_app_service(request)
            return self.token_of_machine(request)
        if match := re.fullmatch(r"/([^/]+)/oauth2/v2\.0/token", request.path):
            return self.token_of_client(request, match[1])
        if match := re.fullmatch(r"/([^/]+)/v2\.0/\.well-known/openid-configuration", request.path):
            return self.openid_configuration(match[1])
        caller = self.caller(request)
        if request.query.get("api-version") not in API_VERSIONS or len(request.query) != 1:
            raise refused(400, "BadParameter", "api-version is missing, unknown or not alone.")
        for method, pattern, handler in self.ROUTES:
            match = re.fullmatch(pattern, request.path)
            if match and request.method == method:
                return 200, handler(self, caller, *match.groups(), self.body(request)), {}
        raise refused(404, "NotFound", "There is nothing at this path.")

    @staticmethod
    def body(request):
        if request.method == "GET" or (not request.body and request.path.endswith("/rotate")):
            return {}
        if request.media_type() != "application/json":
            raise refused(415, "UnsupportedMediaType", "Content-Type must be application/json.")
        try:
            body = json.loads(request.body)
        except ValueError:
            body = None
        if not isinstance(body, dict):
            raise refused(400, "BadParameter", "The request body is not a JSON object.")
        return body

    # Who calls, and what they may

    def caller(self, request):
        claims = self.tokens.claims(request.bearer())
        if claims is None or claims["audience"] != self.resource:
            what = "missing a Bearer or PoP token" if request.bearer() is None else "not valid"
            raise refused(401, "Unauthorized", f"AKV10000: Request is {what}.", headers={
                "WWW-Authenticate": f'Bearer authorization="{self.base()}/{TENANT}", '
                f'resource="{self.resource}"'
            })
        return claims["identity"]

    def require(self, caller, permission):
        granted = self.permissions.get(caller, ["*"])
        if "*" not in granted and permission not in granted:
            raise refused(
                403, "Forbidden",
                f"Caller is not authorized to perform action on resource. Caller: appid={caller}; "
                f"Action: '{permission}'",
                "ForbiddenByRbac",
            )

    # Keys

    def create(self, caller, name, body):
        self.require(caller, "create")
        fields(body, {"kty", "key_size", "key_ops", "attributes", "tags"})
        kty, size = body.get("kty"), body.get("key_size")
        if kty not in OPERATIONS or size not in (None, *((2048, 3072, 4096) if kty == "RSA" else (256,))):
            raise refused(400, "BadParameter", "The key type or size is not supported.")
        operations = body.get("key_ops", OPERATIONS[kty])
        key = Key(kty, size, operations, body.get("attributes", {}))
        self.keys.setdefault(name, []).append(key)
        return self.bundle(name, key)

    def rotate(self, caller, name, body):
        self.require(caller, "rotate")
        fields(body, set())
        last = self.newest(name)
        self.keys[name].append(Key(last.kty, last.size, last.operations, {}))
        return self.bundle(name, self.keys[name][-1])

    def update(self, caller, name, version, body):
        self.require(caller, "update")
        fields(body, {"key_ops", "attributes", "tags"})
        key = self.key(name, version) if version else self.newest(name)
        key.operations = body.get("key_ops", key.operations)
        key.attributes.update(body.get("attributes", {}))
        return self.bundle(name, key)

    def get(self, caller, name, version, body):
        self.require(caller, "get")
        key = self.key(name, version) if version else self.newest(name)
        return self.bundle(name, key)

    def operate(self, caller, name, version, operation, body):
        names = {"wrapkey": "wrapKey", "unwrapkey": "unwrapKey"}
        operation = names.get(operation.lower(), operation.lower())
        self.require(caller, operation)
        fields(body, {"alg", "value"})
        key = self.key(name, version) if version else self.newest(name)
        try:
            value = from_base64url(body.get("value"))
        except ValueError:
            raise refused(400, "BadParameter", "Property value has invalid value.") from None
        key.require(operation)
        if body.get("alg") not in ALGORITHMS[key.kty]:
            raise refused(400, "BadParameter", "Key and algorithm are incompatible.")
        inward = operation in ("wrapKey", "encrypt")
        result = key.wrap(value) if inward else key.unwrap(value)
        return {"kid": self.kid(name, key), "value": base64url(result)}

    ROUTES = [
        ("POST", f"/keys/({NAME})/create", create),
        ("POST", f"/keys/({NAME})/rotate", rotate),
        ("PATCH", f"/keys/({NAME})/({VERSION})?", update),
        ("GET", f"/keys/({NAME})(?:/({VERSION})?)?", get),
        ("POST", f"/keys/({NAME})/({VERSION})?/([a-zA-Z]+)", operate),
    ]

    def newest(self, name):
        if name not in self.keys:
            raise self.not_found(name)
        return self.keys[name][-1]

    def key(self, name, version):
        for key in self.keys.get(name, []):
            if key.version == version:
                return key
        raise self.not_found(f"{name}/{version}")

    @staticmethod
    def not_found(what):
        return refused(
            404, "KeyNotFound",
            f"A key with (name/id) {what} was not found in this key vault. If you recently deleted "
            "this key you may be able to recover it using the correct recovery command.",
        )

    def base(self):
        return f"https://127.0.0.1:{self.https_port}"

    def kid(self, name, key):
        return f"{self.base()}/keys/{name}/{key.version}"

    def bundle(self, name, key):
        key_attributes = {"created": key.created, "updated": key.created, **key.attributes}
        return {"key": {"kid": self.kid(name, key), **key.public()}, "attributes": key_attributes}

    # Access tokens

    def token_of_client(self, request, tenant):
        """"Microsoft identity platform and the OAuth 2.0 client credentials flow"."""
        form = request.form()
        if request.method != "POST" or form is None:
            raise login_refused(400, "invalid_request", 900144, "The request body is malformed.")
        # What Microsoft's own library adds: that it wants to know the client, and what it understands.
        form.pop("client_info", None)
        form.pop("claims", None)
        if tenant != TENANT:
            raise login_refused(400, "invalid_request", 90002, f"Tenant '{tenant}' not found.")
        if form.pop("grant_type", None) != "client_credentials":
            raise login_refused(400, "unsupported_grant_type", 70003, "Unsupported grant type.")
        client, scope = form.pop("client_id", None), form.pop("scope", "")
        if not scope.endswith("/.default"):
            raise login_refused(400, "invalid_scope", 1002012, "The scope is not valid.")
        if set(form) == {"client_secret"}:
            expected = self.secrets.get(client)
            if expected is None:
                raise login_refused(400, "unauthorized_client", 700016, "Application not found.")
            if form["client_secret"] != expected:
                raise login_refused(401, "invalid_client", 7000215, "Invalid client secret provided.")
        elif set(form) == {"client_assertion", "client_assertion_type"}:
            if form["client_assertion_type"] != ASSERTION_TYPE:
                raise login_refused(400, "invalid_request", 700027, "Wrong client_assertion_type.")
            self.verify_assertion(client, form["client_assertion"])
        else:
            raise login_refused(401, "invalid_client", 7000218, "The body must contain a credential.")
        return self.issue(client, scope.removesuffix("/.default"), lambda lifetime: {
            "expires_in": lifetime,
            "ext_expires_in": lifetime,
        })

    def verify_assertion(self, client, assertion):
        """"Workload identity federation": a token that the trusted identity provider issued."""
        try:
            _, claims, signed, signature = fake.jwt_parts(assertion)
            self.identity_provider.public_key().verify(
                signature, signed, padding.PKCS1v15(), hashes.SHA256()
            )
        except (ValueError, InvalidSignature):
            raise login_refused(
                401, "invalid_client", 700027, "Client assertion failed signature validation."
            ) from None
        if claims["exp"] <= time.time():
            raise login_refused(401, "invalid_client", 700024, "Client assertion has expired.")
        if claims["aud"] != "api://AzureADTokenExchange" or claims["sub"] != self.subjects.get(client):
            raise login_refused(
                400, "invalid_request", 70021, "No matching federated identity record found."
            )

    def openid_configuration(self, tenant):
        base = self.base()
        return 200, {
            "token_endpoint": f"{base}/{tenant}/oauth2/v2.0/token",
            "authorization_endpoint": f"{base}/{tenant}/oauth2/v2.0/authorize",
            "issuer": f"{base}/{tenant}/v2.0",
        }, {}

    def token_of_machine(self, request):
        """"How to use managed identities for Azure resources on an Azure VM to acquire an access token"."""
        if request.path != "/metadata/identity/oauth2/token" or request.method != "GET":
            raise Refused(404, {"error": "not_found"})
        if request.headers.get("metadata") != "true" or "x-forwarded-for" in request.headers:
            raise Refused(400, {
                "error": "invalid_request",
                "error_description": "Required metadata header not specified",
            })
        return self.token_of_identity(request, "2018-02-01", lambda lifetime: {
            "expires_in": str(lifetime),
            "ext_expires_in": str(lifetime),
            "not_before": str(int(time.time())),
        })

    def token_of_app_service(self, request):
        """"How to use managed identities for App Service and Azure Functions", REST protocol."""
        if request.headers.get("x-identity-header") != self.identity_header or request.method != "GET":
            raise Refused(403, None)
        return self.token_of_identity(request, "2019-08-01", lambda _: {})

    def token_of_identity(self, request, api_version, more):
        query = dict(request.query)
        client = query.pop("client_id", MANAGED_IDENTITY)
        resource = query.pop("resource", None)
        if query != {"api-version": api_version} or resource is None:
            raise Refused(400, {"error": "invalid_request", "error_description": "Bad parameters"})
        if not self.has_identity or client != MANAGED_IDENTITY:
            raise Refused(400, {
                "error": "invalid_request", "error_description": "Identity not found",
            })
        return self.issue(client, resource.rstrip("/"), lambda lifetime: {
            "client_id": client,
            "expires_on": str(int(time.time()) + lifetime),
            "resource": resource,
            **more(lifetime),
        })

    def issue(self, client, resource, more):
        token, lifetime = self.tokens.issue(identity=client, audience=resource)
        return 200, {"access_token": token, "token_type": "Bearer", **more(lifetime)}, {}

    # Controls

    def control(self, name, body):
        if name == "permissions":
            self.permissions[body["of"]] = body["are"]
            return {}
        if name == "client":
            self.secrets[body["id"]] = secrets.token_urlsafe(30)
            return {"secret": self.secrets[body["id"]]}
        if name == "workload":
            self.subjects[body["id"]] = body["subject"]
            return {"token": self.federated_token(body["subject"])}
        if name == "identity":
            self.identity_header = body.get("header", self.identity_header)
            self.has_identity = not body.get("missing", not self.has_identity)
            return {}
        if name == "resource":
            self.resource = body["is"]
            return {}
        if name == "token":
            return {"token": self.tokens.issue(identity=body["of"], audience=self.resource)[0]}
        return None

    def federated_token(self, subject):
        claims = {
            "iss": "https://issuer.example",
            "sub": subject,
            "aud": "api://AzureADTokenExchange",
            "exp": int(time.time()) + 600,
        }
        header = {"alg": "RS256", "typ": "JWT"}
        signed = ".".join(base64url(json.dumps(part).encode()) for part in (header, claims))
        signature = self.identity_provider.sign(
            signed.encode(), padding.PKCS1v15(), hashes.SHA256()
        )
        return f"{signed}.{base64url(signature)}"


class Key:
    """A version of a key."""

    def __init__(self, kty, size, operations, attributes):
        self.kty, self.size, self.operations = kty, size, list(operations)
        self.version, self.created = secrets.token_hex(16), int(time.time())
        self.attributes = {"enabled": True, "recoveryLevel": "Recoverable+Purgeable", **attributes}
        if kty == "RSA":
            self.secret = rsa.generate_private_key(public_exponent=65537, key_size=size or 2048)
        else:
            self.secret = secrets.token_bytes(32)

    def public(self):
        public = {"kty": self.kty, "key_ops": self.operations}
        if self.kty == "RSA":
            numbers = self.secret.public_key().public_numbers()
            for name, number in (("n", numbers.n), ("e", numbers.e)):
                public[name] = base64url(number.to_bytes((number.bit_length() + 7) // 8, "big"))
        return public

    def require(self, operation):
        """That the operation is allowed now."""
        now, inward = time.time(), operation in ("wrapKey", "encrypt")
        if operation not in OPERATIONS[self.kty]:
            raise refused(404, "NotFound", "There is no such operation.")
        for is_wrong, what, code in (
            (not self.attributes["enabled"], "a disabled key", "KeyDisabled"),
            (inward and now < self.attributes.get("nbf", 0), "a key that is not yet valid", "KeyNotYetValid"),
            (inward and now > self.attributes.get("exp", now), "an expired key", "KeyExpired"),
            (operation not in self.operations, "this key", "KeyOperationForbidden"),
        ):
            if is_wrong:
                raise refused(403, "Forbidden", f"Operation {operation} is not allowed on {what}.", code)

    def wrap(self, value):
        if self.kty == "RSA":
            if len(value) > self.secret.key_size // 8 - 66:
                raise refused(400, "BadParameter", "The value is too long for the key.")
            return self.secret.public_key().encrypt(value, OAEP_SHA256)
        try:
            return aes_key_wrap(self.secret, value)
        except ValueError:
            raise refused(400, "BadParameter", "The value can't be wrapped.") from None

    def unwrap(self, value):
        try:
            if self.kty == "RSA":
                return self.secret.decrypt(value, OAEP_SHA256)
            return aes_key_unwrap(self.secret, value)
        except (ValueError, InvalidUnwrap):
            raise refused(400, "BadParameter", "The parameter is incorrect.") from None


def fields(body, allowed):
    for name in set(body) - allowed:
        raise refused(400, "BadParameter", f"Property {name} is unknown.")


if __name__ == "__main__":
    fake.serve(KeyVault())
