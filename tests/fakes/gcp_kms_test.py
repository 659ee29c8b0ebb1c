"""Google's own client takes the fake of Cloud KMS for the service.

    gcp_kms_test.py HTTPS_PORT HTTP_PORT CA_FILE
"""

import json
import os
import sys
import tempfile
import unittest

HTTPS_PORT, HTTP_PORT, CA_FILE = sys.argv.pop(1), sys.argv.pop(1), sys.argv.pop(1)
HTTPS, HTTP = f"https://127.0.0.1:{HTTPS_PORT}", f"127.0.0.1:{HTTP_PORT}"
# The libraries read them when they are imported.
os.environ.update(GCE_METADATA_HOST=HTTP, GCE_METADATA_IP=HTTP, REQUESTS_CA_BUNDLE=CA_FILE)

import google_crc32c
import requests
from google.api_core import exceptions
from google.auth import identity_pool
from google.auth.compute_engine import Credentials as MachineCredentials
from google.auth.exceptions import OAuthError, RefreshError
from google.auth.transport.requests import Request
from google.cloud import kms_v1
from google.cloud.kms_v1.services.key_management_service.transports import (
    KeyManagementServiceRestTransport,
)
from google.oauth2 import service_account

SCOPES = ["https://www.googleapis.com/auth/cloudkms"]
PARENT = "projects/example/locations/europe-west3"
RING = f"{PARENT}/keyRings/sdk"


def control(name, **body):
    answer = requests.post(f"http://{HTTP}/_control/{name}", json=body)
    answer.raise_for_status()
    return answer.json()


def account(email):
    info = control("service_account", email=email)
    return service_account.Credentials.from_service_account_info(info, scopes=SCOPES)


def client(credentials):
    transport = KeyManagementServiceRestTransport(host=HTTPS, credentials=credentials)
    return kms_v1.KeyManagementServiceClient(transport=transport)


def crc(data):
    return {"value": google_crc32c.value(data)}


