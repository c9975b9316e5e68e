"""pycrdt-websocket under uvicorn: documents in memory."""
import asyncio
import sys

import uvicorn
from pycrdt.websocket import ASGIServer, WebsocketServer


async def main():
    async with WebsocketServer() as server:
        config = uvicorn.Config(ASGIServer(server), host='127.0.0.1', port=int(sys.argv[1]), log_level='warning',
                                backlog=4096, ws='websockets')
        await uvicorn.Server(config).serve()

asyncio.run(main())
