"""A fake of Google Cloud KMS, by its REST reference ("Cloud Key Management Service (KMS) API", v1), and of
the services that give out access tokens for it:

    https  /v1/projects/…/cryptoKeys/…   Cloud KMS
           /token                        OAuth 2.0 for server-to-server applications
           /v1/token                     Security Token Service (workload identity federation)
           /v1/projects/-/serviceAccounts/…:generateAccessToken   IAM Service Account Credentials
    http   /computeMetadata/v1/…         a virtual machine's metadata server

In truth each has a host of its own. Not part of it: gRPC, IAM policies (a test grants permissions by name),
import, rotation by time, keys for anything but symmetric encryption, paging.

Further controls:

    permissions      {"of": email or subject, "are": [names]}; "*" is every one, and the default
    service_account  {"email": …} makes one and returns its key file
    workload         {"subject": …} returns a token of the identity provider that the workload
                     identity pool trusts, and the configuration file for it, without its
                     credential source ("impersonate": email adds the impersonation)
    scopes           {"are": [URLs]}: of the virtual machine's tokens
    token            {"of": email or subject} returns a token for everything
"""

import base64
import binascii
import json
import re
import secrets
import time
import zlib

from cryptography.exceptions import InvalidSignature, InvalidTag
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import padding, rsa
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

import fake
from fake import Refused

CLOUD_PLATFORM = "https://www.googleapis.com/auth/cloud-platform"
CLOUD_KMS = "https://www.googleapis.com/auth/cloudkms"

# Of google.rpc.Code, with the HTTP status of each.
STATUS = {
    "INVALID_ARGUMENT": 400,
    "FAILED_PRECONDITION": 400,
    "UNAUTHENTICATED": 401,
    "PERMISSION_DENIED": 403,
    "NOT_FOUND": 404,
    "ALREADY_EXISTS": 409,
    "RESOURCE_EXHAUSTED": 429,
}

# The enumerations' numbers, for clients that ask for them by `$alt=json;enum-encoding=int`.
ENUMS = {
    "purpose": {"ENCRYPT_DECRYPT": 1, "ASYMMETRIC_SIGN": 5, "MAC": 9},
    "state": {"ENABLED": 1, "DISABLED": 2, "DESTROYED": 3, "DESTROY_SCHEDULED": 4},
    "algorithm": {"GOOGLE_SYMMETRIC_ENCRYPTION": 1},
    "protectionLevel": {"SOFTWARE": 1, "HSM": 2},
}

RING = r"projects/[a-z0-9.:-]+/locations/[a-z0-9-]+/keyRings/[a-zA-Z0-9_-]{1,63}"
KEY = RING + r"/cryptoKeys/[a-zA-Z0-9_-]{1,63}"
VERSION = KEY + r"/cryptoKeyVersions/[1-9][0-9]*"

MAX_LEN = 64 * 1024


def refused(status, message, details=None):
    """An error as google.rpc.Status."""
    error = {"code": STATUS[status], "message": message, "status": status}
    if details:
        error["details"] = details
    headers = {"WWW-Authenticate": 'Bearer realm="https://accounts.google.com/"'}
    is_login = status == "UNAUTHENTICATED"
    return Refused(STATUS[status], {"error": error}, headers if is_login else {})


def oauth_refused(status, error, description):
    """An error as RFC 6749, section 5.2, has it."""
    return Refused(status, {"error": error, "error_description": description})