class CloudKms(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.client = client(account("sdk@example.iam.gserviceaccount.com"))
        cls.client.create_key_ring(parent=PARENT, key_ring_id="sdk", key_ring={})

    def new_key(self, name, purpose="ENCRYPT_DECRYPT"):
        key = {"purpose": kms_v1.CryptoKey.CryptoKeyPurpose[purpose]}
        return self.client.create_crypto_key(parent=RING, crypto_key_id=name, crypto_key=key)

    def encrypt(self, name, plaintext, data, **more):
        return self.client.encrypt(request={
            "name": name,
            "plaintext": plaintext,
            "additional_authenticated_data": data,
            "plaintext_crc32c": crc(plaintext),
            "additional_authenticated_data_crc32c": crc(data),
            **more,
        })

    def decrypt(self, name, ciphertext, data, **more):
        return self.client.decrypt(request={
            "name": name,
            "ciphertext": ciphertext,
            "additional_authenticated_data": data,
            "ciphertext_crc32c": crc(ciphertext),
            "additional_authenticated_data_crc32c": crc(data),
            **more,
        })

    def test_encrypts_and_decrypts(self):
        key = self.new_key("round")
        self.assertEqual(key.purpose, kms_v1.CryptoKey.CryptoKeyPurpose.ENCRYPT_DECRYPT)
        self.assertEqual(key.primary.state.name, "ENABLED")
        self.assertEqual(key.primary.algorithm.name, "GOOGLE_SYMMETRIC_ENCRYPTION")
        self.assertEqual(self.client.get_crypto_key(name=key.name), key)

        plaintext, data = os.urandom(32), b"version 1 of user_pii"
        encrypted = self.encrypt(key.name, plaintext, data)
        self.assertEqual(encrypted.name, key.primary.name)
        self.assertTrue(encrypted.verified_plaintext_crc32c)
        self.assertTrue(encrypted.verified_additional_authenticated_data_crc32c)
        self.assertEqual(encrypted.ciphertext_crc32c, google_crc32c.value(encrypted.ciphertext))
        self.assertNotIn(plaintext[:8], encrypted.ciphertext)

        decrypted = self.decrypt(key.name, encrypted.ciphertext, data)
        self.assertEqual(decrypted.plaintext, plaintext)
        self.assertEqual(decrypted.plaintext_crc32c, google_crc32c.value(plaintext))
        self.assertTrue(decrypted.used_primary)

        # Without checksums nothing is verified.
        bare = self.client.encrypt(name=key.name, plaintext=plaintext)
        self.assertFalse(bare.verified_plaintext_crc32c)

    def test_refuses_what_was_changed(self):
        key, other = self.new_key("changed"), self.new_key("changed-other")
        encrypted = self.encrypt(key.name, b"secret", b"data").ciphertext
        for name, ciphertext, data in [
            (key.name, encrypted, b"other data"),
            (key.name, encrypted, b""),
            (key.name, encrypted[:-1] + bytes([encrypted[-1] ^ 1]), b"data"),
            (key.name, encrypted[:-1], b"data"),
            (key.name, b"nonsense", b"data"),
            (other.name, encrypted, b"data"),
        ]:
            with self.assertRaisesRegex(exceptions.BadRequest, "Decryption failed"):
                self.decrypt(name, ciphertext, data)
        for more in ({"plaintext_crc32c": 1}, {"additional_authenticated_data_crc32c": 1}):
            with self.assertRaisesRegex(exceptions.BadRequest, "checksum"):
                self.encrypt(key.name, b"secret", b"data", **more)
        with self.assertRaisesRegex(exceptions.BadRequest, "checksum"):
            self.decrypt(key.name, encrypted, b"data", ciphertext_crc32c=1)

    def test_rotates_and_disables(self):
        key = self.new_key("rotated")
        old = self.encrypt(key.name, b"secret", b"")
        version = self.client.create_crypto_key_version(parent=key.name, crypto_key_version={})
        self.client.update_crypto_key_primary_version(name=key.name, crypto_key_version_id="2")
        new = self.encrypt(key.name, b"secret", b"")
        self.assertEqual(new.name, version.name)
        decrypted = self.decrypt(key.name, old.ciphertext, b"")
        self.assertEqual((decrypted.plaintext, decrypted.used_primary), (b"secret", False))

        first = key.primary
        for state, is_open in (("DISABLED", False), ("ENABLED", True)):
            first.state = state
            self.client.update_crypto_key_version(
                crypto_key_version=first, update_mask={"paths": ["state"]}
            )
            if is_open:
                self.decrypt(key.name, old.ciphertext, b"")
                continue
            with self.assertRaisesRegex(exceptions.BadRequest, "DISABLED") as caught:
                self.decrypt(key.name, old.ciphertext, b"")
            self.assertEqual(caught.exception.details[0]["violations"][0]["type"], "KEY_DISABLED")
        self.client.destroy_crypto_key_version(name=first.name)
        with self.assertRaisesRegex(exceptions.BadRequest, "DESTROY_SCHEDULED"):
            self.decrypt(key.name, old.ciphertext, b"")

    def test_says_what_is_wrong(self):
        with self.assertRaises(exceptions.NotFound):
            self.client.get_crypto_key(name=f"{RING}/cryptoKeys/missing")
        signing = self.new_key("signing", "ASYMMETRIC_SIGN")
        with self.assertRaisesRegex(exceptions.BadRequest, "ASYMMETRIC_SIGN"):
            self.encrypt(signing.name, b"secret", b"")
        with self.assertRaisesRegex(exceptions.BadRequest, "64 KiB"):
            self.encrypt(signing.name, bytes(64 * 1024 + 1), b"")

        key = self.new_key("denied")
        credentials = account("reader@example.iam.gserviceaccount.com")
        control(
            "permissions",
            of="reader@example.iam.gserviceaccount.com",
            are=["cloudkms.cryptoKeyVersions.useToEncrypt"],
        )
        reader = client(credentials)
        encrypted = reader.encrypt(name=key.name, plaintext=b"secret").ciphertext
        with self.assertRaisesRegex(exceptions.Forbidden, "useToDecrypt") as caught:
            reader.decrypt(name=key.name, ciphertext=encrypted)
        self.assertEqual(caught.exception.reason, "IAM_PERMISSION_DENIED")

        control(
            "fault", path=":encrypt$", status=429, headers={"Retry-After": "1"}, body=json.dumps(
                {"error": {"code": 429, "message": "Quota", "status": "RESOURCE_EXHAUSTED"}}
            ),
        )
        with self.assertRaises(exceptions.TooManyRequests):
            self.client.encrypt(name=key.name, plaintext=b"secret", retry=None)

    def test_logs_in_with_a_service_account(self):
        credentials = account("login@example.iam.gserviceaccount.com")
        credentials.refresh(Request())
        self.assertTrue(credentials.token.startswith("ya29."))
        other = account("login@example.iam.gserviceaccount.com")
        # A newer key of the same account: the older one signs in vain.
        with self.assertRaisesRegex(RefreshError, "invalid_grant"):
            credentials.refresh(Request())
        other.refresh(Request())
        for headers in ({}, {"Authorization": "Bearer ya29.unknown"}):
            answer = requests.get(f"{HTTPS}/v1/{RING}/cryptoKeys/any", headers=headers)
            with self.assertRaisesRegex(exceptions.Unauthorized, "authentication credentials"):
                raise exceptions.from_http_response(answer)

    def test_logs_in_on_a_machine(self):
        credentials = MachineCredentials()
        credentials.refresh(Request())
        key = self.new_key("machine")
        encrypted = client(credentials).encrypt(name=key.name, plaintext=b"secret").ciphertext
        self.assertEqual(self.decrypt(key.name, encrypted, b"").plaintext, b"secret")

        control("scopes", are=["https://www.googleapis.com/auth/devstorage.read_only"])
        try:
            with self.assertRaisesRegex(exceptions.Forbidden, "scopes"):
                client(MachineCredentials()).encrypt(name=key.name, plaintext=b"secret")
        finally:
            control("scopes", are=["https://www.googleapis.com/auth/cloud-platform"])

    def test_logs_in_with_a_federated_identity(self):
        key = self.new_key("federated")
        email = "federated@example.iam.gserviceaccount.com"
        account(email)
        for impersonate in (None, email):
            made = control("workload", subject="pod", impersonate=impersonate)
            with tempfile.TemporaryDirectory() as folder:
                token_file = os.path.join(folder, "token")
                with open(token_file, "w", encoding="ascii") as file:
                    file.write(made["token"])
                info = {**made["file"], "credential_source": {"file": token_file}}
                credentials = identity_pool.Credentials.from_info(info, scopes=SCOPES)
                encrypted = client(credentials).encrypt(name=key.name, plaintext=b"secret")
                self.assertEqual(encrypted.name, key.primary.name)
                if impersonate:
                    continue
                with open(token_file, "w", encoding="ascii") as file:
                    file.write(made["token"][:-8] + "AAAAAAAA")
                with self.assertRaisesRegex(OAuthError, "invalid_grant"):
                    credentials.refresh(Request())


if __name__ == "__main__":
    unittest.main()
