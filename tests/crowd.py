"""Thousands of HTTP clients at once over raw sockets: who asked what, and all that came back.

    crowd = Crowd(port, bodies, client_count)   # they connect and ask, each one thing at a time
    ...                                         # do to the servers whatever is to be done
    exchanges = crowd.finish()                  # what was asked is answered, no more is asked

Each client keeps its connection, asks again as soon as it is answered, and takes the bodies in turn.
"""

import asyncio
import dataclasses
import itertools
import re
import resource
import threading

CONNECTING_AT_ONCE = 512
CONTENT_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)\r\n", re.IGNORECASE)


def descriptors_are_enough_for(client_count):
    """Raises this process' limit, which its children inherit, as far as it may."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard == resource.RLIM_INFINITY or hard >= client_count + 500


@dataclasses.dataclass
class Exchange:
    """One request. No status: the connection was lost before any byte of an answer came."""

    body: int
    status: int | None = None
    answer: bytes = b""
    answer_count: int = 0
    is_torn: bool = False  # a part of an answer came


class Client(asyncio.Protocol):
    def __init__(self, crowd):
        self.crowd = crowd
        self.exchange = None
        self.received = bytearray()
        self.transport = None

    def connection_made(self, transport):
        self.transport = transport
        self.crowd.clients.append(self)
        self.ask()

    def ask(self):
        self.exchange = self.crowd.next_exchange()
        if self.exchange is None:
            self.transport.write_eof()  # the server closes when it has nothing more to say
        else:
            self.transport.write(self.crowd.requests[self.exchange.body])

    def data_received(self, data):
        self.received += data
        while (end := self.end_of_answer()) is not None:
            if self.exchange is None:
                self.crowd.unasked_count += 1
            else:
                self.take(bytes(self.received[:end]))
            del self.received[:end]
            if self.exchange is not None:
                self.ask()

    def end_of_answer(self):
        head_end = self.received.find(b"\r\n\r\n")
        if head_end < 0:
            return None
        length = CONTENT_LENGTH.search(self.received, 0, head_end + 2)
        end = head_end + 4 + int(length[1])
        return end if end <= len(self.received) else None

    def take(self, answer):
        self.exchange.status = int(answer[9:12])
        self.exchange.answer = answer[answer.index(b"\r\n\r\n") + 4 :]
        self.exchange.answer_count += 1

    def connection_lost(self, _):
        if self.received and self.exchange is None:
            self.crowd.unasked_count += 1
        elif self.exchange is not None and self.exchange.answer_count == 0:
            self.exchange.is_torn = bool(self.received)
        self.crowd.on_client_gone()


class Crowd:
    def __init__(self, port, bodies, client_count, host="127.0.0.1", path="/v1/classify"):
        self.address = (host, port)
        self.requests = [
            f"POST {path} HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\n"
            f"Content-Length: {len(body)}\r\n\r\n".encode() + body
            for body in bodies
        ]
        self.client_count = client_count
        self.exchanges = []
        self.unasked_count = 0  # answers to nothing
        self.refused_count = 0  # connections that could not be made
        self.turns = itertools.cycle(range(len(bodies)))
        self.is_finishing = False
        self.here_count = client_count
        self.clients = []
        self.loop = None
        self.all_gone = None
        self.thread = threading.Thread(target=lambda: asyncio.run(self.run()))
        self.thread.start()

    def next_exchange(self):
        if self.is_finishing:
            return None
        self.exchanges.append(Exchange(next(self.turns)))
        return self.exchanges[-1]

    def on_client_gone(self):
        self.here_count -= 1
        if self.here_count == 0:
            self.all_gone.set()

    async def run(self):
        self.loop = asyncio.get_running_loop()
        self.all_gone = asyncio.Event()
        room = asyncio.Semaphore(CONNECTING_AT_ONCE)

        async def connect():
            async with room:
                try:
                    await self.loop.create_connection(lambda: Client(self), *self.address)
                except OSError:
                    self.refused_count += 1
                    self.on_client_gone()

        await asyncio.gather(*(connect() for _ in range(self.client_count)))
        await self.all_gone.wait()

    def leave(self):
        """All clients close their connections at once, answered or not."""
        def close():
            for client in self.clients:
                client.transport.abort()

        self.is_finishing = True
        self.loop.call_soon_threadsafe(close)
        self.thread.join()

    def finish(self):
        self.is_finishing = True
        self.thread.join()
        return self.exchanges