class CloudKms(fake.Service):
    def __init__(self):
        super().__init__("ya29.")
        self.rings, self.keys = set(), {}
        self.permissions = {}
        self.accounts = {}
        self.identity_provider = rsa.generate_private_key(public_exponent=65537, key_size=2048)
        self.vm_scopes = [CLOUD_PLATFORM]

    # Routes

    def route(self, request):
        if not request.is_tls:
            return self.metadata(request)
        path = request.path
        if path == "/token":
            return self.token_of_service_account(request)
        if path == "/v1/token":
            return self.token_of_workload(request)
        if match := re.fullmatch(
            r"/v1/projects/-/serviceAccounts/([^/:]+):generateAccessToken", path
        ):
            return self.token_by_impersonation(request, match[1])
        caller = self.caller(request)
        for method, pattern, handler in self.ROUTES:
            match = re.fullmatch("/v1/" + pattern, path)
            if match and request.method == method:
                body = self.body(request)
                encoding = self.parameters(request, handler)
                answer = handler(self, caller, *match.groups(), body=body, query=request.query)
                return 200, with_enums(answer, encoding), {}
        # As Google's front end answers what no service has.
        raise Refused(404, None, {"Content-Type": "text/html; charset=UTF-8"})

    def parameters(self, request, handler):
        """Checks the query, and returns how enumerations are to be written."""
        alt = request.query.pop("$alt", "json")
        allowed = {"create_ring": {"keyRingId"}, "create_key": {"cryptoKeyId"}}
        allowed = allowed.get(handler.__name__, {"updateMask"} if request.method == "PATCH" else set())
        unknown = set(request.query) - allowed
        if unknown or request.has_repeated_parameter or not alt.startswith("json"):
            raise refused("INVALID_ARGUMENT", f'Invalid query parameters: {sorted(unknown)}')
        return "int" if alt == "json;enum-encoding=int" else "name"

    @staticmethod
    def body(request):
        if request.method == "GET":
            if request.body:
                raise Refused(400, None, {"Content-Type": "text/html; charset=UTF-8"})
            return {}
        if request.media_type() != "application/json":
            raise refused("INVALID_ARGUMENT", "Invalid content type.")
        try:
            body = json.loads(request.body)
        except ValueError:
            raise refused("INVALID_ARGUMENT", "Invalid JSON payload received.") from None
        if not isinstance(body, dict):
            raise refused("INVALID_ARGUMENT", "Invalid JSON payload received. Not an object.")
        return body

    # Who calls, and what they may

    def caller(self, request):
        claims = self.tokens.claims(request.bearer())
        if claims is None:
            raise refused(
                "UNAUTHENTICATED",
                "Request had invalid authentication credentials. Expected OAuth 2 access token, "
                "login cookie or other valid authentication credential.",
            )
        if not {CLOUD_PLATFORM, CLOUD_KMS} & set(claims["scopes"]):
            raise refused(
                "PERMISSION_DENIED",
                "Request had insufficient authentication scopes.",
                [error_info("ACCESS_TOKEN_SCOPE_INSUFFICIENT")],
            )
        return claims["identity"]

    def require(self, caller, permission, resource):
        granted = self.permissions.get(caller, ["*"])
        if "*" not in granted and permission not in granted:
            raise refused(
                "PERMISSION_DENIED",
                f"Permission '{permission}' denied on resource '{resource}' (or it may not exist).",
                [error_info("IAM_PERMISSION_DENIED", permission=permission, resource=resource)],
            )

    # Resources

    def create_ring(self, caller, parent, *, body, query):
        name = f"{parent}/keyRings/{query.get('keyRingId', '')}"
        self.require(caller, "cloudkms.keyRings.create", parent)
        fields(body, set())
        if not re.fullmatch(RING, name):
            raise refused("INVALID_ARGUMENT", "Invalid keyRingId.")
        if name in self.rings:
            raise refused("ALREADY_EXISTS", f"KeyRing {name} already exists.")
        self.rings.add(name)
        return {"name": name, "createTime": now()}

    def create_key(self, caller, ring, *, body, query):
        name = f"{ring}/cryptoKeys/{query.get('cryptoKeyId', '')}"
        self.require(caller, "cloudkms.cryptoKeys.create", ring)
        fields(body, {"purpose"})
        purpose = enum_name("purpose", body.get("purpose"))
        if not re.fullmatch(KEY, name) or purpose is None:
            raise refused("INVALID_ARGUMENT", "Invalid cryptoKeyId or purpose.")
        if ring not in self.rings:
            raise refused("NOT_FOUND", f"KeyRing {ring} not found.")
        if name in self.keys:
            raise refused("ALREADY_EXISTS", f"CryptoKey {name} already exists.")
        self.keys[name] = Key(name, purpose)
        if purpose == "ENCRYPT_DECRYPT":
            self.keys[name].primary = self.keys[name].add_version()
        return self.keys[name].resource()

    def get_key(self, caller, name, *, body, query):
        self.require(caller, "cloudkms.cryptoKeys.get", name)
        return self.key(name).resource()

    def create_version(self, caller, name, *, body, query):
        self.require(caller, "cloudkms.cryptoKeyVersions.create", name)
        fields(body, set())
        key = self.key(name)
        return key.versions[key.add_version()].resource()

    def update_primary(self, caller, name, *, body, query):
        self.require(caller, "cloudkms.cryptoKeys.update", name)
        fields(body, {"cryptoKeyVersionId"})
        key = self.key(name)
        version = key.version(str(body.get("cryptoKeyVersionId", "")))
        if version.state != "ENABLED":
            raise version.not_enabled()
        key.primary = version.number
        return key.resource()

    def update_version(self, caller, name, number, *, body, query):
        self.require(caller, "cloudkms.cryptoKeyVersions.update", name)
        if query.get("updateMask") != "state":
            raise refused("INVALID_ARGUMENT", "Invalid updateMask.")
        version = self.key(name).version(number)
        fields(body, set(version.resource()))
        state = enum_name("state", body.get("state"))
        if state not in ("ENABLED", "DISABLED"):
            raise refused("INVALID_ARGUMENT", "state can only be ENABLED or DISABLED.")
        if version.state not in ("ENABLED", "DISABLED"):
            raise version.not_enabled()
        version.state = state
        return version.resource()

    def destroy_version(self, caller, name, number, *, body, query):
        self.require(caller, "cloudkms.cryptoKeyVersions.destroy", name)
        fields(body, set())
        version = self.key(name).version(number)
        version.state = "DESTROY_SCHEDULED"
        return version.resource()

    def encrypt(self, caller, name, *, body, query):
        self.require(caller, "cloudkms.cryptoKeyVersions.useToEncrypt", name)
        fields(body, {
            "plaintext", "additionalAuthenticatedData", "plaintextCrc32c",
            "additionalAuthenticatedDataCrc32c",
        })
        plaintext, plaintext_verified = checked(body, "plaintext")
        data, data_verified = checked(body, "additionalAuthenticatedData")
        key = self.key(name)
        key.require_symmetric()
        if not plaintext:
            raise refused("INVALID_ARGUMENT", "Plaintext must not be empty.")
        version = key.version(key.primary)
        if version.state != "ENABLED":
            raise version.not_enabled()
        ciphertext = version.encrypt(plaintext, data)
        answer = {
            "name": version.name(),
            "ciphertext": base64.b64encode(ciphertext).decode(),
            "ciphertextCrc32c": str(crc32c(ciphertext)),
            "protectionLevel": "SOFTWARE",
        }
        # Fields with their default value are left out of JSON.
        if plaintext_verified:
            answer["verifiedPlaintextCrc32c"] = True
        if data_verified:
            answer["verifiedAdditionalAuthenticatedDataCrc32c"] = True
        return answer

    def decrypt(self, caller, name, *, body, query):
        self.require(caller, "cloudkms.cryptoKeyVersions.useToDecrypt", name)
        fields(body, {
            "ciphertext", "additionalAuthenticatedData", "ciphertextCrc32c",
            "additionalAuthenticatedDataCrc32c",
        })
        ciphertext, _ = checked(body, "ciphertext")
        data, _ = checked(body, "additionalAuthenticatedData")
        key = self.key(name)
        key.require_symmetric()
        version = key.version_of(ciphertext)
        if version.state != "ENABLED":
            raise version.not_enabled()
        plaintext = version.decrypt(ciphertext, data)
        answer = {
            "plaintext": base64.b64encode(plaintext).decode(),
            "plaintextCrc32c": str(crc32c(plaintext)),
            "protectionLevel": "SOFTWARE",
        }
        if version.number == key.primary:
            answer["usedPrimary"] = True
        return answer

    def key(self, name):
        if name not in self.keys:
            raise refused("NOT_FOUND", f"CryptoKey {name} not found.")
        return self.keys[name]

    ROUTES = [
        ("POST", r"(projects/[^/]+/locations/[^/]+)/keyRings", create_ring),
        ("POST", f"({RING})/cryptoKeys", create_key),
        ("GET", f"({KEY})", get_key),
        ("POST", f"({KEY})/cryptoKeyVersions", create_version),
        ("POST", f"({KEY}):updatePrimaryVersion", update_primary),
        ("PATCH", f"({KEY})/cryptoKeyVersions/([1-9][0-9]*)", update_version),
        ("POST", f"({KEY})/cryptoKeyVersions/([1-9][0-9]*):destroy", destroy_version),
        ("POST", f"({KEY}):encrypt", encrypt),
        ("POST", f"({KEY}):decrypt", decrypt),
    ]

    # Access tokens

    def token_of_service_account(self, request):
        """RFC 7523 as in "Using OAuth 2.0 for Server to Server Applications"."""
        form = request.form()
        if request.method != "POST" or form is None or set(form) != {"grant_type", "assertion"}:
            raise oauth_refused(400, "invalid_request", "Malformed request.")
        if form["grant_type"] != "urn:ietf:params:oauth:grant-type:jwt-bearer":
            raise oauth_refused(400, "unsupported_grant_type", "Invalid grant_type.")
        try:
            header, claims, signed, signature = fake.jwt_parts(form["assertion"])
            key_id, public_key = self.accounts[claims["iss"]]
            public_key.verify(signature, signed, padding.PKCS1v15(), hashes.SHA256())
        except (ValueError, KeyError, InvalidSignature):
            raise oauth_refused(400, "invalid_grant", "Invalid JWT Signature.") from None
        if header != {"alg": "RS256", "typ": "JWT", "kid": key_id}:
            raise oauth_refused(400, "invalid_grant", "Invalid JWT header.")
        issued, expires = claims.get("iat", 0), claims.get("exp", 0)
        # Ten minutes of skew, an hour of validity at most.
        if not (issued - 600 < time.time() < expires <= issued + 3600):
            raise oauth_refused(400, "invalid_grant", "Invalid JWT: Token must be a short-lived token.")
        # Google's own libraries say the service's name wherever they send it.
        names = ("https://oauth2.googleapis.com", f"https://127.0.0.1:{self.https_port}")
        if claims.get("aud") not in [name + "/token" for name in names]:
            raise oauth_refused(400, "invalid_grant", "Invalid JWT: Failed audience check.")
        if not claims.get("scope"):
            raise oauth_refused(400, "invalid_scope", "Invalid OAuth scope or ID token audience provided.")
        return self.issue(claims["iss"], claims["scope"].split(" "))

    def token_of_workload(self, request):
        """RFC 8693 as in "Security Token Service API", method token."""
        form = request.form()
        expected = {
            "grant_type": "urn:ietf:params:oauth:grant-type:token-exchange",
            "audience": self.audience(),
            "requested_token_type": "urn:ietf:params:oauth:token-type:access_token",
            "subject_token_type": "urn:ietf:params:oauth:token-type:jwt",
        }
        if request.method != "POST" or form is None:
            raise oauth_refused(400, "invalid_request", "Malformed request.")
        for name, value in expected.items():
            if form.pop(name, None) != value:
                raise oauth_refused(400, "invalid_request", f"Invalid value for {name}.")
        scope, token = form.pop("scope", ""), form.pop("subject_token", "")
        form.pop("options", None)
        if form or not scope:
            raise oauth_refused(400, "invalid_request", "Missing or unknown parameter.")
        try:
            _, claims, signed, signature = fake.jwt_parts(token)
            self.identity_provider.public_key().verify(
                signature, signed, padding.PKCS1v15(), hashes.SHA256()
            )
        except (ValueError, InvalidSignature):
            raise oauth_refused(400, "invalid_grant", "The subject token is invalid.") from None
        if claims["aud"] != "https:" + self.audience() or time.time() >= claims["exp"]:
            raise oauth_refused(400, "invalid_grant", "The subject token has expired.")
        return self.issue(
            claims["sub"], scope.split(" "),
            issued_token_type="urn:ietf:params:oauth:token-type:access_token",
        )

    def token_by_impersonation(self, request, email):
        """"IAM Service Account Credentials API", method generateAccessToken."""
        body = self.body(request)
        if request.method != "POST" or request.query:
            raise refused("INVALID_ARGUMENT", "Malformed request.")
        fields(body, {"scope", "lifetime", "delegates"})
        claims = self.tokens.claims(request.bearer())
        if claims is None:
            raise refused("UNAUTHENTICATED", "Request had invalid authentication credentials.")
        self.require(claims["identity"], "iam.serviceAccounts.getAccessToken", email)
        if email not in self.accounts:
            raise refused("NOT_FOUND", "Not found; Gaia id not found for email.")
        token, lifetime = self.tokens.issue(identity=email, scopes=body["scope"])
        return 200, {"accessToken": token, "expireTime": now(lifetime)}, {}

    def metadata(self, request):
        """"About VM metadata": a token of the virtual machine's service account."""
        flavor = {"Metadata-Flavor": "Google", "Server": "Metadata Server for VM"}
        if request.headers.get("metadata-flavor") != "Google":
            raise Refused(403, None, {"Content-Type": "text/html; charset=UTF-8"})
        path = "/computeMetadata/v1/instance/service-accounts/default/"
        if request.method != "GET" or "x-forwarded-for" in request.headers:
            raise Refused(403, None, flavor)
        if request.path == path and request.query == {"recursive": "true"}:
            account = {"aliases": ["default"], "email": "vm@example.iam", "scopes": self.vm_scopes}
            return 200, account, flavor
        if request.path != path + "token" or set(request.query) - {"scopes"}:
            raise Refused(404, None, flavor)
        status, body, _ = self.issue("vm@example.iam", self.vm_scopes)
        return status, body, flavor

    def issue(self, identity, scopes, **more):
        token, lifetime = self.tokens.issue(identity=identity, scopes=scopes)
        answer = {"access_token": token, "expires_in": lifetime, "token_type": "Bearer", **more}
        return 200, answer, {}

    def audience(self):
        return (
            "//iam.googleapis.com/projects/1/locations/global/workloadIdentityPools/pool/"
            "providers/provider"
        )

    # Controls

    def control(self, name, body):
        if name == "permissions":
            self.permissions[body["of"]] = body["are"]
            return {}
        if name == "service_account":
            return self.make_account(body["email"])
        if name == "workload":
            return self.make_workload(body["subject"], body.get("impersonate"))
        if name == "scopes":
            self.vm_scopes = body["are"]
            return {}
        if name == "token":
            return {"token": self.tokens.issue(identity=body["of"], scopes=[CLOUD_PLATFORM])[0]}
        return None

    def make_account(self, email):
        key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
        key_id = secrets.token_hex(20)
        self.accounts[email] = (key_id, key.public_key())
        pem = key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
        return {
            "type": "service_account",
            "project_id": "example",
            "private_key_id": key_id,
            "private_key": pem.decode(),
            "client_email": email,
            "client_id": "100000000000000000001",
            "auth_uri": "https://accounts.google.com/o/oauth2/auth",
            "token_uri": f"https://127.0.0.1:{self.https_port}/token",
            "universe_domain": "googleapis.com",
        }

    def make_workload(self, subject, email):
        claims = {"sub": subject, "aud": "https:" + self.audience(), "exp": int(time.time()) + 600}
        header = {"alg": "RS256", "typ": "JWT"}
        signed = ".".join(fake.base64url(json.dumps(part).encode()) for part in (header, claims))
        signature = self.identity_provider.sign(
            signed.encode(), padding.PKCS1v15(), hashes.SHA256()
        )
        base = f"https://127.0.0.1:{self.https_port}"
        file = {
            "type": "external_account",
            "audience": self.audience(),
            "subject_token_type": "urn:ietf:params:oauth:token-type:jwt",
            "token_url": f"{base}/v1/token",
            "universe_domain": "googleapis.com",
        }
        if email:
            file["service_account_impersonation_url"] = (
                f"{base}/v1/projects/-/serviceAccounts/{email}:generateAccessToken"
            )
        return {"token": f"{signed}.{fake.base64url(signature)}", "file": file}


