"""Randomness as a function of what it is for: a seed from a key, never a state carried along."""

from hashlib import blake2b


def seed_of(*key: int | str) -> int:
    """A 64-bit seed for a key such as `(seed, "train", epoch)`: equal keys, equal seeds, on every
    machine; different keys, unrelated seeds. What is drawn at one step then does not depend on
    what was drawn before it, so a resumed run draws what the undisturbed run drew."""
    return int.from_bytes(blake2b(repr(key).encode(), digest_size=8).digest(), "little")
