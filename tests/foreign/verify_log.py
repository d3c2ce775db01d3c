"""Verifies a Skein log with nothing but Python's standard library.

Owns a second opinion: it was written from the format's description (mesh/ledger/src/log.rs, record.rs,
note.rs and mesh/proto/src/signed.rs) and shares no code with the product. Must never import anything
that is not part of Python.

Usage: verify_log.py LOG_DIRECTORY
Prints one JSON object; exits 0 if the log is good, 1 if it is not.
"""

import base64
import hashlib
import json
import pathlib
import sys
import zlib

# ed25519 as in RFC 8032, section 6: verification only, with canonical encodings enforced.
P = 2**255 - 19
Q = 2**252 + 27742317777372353535851937790883648493
D = -121665 * pow(121666, P - 2, P) % P
ROOT_OF_MINUS_ONE = pow(2, (P - 1) // 4, P)


def add(a, b):
    e, f = (a[1] - a[0]) * (b[1] - b[0]) % P, (a[1] + a[0]) * (b[1] + b[0]) % P
    g, h = 2 * a[3] * b[3] * D % P, 2 * a[2] * b[2] % P
    e, f, g, h = f - e, h - g, h + g, f + e
    return (e * f % P, g * h % P, f * g % P, e * h % P)


def times(scalar, point):
    total = (0, 1, 1, 0)
    while scalar > 0:
        if scalar & 1:
            total = add(total, point)
        point = add(point, point)
        scalar >>= 1
    return total


def equal(a, b):
    return (a[0] * b[2] - b[0] * a[2]) % P == 0 and (a[1] * b[2] - b[1] * a[2]) % P == 0


def decompress(encoded):
    y = int.from_bytes(encoded, "little")
    sign, y = y >> 255, y & ((1 << 255) - 1)
    if y >= P:
        return None
    square = (y * y - 1) * pow(D * y * y + 1, P - 2, P) % P
    x = pow(square, (P + 3) // 8, P)
    if (x * x - square) % P:
        x = x * ROOT_OF_MINUS_ONE % P
    if (x * x - square) % P or (x == 0 and sign):
        return None
    if x & 1 != sign:
        x = P - x
    return (x, y, 1, x * y % P)


BASE = decompress((4 * pow(5, P - 2, P) % P).to_bytes(32, "little"))


def signed_by(key, message, signature):
    point, nonce = decompress(key), decompress(signature[:32])
    scalar = int.from_bytes(signature[32:], "little")
    if len(signature) != 64 or point is None or nonce is None or scalar >= Q:
        return False
    challenge = int.from_bytes(hashlib.sha512(signature[:32] + key + message).digest(), "little") % Q
    return equal(times(scalar, BASE), add(nonce, times(challenge, point)))


class Bad(Exception):
    pass


def need(condition, why):
    if not condition:
        raise Bad(why)


def header(data):
    """Magic, version, network id, node id, CRC-32 of all before it."""
    need(len(data) >= 78 and data[:10] == b"skein-log\x01", "no header of version 1")
    need(zlib.crc32(data[:74]) == int.from_bytes(data[74:78], "little"), "the header's checksum is wrong")
    return data[10:42], data[42:74]


def records(data, count):
    """Length (u32 LE), CRC-32 over length and payload (u32 LE), payload: the first `count` of them."""
    at, found = 78, []
    for index in range(count):
        length = int.from_bytes(data[at : at + 4], "little")
        payload = data[at + 8 : at + 8 + length]
        need(length > 0 and len(payload) == length, f"entry {index} is cut short")
        stored = int.from_bytes(data[at + 4 : at + 8], "little")
        need(zlib.crc32(data[at : at + 4] + payload) == stored, f"entry {index}: its checksum is wrong")
        found.append(payload)
        at += 8 + length
    return found


def tree_root(leaves):
    """RFC 6962, section 2.1."""
    if not leaves:
        return hashlib.sha256().digest()
    if len(leaves) == 1:
        return hashlib.sha256(b"\x00" + leaves[0]).digest()
    half = 1 << (len(leaves) - 1).bit_length() - 1
    return hashlib.sha256(b"\x01" + tree_root(leaves[:half]) + tree_root(leaves[half:])).digest()


def checkpoint(text, network, node):
    """A C2SP tlog-checkpoint in a C2SP signed note, signed by the log's own key."""
    body, mark, signatures = text.partition("\n\n")
    body += "\n"
    need(mark, "the checkpoint has no signatures")
    origin, size, root = body.splitlines()[:3]
    need(origin == f"skein/{network.hex()}/{node.hex()}", f"the checkpoint is of {origin}")
    key_id = hashlib.sha256(origin.encode() + b"\n\x01" + node).digest()[:4]
    own = 0
    for line in signatures.splitlines():
        dash, name, encoded = line.split(" ")
        raw = base64.b64decode(encoded, validate=True)
        if dash == "\u2014" and name == origin and raw[:4] == key_id:
            need(signed_by(node, body.encode(), raw[4:]), "the checkpoint's signature does not verify")
            own += 1
    need(own > 0, "the checkpoint is not signed by the log's owner")
    return int(size), base64.b64decode(root, validate=True)


def entry(index, payload, network, node):
    """One byte of kind, the statement, its signer (32 bytes), the signature (64 bytes)."""
    kind, statement, signer, signature = payload[0], payload[1:-96], payload[-96:-64], payload[-64:]
    need(kind in (0, 1), f"entry {index} is of no known kind")
    name = b"acceptance" if kind else b"receipt"
    message = b"skein\x00" + name + b"\x00" + network + statement
    need(signed_by(signer, message, signature), f"entry {index}: its signature does not verify")
    if kind == 0:
        need(signer == node, f"entry {index}: a receipt by another agent")
    else:
        # Receipt and lease (32 bytes each), agent, units (u64), time (u64).
        need(len(statement) == 112 and statement[64:96] == node, f"entry {index}: accepts another's work")
    return kind


def verify(folder):
    data = (folder / "entries").read_bytes()
    network, node = header(data)
    size, signed_root = checkpoint((folder / "checkpoint").read_text(encoding="utf-8"), network, node)
    entries = records(data, size)
    kinds = [entry(index, payload, network, node) for index, payload in enumerate(entries)]
    root = tree_root(entries)
    need(root == signed_root, f"the entries have root {root.hex()}, signed is {signed_root.hex()}")
    return {
        "ok": True,
        "node": node.hex(),
        "entries": size,
        "receipts": kinds.count(0),
        "acceptances": kinds.count(1),
        "root": root.hex(),
    }


if __name__ == "__main__":
    try:
        result = verify(pathlib.Path(sys.argv[1]))
    except (Bad, ValueError, IndexError) as error:
        result = {"ok": False, "error": str(error)}
    print(json.dumps(result))
    sys.exit(0 if result["ok"] else 1)
