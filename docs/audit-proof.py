#!/usr/bin/env python3
"""Checks a proof of TaskFlow's audit trail: audit-proof.py PROOF.json PUBLIC-KEY (64 hexadecimal digits, from us by another way)."""
import hashlib, json, sys
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

def sha(*parts): return hashlib.sha256(b"".join(parts)).digest()

proof, key = json.load(open(sys.argv[1])), bytes.fromhex(sys.argv[2])
digest = bytes.fromhex(proof["data_digest"])
if "data" in proof:  # otherwise what it told was erased
    assert sha(b"\2", bytes.fromhex(proof["salt"]), proof["data"].encode()) == digest, "the data is another"
at = sha(b"\0", digest, proof["fields"].encode())
for side, other in proof["path"]:
    other = bytes.fromhex(other)
    at = sha(b"\1", other, at) if side == "left" else sha(b"\1", at, other)
assert at.hex() in [root[4] for root in json.loads(proof["links"][0][1])], "the event is not in its batch"
chain = bytes.fromhex(proof["before"])
for number, classes in proof["links"]:
    chain = sha(b"\3", chain, number.to_bytes(8, "big"), classes.encode())
text = proof["seal"]["seal"]
Ed25519PublicKey.from_public_bytes(key).verify(bytes.fromhex(proof["seal"]["signature"]), text.encode())
seal = json.loads(text)
assert seal["format"] == "taskflow audit seal 1", "what was signed is no seal"
heads = [head[2] for head in seal["heads"] if head[0] == proof["partition"]]
assert chain.hex() in heads, "the chain does not end in the seal"
print("proved by seal", seal["number"], "at", seal["at_ms"], "ms since 1970:", proof["fields"], proof.get("data", "(erased)"))