class Key:
    def __init__(self, name, purpose):
        self.name, self.purpose, self.created = name, purpose, now()
        self.versions, self.primary = {}, None

    def add_version(self):
        number = str(len(self.versions) + 1)
        self.versions[number] = Version(self, number)
        return number

    def version(self, number):
        if number not in self.versions:
            raise refused(
                "NOT_FOUND", f"CryptoKeyVersion {self.name}/cryptoKeyVersions/{number} not found."
            )
        return self.versions[number]

    def version_of(self, ciphertext):
        """The version that a ciphertext names."""
        for version in self.versions.values():
            if ciphertext.startswith(version.prefix):
                return version
        raise not_decrypted()

    def require_symmetric(self):
        if self.purpose != "ENCRYPT_DECRYPT":
            raise refused(
                "FAILED_PRECONDITION",
                f"{self.name} has purpose {self.purpose}, which this method doesn't allow.",
            )

    def resource(self):
        resource = {"name": self.name, "purpose": self.purpose, "createTime": self.created}
        if self.primary:
            resource["primary"] = self.versions[self.primary].resource()
        return resource


class Version:
    def __init__(self, key, number):
        self.key, self.number, self.state, self.created = key, number, "ENABLED", now()
        self.cipher = AESGCM(secrets.token_bytes(32))
        # A ciphertext tells by which version it was made, in a form that is Google's own.
        self.prefix = b"\x0a\x24\x00" + secrets.token_bytes(33)

    def name(self):
        return f"{self.key.name}/cryptoKeyVersions/{self.number}"

    def encrypt(self, plaintext, data):
        nonce = secrets.token_bytes(12)
        return self.prefix + nonce + self.cipher.encrypt(nonce, plaintext, data)

    def decrypt(self, ciphertext, data):
        rest = ciphertext[len(self.prefix):]
        try:
            return self.cipher.decrypt(rest[:12], rest[12:], data)
        except (InvalidTag, ValueError):
            raise not_decrypted() from None

    def not_enabled(self):
        violation = {
            "type": "KEY_" + self.state,
            "subject": "cloudkms.googleapis.com" + "/" + self.name(),
            "description": f"{self.name()} is not enabled, current state is: {self.state}.",
        }
        return refused("FAILED_PRECONDITION", violation["description"], [{
            "@type": "type.googleapis.com/google.rpc.PreconditionFailure",
            "violations": [violation],
        }])

    def resource(self):
        return {
            "name": self.name(),
            "state": self.state,
            "createTime": self.created,
            "protectionLevel": "SOFTWARE",
            "algorithm": "GOOGLE_SYMMETRIC_ENCRYPTION",
        }


