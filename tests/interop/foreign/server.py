"""pycrdt-websocket on uvicorn: `server.py PORT`."""

import asyncio
import sys

import uvicorn
from pycrdt.websocket import ASGIServer, WebsocketServer


async def main():
    async with WebsocketServer(auto_clean_rooms=False) as server:
        app = ASGIServer(server)
        options = {"log_level": "warning", "lifespan": "off"}
        await uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=int(sys.argv[1]), **options)).serve()


asyncio.run(main())
