// y-websocket closes a connection on which no message came for 30 s (pings do not count). A client
// that nobody talks to must stay connected all the same.

import assert from 'node:assert/strict'
import { after, before, test } from 'node:test'
import { Client, Server, join, leaveAll, pause, until, versions } from './support.mjs'

let server
before(async () => { server = await Server.start() })
after(() => { leaveAll(); return server.dispose() })

test('clients alone in their rooms stay connected for 70 s, with presence and without', { timeout: 150_000 }, async t => {
  const alone = await Promise.all(versions.flatMap(version => [
    join(version, server, `with presence ${version.name}`.replaceAll(' ', '-'), { state: { name: 'here' } }),
    join(version, server, `without presence ${version.name}`.replaceAll(' ', '-'), { state: null })
  ]))
  await pause(70_000)
  for (const client of alone) {
    t.diagnostic(`${client.room}: received ${client.counts.received} frames, sent ${client.counts.sent}`)
    assert.equal(client.closes, 0, `${client.room} was never disconnected`)
    assert.ok(client.provider.wsconnected, client.room)
  }
  // And the connections work.
  for (const client of alone) client.set('still', 'here')
  for (const client of alone) {
    const late = new Client(client.version, server, client.room)
    await until(`${client.room} still works`, () => late.get('still') === 'here')
  }
})
