"""The client of pycrdt: `client.py URL`. Prints the text as it changes, appends what it reads."""

import asyncio
import sys

from pycrdt import Doc, Provider, Text
from websockets import ConnectionClosed, connect


class Channel:
    def __init__(self, socket, path):
        self.socket, self.path = socket, path

    def __aiter__(self):
        return self

    async def __anext__(self):
        try:
            return await self.socket.recv()
        except ConnectionClosed:
            raise StopAsyncIteration from None

    async def send(self, message):
        await self.socket.send(message)

    async def recv(self):
        return await self.socket.recv()


async def main():
    doc = Doc()
    doc["text"] = text = Text()
    text.observe(lambda event: print(f"--\n{text}", flush=True))
    async with connect(sys.argv[1]) as socket, Provider(doc, Channel(socket, sys.argv[1])):
        lines = asyncio.StreamReader()
        await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(lines), sys.stdin)
        closed = asyncio.create_task(socket.wait_closed())
        while True:
            line = asyncio.create_task(lines.readline())
            await asyncio.wait({line, closed}, return_when=asyncio.FIRST_COMPLETED)
            if not line.done():
                line.cancel()
                return
            if not line.result():
                return
            text += line.result().decode()


asyncio.run(main())
