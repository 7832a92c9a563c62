"""The links of one exchange: one to each peer that it has called lately, made when there is none, closed when lost."""

from __future__ import annotations

from collections import OrderedDict

import zmq

from learning_at_home.identity import Identity
from learning_at_home.peer_address import PeerAddress
from learning_at_home.transport.endpoints import EndpointBook
from learning_at_home.transport.link import Link, usable_endpoints
from learning_at_home.version import AGENT

MAX_LINKS = 128  # of four descriptors each: half of a process's usual 1,024


class Links:
    """One exchange's links, by peer."""

    def __init__(
        self,
        context: zmq.Context[zmq.Socket[bytes]],
        identity: Identity,
        unencrypted: bool,
        endpoints: EndpointBook,
    ) -> None:
        self._context = context
        self._identity = identity
        self._unencrypted = unencrypted
        self._endpoints = endpoints
        self.by_key: OrderedDict[bytes, Link] = OrderedDict()  # the least recently used first

    def link(self, peer: PeerAddress, now: float) -> Link:
        """The link to a peer, made when there is none to where the peer is now. Raises PeerUnreachable."""
        link = self.by_key.get(peer.public_key)
        if link is not None:
            if link.peer is peer or link.peer.endpoints == peer.endpoints:
                self.by_key.move_to_end(peer.public_key)
                return link
            self.drop(peer.public_key, now)
        endpoint = self._endpoints.best(peer.public_key, usable_endpoints(peer, self._unencrypted), now)
        link = Link(self._context, self._identity, peer, AGENT, endpoint)
        link.begun = now
        self.by_key[peer.public_key] = link
        return link

    def trim(self) -> None:
        """Close the least recently used links over the limit. Between rounds: one under way may wait on any link."""
        while len(self.by_key) > MAX_LINKS:
            self.by_key.popitem(last=False)[1].close()

    def welcomed(self, link: Link, now: float) -> None:
        """Its node has answered the greeting; how soon is known if we have listened all the while."""
        link.welcomed = True
        if len(link.peer.endpoints) > 1 and link.used == link.begun:
            self._endpoints.welcomed(link.peer.public_key, link.endpoint, now - link.begun)

    def drop(self, public_key: bytes, now: float) -> None:
        """Close the link to a peer, if there is one: it was lost, is silent, or leads to where the peer is no more."""
        if link := self.by_key.pop(public_key, None):
            if not link.welcomed and len(link.peer.endpoints) > 1:
                self._endpoints.failed(public_key, link.endpoint, now)
            link.close()

    def close(self) -> None:
        while self.by_key:
            self.by_key.popitem()[1].close()
