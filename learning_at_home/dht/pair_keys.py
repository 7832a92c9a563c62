"""The keys that this peer shares with others, each made once: a Diffie-Hellman costs fifty MACs."""

from __future__ import annotations

from collections import OrderedDict

from learning_at_home.identity import Identity

PURPOSE = "dht-datagram"
MAX_PAIRS = 8_192  # 100 bytes each


class PairKeys:
    """Of the pairs used lately."""

    def __init__(self, identity: Identity) -> None:
        self.own_public_key = identity.public_key
        self._identity = identity
        self._keys: OrderedDict[bytes, bytes] = OrderedDict()

    def of(self, public_key: bytes) -> bytes:
        """The pair's key. Raises WireError when there is no such public key."""
        known = self._keys.get(public_key)
        if known is not None:
            self._keys.move_to_end(public_key)
            return known
        made = self._keys[public_key] = self._identity.pair_key(public_key, PURPOSE)
        if len(self._keys) > MAX_PAIRS:
            self._keys.popitem(last=False)
        return made
