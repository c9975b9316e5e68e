// @hocuspocus/server without extensions: documents in memory.
import { Server } from '@hocuspocus/server'

const server = new Server({ address: '127.0.0.1', port: Number(process.argv[2]), quiet: true, stopOnSignals: false })
await server.listen()