def not_decrypted():
    return refused(
        "INVALID_ARGUMENT",
        "Decryption failed: verify that 'name' refers to the correct CryptoKey.",
    )


def error_info(reason, **metadata):
    return {
        "@type": "type.googleapis.com/google.rpc.ErrorInfo",
        "reason": reason,
        "domain": "googleapis.com",
        "metadata": metadata,
    }


def fields(body, allowed):
    for name in set(body) - allowed:
        raise refused(
            "INVALID_ARGUMENT",
            f'Invalid JSON payload received. Unknown name "{name}": Cannot find field.',
        )


def checked(body, name):
    """A field of bytes, and whether it was compared with the checksum that came along."""
    text, checksum = body.get(name, ""), body.get(name + "Crc32c")
    try:
        # JSON of protocol buffers takes both alphabets, padded or not.
        text = text.replace("-", "+").replace("_", "/").rstrip("=")
        data = base64.b64decode(text + "=" * (-len(text) % 4), validate=True)
        checksum = None if checksum is None else int(checksum)
    except (AttributeError, binascii.Error, ValueError, TypeError):
        raise refused("INVALID_ARGUMENT", f"Invalid value at '{name}'.") from None
    if len(data) > MAX_LEN:
        raise refused("INVALID_ARGUMENT", f"{name} is larger than 64 KiB.")
    if checksum is not None and checksum != crc32c(data):
        raise refused(
            "INVALID_ARGUMENT",
            f"The checksum in field {name}_crc32c did not match the data in field {name}.",
        )
    return data, checksum is not None


def enum_name(field, value):
    """The name of a value that came as a name or a number."""
    names = ENUMS[field]
    if isinstance(value, str) and value in names:
        return value
    return next((name for name, number in names.items() if number == value), None)


def with_enums(resource, encoding):
    if encoding == "name" or not isinstance(resource, dict):
        return resource
    return {
        name: ENUMS[name][value] if name in ENUMS else with_enums(value, encoding)
        for name, value in resource.items()
    }


def now(later=0):
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() + later))


def crc32c(data):
    """RFC 3720, section 12.1 (Castagnoli), bit by bit."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF


# RFC 3720, appendix B.4, and that it isn't the CRC-32 of zlib.
assert crc32c(bytes(32)) == 0x8A9136AA and crc32c(b"1") != zlib.crc32(b"1")

if __name__ == "__main__":
    fake.serve(CloudKms())
