"""A name server on 127.0.0.1, UDP and TCP on one port, that answers as its script says."""

from __future__ import annotations

import socket
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import dns.flags
import dns.message
import dns.rcode
import dns.rdatatype
import dns.rrset

UDP_MAX = 512
"""Bytes of an answer by UDP; a longer one is cut off, and the asker comes by TCP."""


class NameServer:
    """`records`: (name, type) → (ttl, values as text); a name of which there is nothing does not exist. `trouble`:
    name → SERVFAIL, REFUSED or silent, which comes first. `asked`: (name, type, udp or tcp), in order.
    """

    def __init__(self) -> None:
        self.records: dict[tuple[str, str], tuple[int, list[str]]] = {}
        self.trouble: dict[str, str] = {}
        self.asked: list[tuple[str, str, str]] = []
        self.negative_ttl = 1
        self._udp, self._tcp = _sockets()
        self.port = self._udp.getsockname()[1]
        self._threads = [threading.Thread(target=work, daemon=True) for work in (self._by_udp, self._by_tcp)]
        for thread in self._threads:
            thread.start()

    def close(self) -> None:
        """Answer nobody any more."""
        self._udp.close()
        self._tcp.shutdown(socket.SHUT_RDWR)
        self._tcp.close()

    def _by_udp(self) -> None:
        while True:
            try:
                data, address = self._udp.recvfrom(4096)
            except OSError:
                return
            if answer := self._answer(data, "udp"):
                self._udp.sendto(answer, address)

    def _by_tcp(self) -> None:
        while True:
            try:
                connection, _ = self._tcp.accept()
            except OSError:
                return
            with connection:
                (length,) = struct.unpack("!H", connection.recv(2, socket.MSG_WAITALL))
                if answer := self._answer(connection.recv(length, socket.MSG_WAITALL), "tcp"):
                    connection.sendall(struct.pack("!H", len(answer)) + answer)

    def _answer(self, data: bytes, by: str) -> bytes | None:
        query = dns.message.from_wire(data)
        name = query.question[0].name.to_text(omit_final_dot=True).lower()
        kind = dns.rdatatype.to_text(query.question[0].rdtype)
        self.asked.append((name, kind, by))
        trouble, response = self.trouble.get(name), dns.message.make_response(query)
        if trouble == "silent":
            return None
        response.flags |= dns.flags.RA
        if trouble:
            response.set_rcode(dns.rcode.from_text(trouble))
        elif found := self.records.get((name, kind)):
            response.answer.append(dns.rrset.from_text(query.question[0].name, found[0], "IN", kind, *found[1]))
        else:
            if not any(known == name for known, _ in self.records):
                response.set_rcode(dns.rcode.NXDOMAIN)
            soa = f"ns.test. admin.test. 1 60 60 60 {self.negative_ttl}"
            response.authority.append(dns.rrset.from_text("test.", self.negative_ttl, "IN", "SOA", soa))
        wire = response.to_wire(max_size=65_535)
        if by == "udp" and len(wire) > UDP_MAX:
            response.answer.clear()
            response.flags |= dns.flags.TC
            wire = response.to_wire()
        return wire


@contextmanager
def name_server() -> Iterator[NameServer]:
    """One that is closed in the end."""
    server = NameServer()
    try:
        yield server
    finally:
        server.close()


def _sockets() -> tuple[socket.socket, socket.socket]:
    """A UDP and a TCP socket on one port."""
    while True:
        udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        udp.bind(("127.0.0.1", 0))
        try:
            return udp, socket.create_server(udp.getsockname())
        except OSError:
            udp.close()
