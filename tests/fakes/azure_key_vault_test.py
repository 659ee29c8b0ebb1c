"""Microsoft's own clients take the fake of Key Vault, of the identity platform and of the managed identity
endpoints for the services.

    azure_key_vault_test.py HTTPS_PORT HTTP_PORT CA_FILE
"""

import os
import sys
import tempfile
import time
import unittest

HTTPS_PORT, HTTP_PORT, CA_FILE = sys.argv.pop(1), sys.argv.pop(1), sys.argv.pop(1)
HTTPS, HTTP = f"https://127.0.0.1:{HTTPS_PORT}", f"http://127.0.0.1:{HTTP_PORT}"
os.environ.update(REQUESTS_CA_BUNDLE=CA_FILE)

import requests
from azure.core import exceptions
from azure.identity import (
    ClientSecretCredential,
    ManagedIdentityCredential,
    WorkloadIdentityCredential,
)
from azure.keyvault.keys import KeyClient, KeyOperation
from azure.keyvault.keys.crypto import CryptographyClient, KeyWrapAlgorithm

TENANT = "11111111-2222-3333-4444-555555555555"
RSA, AES = KeyWrapAlgorithm.rsa_oaep_256, KeyWrapAlgorithm.aes_256
AUTHORITY = {"authority": f"127.0.0.1:{HTTPS_PORT}", "disable_instance_discovery": True}
# The fake's name isn't under vault.azure.net.
ANY_NAME = {"verify_challenge_resource": False, "retry_total": 0}


def control(name, **body):
    answer = requests.post(f"{HTTP}/_control/{name}", json=body)
    answer.raise_for_status()
    return answer.json()


def application(client_id):
    secret = control("client", id=client_id)["secret"]
    return ClientSecretCredential(TENANT, client_id, secret, **AUTHORITY)


def client(credential):
    return KeyClient(HTTPS, credential, **ANY_NAME)


