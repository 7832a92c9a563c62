"""Readable names of peers, `brisk-heron`, made from their keys. For people only: neither unique nor a proof."""

from __future__ import annotations

import hashlib
import re

_ADJECTIVES = """
    amber agile brisk bold bright calm candid clever cosmic crisp daring deft eager early fair fast fleet fond
    frank fresh gentle glad golden grand happy hardy honest humble jolly keen kind lively lucid lucky merry mild
    modest neat nimble noble patient plucky polite proud quick quiet rapid ready robust rosy serene sharp silver
    sleek smart snug solid spry steady stout sunny swift tidy vivid warm wise witty young zesty
""".split()  # noqa: SIM905 - a list of one word a line is unreadable
_ANIMALS = """
    badger bear beaver bison bobcat buck condor coot crane crow deer dingo dove eagle egret elk falcon ferret
    finch fox gecko goose grouse hare hawk heron hornet ibex ibis jackal jay kestrel kite koala lark lemur lion
    llama lynx magpie marten mole moose newt ocelot orca osprey otter owl panda panther pika plover puffin puma
    quail raven robin salmon seal shrew sparrow stork swan tapir tern tiger trout turtle vole walrus weasel whale
    wolf wren yak zebra
""".split()  # noqa: SIM905 - a list of one word a line is unreadable

NAME_RULE = "2 to 32 small letters, digits or '-', starting with a letter"
_NAME = re.compile(r"[a-z][a-z0-9-]{1,31}")


def readable_name(public_key: bytes) -> str:
    """An adjective and an animal, the same for the same key everywhere."""
    digest = int.from_bytes(hashlib.sha256(b"name" + public_key).digest()[:8], "big")
    return f"{_ADJECTIVES[digest % len(_ADJECTIVES)]}-{_ANIMALS[digest // len(_ADJECTIVES) % len(_ANIMALS)]}"


def is_valid_name(name: str) -> bool:
    """Whether a person may call a node so: NAME_RULE."""
    return _NAME.fullmatch(name) is not None
