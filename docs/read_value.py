#!/usr/bin/env python3
"""Reads one value of encryption_ext: python3 read_value.py KEY_HEX KEY_NAME ARMOR

Needs the `cryptography` package (Debian: python3-cryptography). docs/format.md explains each step.
"""
import base64
import hashlib
import sys

from cryptography.hazmat.primitives import cmac, hashes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.ciphers.algorithms import AES
from cryptography.hazmat.primitives.kdf.hkdf import HKDF


def read_value(key: bytes, name: str, value: bytes) -> bytes:
    prefix, nonce, ciphertext_and_tag = value[:10], value[10:34], value[34:]
    if len(value) < 50 or prefix[0] != 1 or prefix[1] not in (1, 2, 3):
        sys.exit("not a value of format 1, or of an unknown kind")
    key_id = int.from_bytes(hashlib.sha256(name.encode()).digest()[:4], "big") & 0x7FFFFFFF
    if int.from_bytes(prefix[2:6], "big") != key_id:
        sys.exit(f"not under the key {name}")
    if name == "database":
        key = HKDF(hashes.SHA256(), 32, salt=None, info=b"encryption_ext:1:transit").derive(key)
    derived_key = b"".join(aes_cmac(key, bytes([0, i]) + b"X\0" + nonce[:12]) for i in (1, 2))
    return AESGCM(derived_key).decrypt(nonce[12:], ciphertext_and_tag, prefix + name.encode())


def aes_cmac(key: bytes, message: bytes) -> bytes:
    mac = cmac.CMAC(AES(key))
    mac.update(message)
    return mac.finalize()


if __name__ == "__main__":
    key_hex, name, armor = sys.argv[1:]
    base64url = armor.removeprefix("enc:1:")
    value = base64.urlsafe_b64decode(base64url + "=" * (-len(base64url) % 4))
    sys.stdout.buffer.write(read_value(bytes.fromhex(key_hex), name, value))