class KeyVault(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.keys = client(application("administrator"))
        control("permissions", of="user", are=["wrapKey", "unwrapKey"])
        cls.user = application("user")

    def remotely(self, key_id):
        """Without the permission to see the key, the client has the vault do everything."""
        return CryptographyClient(key_id, self.user, **ANY_NAME)

    def test_wraps_and_unwraps(self):
        rsa = self.keys.create_rsa_key("rsa", size=3072)
        aes = self.keys.create_oct_key("aes", size=256, hardware_protected=True)
        self.assertEqual((rsa.key_type, aes.key_type), ("RSA", "oct-HSM"))
        self.assertEqual(self.keys.get_key("rsa").id, rsa.id)
        for key, algorithm in ((rsa, RSA), (aes, AES)):
            secret = os.urandom(32)
            remote = self.remotely(key.id)
            wrapped = remote.wrap_key(algorithm, secret)
            self.assertEqual(wrapped.key_id, key.id)
            self.assertEqual(remote.unwrap_key(algorithm, wrapped.encrypted_key).key, secret)
            # Without a version, the newest.
            newest = self.remotely(f"{HTTPS}/keys/{key.name}").wrap_key(algorithm, secret)
            self.assertEqual(remote.unwrap_key(algorithm, newest.encrypted_key).key, secret)

            damaged = bytearray(wrapped.encrypted_key)
            damaged[-1] ^= 1
            for wrong in (bytes(damaged), wrapped.encrypted_key[:-1], b""):
                with self.assertRaisesRegex(exceptions.HttpResponseError, "BadParameter"):
                    remote.unwrap_key(algorithm, wrong)

    def test_the_public_key_wraps_elsewhere(self):
        key = self.keys.create_rsa_key("public", size=2048)
        # The client has read the key's public half, and wraps without the vault.
        control("requests")
        local = CryptographyClient(key, application("administrator"), **ANY_NAME)
        wrapped = local.wrap_key(RSA, b"0" * 32).encrypted_key
        self.assertNotIn("wrapkey", "".join(control("requests")))
        self.assertEqual(self.remotely(key.id).unwrap_key(RSA, wrapped).key, b"0" * 32)

    def test_rotates(self):
        old = self.keys.create_rsa_key("rotated")
        wrapped = self.remotely(old.id).wrap_key(RSA, b"0" * 32).encrypted_key
        new = self.keys.rotate_key("rotated")
        self.assertNotEqual(old.properties.version, new.properties.version)
        self.assertEqual(self.keys.get_key("rotated").id, new.id)
        self.assertEqual(self.remotely(old.id).unwrap_key(RSA, wrapped).key, b"0" * 32)
        with self.assertRaisesRegex(exceptions.HttpResponseError, "BadParameter"):
            self.remotely(new.id).unwrap_key(RSA, wrapped)

    def test_disabled_and_expired_keys_are_refused(self):
        key = self.keys.create_rsa_key("states")
        remote = self.remotely(key.id)
        wrapped = remote.wrap_key(RSA, b"0" * 32).encrypted_key
        self.keys.update_key_properties("states", enabled=False)
        for call in (lambda: remote.wrap_key(RSA, b"1"), lambda: remote.unwrap_key(RSA, wrapped)):
            with self.assertRaisesRegex(exceptions.HttpResponseError, "disabled") as caught:
                call()
            self.assertEqual(caught.exception.status_code, 403)
            self.assertEqual(caught.exception.error.code, "Forbidden")
            self.assertEqual(caught.exception.error.innererror["code"], "KeyDisabled")
        past = {"exp": int(time.time()) - 60}
        self.keys.update_key_properties("states", enabled=True)
        # The public method takes only times to come.
        self.keys._client.update_key("states", key.properties.version, {"attributes": past})
        with self.assertRaisesRegex(exceptions.HttpResponseError, "expired"):
            remote.wrap_key(RSA, b"1")
        self.assertEqual(remote.unwrap_key(RSA, wrapped).key, b"0" * 32)

    def test_says_what_is_wrong(self):
        with self.assertRaisesRegex(exceptions.ResourceNotFoundError, "KeyNotFound"):
            self.keys.get_key("missing")
        key = self.keys.create_rsa_key("ops", key_operations=[KeyOperation.wrap_key])
        wrapped = self.remotely(key.id).wrap_key(RSA, b"0" * 32).encrypted_key
        with self.assertRaisesRegex(exceptions.HttpResponseError, "not allowed on this key"):
            self.remotely(key.id).unwrap_key(RSA, wrapped)
        with self.assertRaisesRegex(exceptions.HttpResponseError, "incompatible"):
            self.remotely(key.id).wrap_key(AES, b"0" * 32)
        with self.assertRaisesRegex(exceptions.HttpResponseError, "not authorized") as caught:
            client(self.user).get_key("ops")
        self.assertEqual(caught.exception.status_code, 403)
        control("fault", path="/keys/ops", status=429, headers={"Retry-After": "1"}, body="{}")
        with self.assertRaises(exceptions.HttpResponseError) as caught:
            self.keys.get_key("ops")
        self.assertEqual(caught.exception.status_code, 429)
        with self.assertRaisesRegex(exceptions.ClientAuthenticationError, "AADSTS7000215"):
            client(ClientSecretCredential(TENANT, "user", "wrong", **AUTHORITY)).get_key("ops")

    def test_logs_in_with_a_federated_token(self):
        self.keys.create_rsa_key("workload")
        token = control("workload", id="workload", subject="system:serviceaccount:db:postgres")["token"]
        with tempfile.NamedTemporaryFile("w", encoding="ascii") as file:
            for contents, is_good in ((token, True), (token[:-8] + "AAAAAAAA", False)):
                file.seek(0)
                file.write(contents)
                file.flush()
                credential = WorkloadIdentityCredential(
                    tenant_id=TENANT, client_id="workload", token_file_path=file.name, **AUTHORITY
                )
                if is_good:
                    self.assertEqual(client(credential).get_key("workload").name, "workload")
                else:
                    with self.assertRaisesRegex(
                        exceptions.ClientAuthenticationError, "AADSTS700027"
                    ):
                        client(credential).get_key("workload")

    def test_logs_in_with_a_managed_identity(self):
        self.keys.create_rsa_key("managed")
        control("identity", header="secret header")
        for environment in (
            {"AZURE_POD_IDENTITY_AUTHORITY_HOST": HTTP},
            {"IDENTITY_ENDPOINT": f"{HTTP}/msi/token", "IDENTITY_HEADER": "secret header"},
        ):
            os.environ.update(environment)
            try:
                control("requests")
                credential = ManagedIdentityCredential()
                self.assertEqual(client(credential).get_key("managed").name, "managed")
                path = "/msi/token" if "IDENTITY_HEADER" in environment else "/metadata/"
                self.assertTrue(any(path in request for request in control("requests")))
                unknown = ManagedIdentityCredential(client_id="unknown")
                with self.assertRaises(exceptions.ClientAuthenticationError):
                    client(unknown).get_key("managed")
            finally:
                for name in environment:
                    del os.environ[name]


if __name__ == "__main__":
    unittest.main()
