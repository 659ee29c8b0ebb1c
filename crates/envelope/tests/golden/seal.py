#!/usr/bin/env python3
"""Made v1.txt, once: values sealed with OpenSSL's AES instead of the crate's.

    python3 seal.py > v1.txt

v1.txt is never made anew: what it holds stays readable by every later version.
"""
import hashlib
import pathlib
import sys

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

sys.path.append(str(pathlib.Path(__file__).parents[4] / "docs"))
from read_value import aes_cmac

TEXT, BYTEA, TEXT_IN_DATABASE_ENCODING = 1, 2, 3


def golden(comment, name, version, kind, key, nonce, plaintext):
    print(f"# {comment}")
    if name == "database":
        print(f"database key = {key.hex()}")
        key = HKDF(hashes.SHA256(), 32, salt=None, info=b"encryption_ext:1:transit").derive(key)
    key_id = int.from_bytes(hashlib.sha256(name.encode()).digest()[:4], "big") & 0x7FFFFFFF
    prefix = bytes([1, kind]) + key_id.to_bytes(4, "big") + version.to_bytes(4, "big")
    derived_key = b"".join(aes_cmac(key, bytes([0, i]) + b"X\0" + nonce[:12]) for i in (1, 2))
    sealed = AESGCM(derived_key).encrypt(nonce[12:], plaintext, prefix + name.encode())
    for field, value in {
        "name": name,
        "version": version,
        "kind": kind,
        "key": key.hex(),
        "nonce": nonce.hex(),
        "plaintext": plaintext.hex(),
        "value": (prefix + nonce + sealed).hex(),
    }.items():
        print(f"{field} = {value}".rstrip())
    print()


def pattern(start, length):
    return bytes((start + i) % 256 for i in range(length))


print("# Values of format 1, which every later version must still read; made by seal.py.")
print("# All in hexadecimal but the key's name, its version and the plaintext kind.\n")
golden("The example of docs/format.md.",
       "user_pii", 1, TEXT, pattern(0x00, 32), pattern(0x40, 24), b"alice@example.com")
golden("Nothing.", "user_pii", 1, TEXT, pattern(0x00, 32), pattern(0x41, 24), b"")
golden("One whole block, of bytes.",
       "user_pii", 2, BYTEA, pattern(0x20, 32), pattern(0x42, 24), pattern(0xF8, 16))
golden("UTF-8 of more than one byte a character, in more than one block.",
       "a", 65536, TEXT, pattern(0x60, 32), pattern(0x43, 24),
       "Grüße aus Köln, こんにちは世界".encode())
golden("The longest name, the highest version, the highest nonce.",
       "z" * 63, 2**31 - 1, TEXT, pattern(0x80, 32), b"\xff" * 24, b"x")
golden("The name that has user_pii's id.",
       "kba8b256", 1, TEXT, pattern(0x00, 32), pattern(0x40, 24), b"alice@example.com")
golden("Latin-1 from a database of encoding SQL_ASCII.",
       "user_pii", 3, TEXT_IN_DATABASE_ENCODING, pattern(0xA0, 32), pattern(0x44, 24),
       "Köln".encode("latin-1"))
golden("Under the database key's transit subkey; \"key\" is the subkey.",
       "database", 1, TEXT, pattern(0xC0, 32), pattern(0x45, 24), b"a constant in a DEFAULT")
golden("Long.", "user_pii", 1, BYTEA, pattern(0xE0, 32), pattern(0x46, 24), pattern(0x00, 1000))
