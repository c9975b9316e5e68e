// Many clients, and one that does not read: traffic, memory and latency stay within bounds. Runs
// alone, because it measures.

import assert from 'node:assert/strict'
import { afterEach, beforeEach, test } from 'node:test'
import { Server, join, leaveAll, mib, pause, until, version31, version4, versions } from './support.mjs'

let server
beforeEach(async () => { server = await Server.start() })
afterEach(() => { leaveAll(); return server.dispose() })

test('200 stock clients, each of which sends back all the presence it hears, do not multiply traffic', { timeout: 240_000 }, async t => {
  const everyone = []
  // In groups, as one process cannot open 200 connections and answer them all at the same time.
  for (let i = 0; i < 200; i += 20) {
    everyone.push(...await Promise.all(Array.from({ length: 20 }, (_, k) => join(versions[(i + k) % versions.length], server, 'crowd', { state: { name: `client ${i + k}` } }))))
  }
  const all = () => everyone.every(client => client.awareness.getStates().size === everyone.length)
  await until('everyone sees everyone', all, 60_000)

  const total = way => everyone.reduce((sum, client) => sum + client.counts[way], 0)
  const reset = () => everyone.forEach(client => { client.counts = { sent: 0, received: 0 } })
  const most = () => Math.max(...everyone.map(({ counts }) => counts.received))
  const report = what => t.diagnostic(`${what}: clients received ${total('received')} frames in all, ${most()} at most each; sent ${total('sent')}`)
  const quiet = async () => {
    for (let before = -1; before !== total('received'); await pause(1000)) before = total('received')
  }
  report('joining')

  // Everyone says something new at the same time. Sent on one by one that is 200 frames for each; if
  // what clients send back were sent on as well, 200 x 200. Joined within 40 ms they are far fewer.
  await quiet()
  reset()
  const began = Date.now()
  everyone.forEach((client, i) => client.awareness.setLocalState({ name: `client ${i}`, cursor: i }))
  await until('everyone sees every cursor', () => everyone.every(client => everyone.every((other, i) => client.sees(other)?.cursor === i)), 60_000)
  const took = Date.now() - began
  await quiet()
  report(`200 changes at once, seen by all after ${took} ms`)
  assert.ok(most() <= took / 40 + 2, 'one frame per 40 ms for each client, however many changes there are')

  // Clients renew their presence 15 s after they last set it, which was just now: until then there is
  // nothing to say. One frame each is allowed for, in case a keepalive falls due.
  reset()
  await pause(5_000)
  report('5 s of silence')
  assert.ok(most() <= 1, 'silence is silent')

  // One change: each client hears it once, its author too, and what 200 clients send back is dropped.
  reset()
  everyone[0].awareness.setLocalState({ name: 'client 0', cursor: 'moved' })
  await until('everyone sees it', () => everyone.every(client => client.sees(everyone[0])?.cursor === 'moved'))
  await pause(2_000)
  report('1 change')
  assert.ok(most() <= 2, 'one change is one frame for each, two if another change fell into the same moment')
  assert.ok(total('received') <= 2 * everyone.length)

  // The renewals: 200 in a few seconds, each of which is sent back 200 times.
  reset()
  await pause(12_000)
  report('12 s with a renewal of everyone')
  assert.ok(most() <= everyone.length + 1, 'no more frames for a client than there were renewals')
  assert.equal(everyone.reduce((sum, client) => sum + client.closes, 0), 0, 'nobody was disconnected')
  assert.ok(all(), 'everyone still sees everyone')
})

const updates = 100_000
const value = 'x'.repeat(500)

/** Two clients write, together `updates` times 500 bytes over a few keys of a map; how long probes took from one to the other. */
async function write (a, b) {
  const latencies = []
  let probing = true
  const probes = (async () => {
    for (let n = 1; probing; n++) {
      const began = performance.now()
      a.set('probe', n)
      await new Promise(resolve => {
        const look = () => { if (b.get('probe') >= n) { b.doc.off('update', look); resolve() } }
        b.doc.on('update', look)
        look()
      })
      latencies.push(performance.now() - began)
      await pause(20)
    }
  })()
  await Promise.all([a, b].map(async (client, which) => {
    for (let n = 0; n < updates / 2; n++) {
      client.set(`${which} ${n % 10}`, `${n} ${value}`)
      if (n % 20 === 0) {
        await pause(0)
        await until('the socket has written', () => client.provider.ws.bufferedAmount < 50_000)
      }
    }
  }))
  probing = false
  await probes
  await until('each has what the other wrote', () => a.get(`1 ${(updates / 2 - 1) % 10}`)?.startsWith(`${updates / 2 - 1} `) && b.get(`0 ${(updates / 2 - 1) % 10}`)?.startsWith(`${updates / 2 - 1} `))
  latencies.sort((x, y) => x - y)
  const at = share => latencies[Math.min(latencies.length - 1, Math.floor(latencies.length * share))]
  return { median: at(0.5), p99: at(0.99), worst: latencies.at(-1), count: latencies.length }
}

test('one reader stops reading while others write 100,000 updates: memory and latency stay flat, and it converges once it reads again', { timeout: 300_000 }, async t => {
  const inMs = ({ median, p99, worst, count }) => `${count} probes, median ${median.toFixed(1)} ms, p99 ${p99.toFixed(1)} ms, worst ${worst.toFixed(0)} ms`
  const measured = {}
  // First with a reader that reads, for comparison: memory that documents need is no fault.
  for (const stalls of [false, true]) {
    const [a, b, reader] = await Promise.all([version31, version4, version31].map(version => join(version, server, 'stalled')))
    a.set('probe', 0)
    await until('the reader reads', () => reader.get('probe') === 0 && b.get('probe') === 0)
    const before = server.memory
    let peak = before
    const watch = setInterval(() => { peak = Math.max(peak, server.memory) }, 50)
    const socket = reader.provider.ws
    if (stalls) socket._socket.pause()
    const began = Date.now()
    const latency = await write(a, b)
    clearInterval(watch)
    measured[stalls] = { grown: peak - before, latency }
    const what = stalls ? 'with a reader that stopped' : 'with all reading'
    t.diagnostic(`${what}: ${updates} updates in ${Date.now() - began} ms; ${inMs(latency)}`)
    t.diagnostic(`${what}: server memory ${mib(before)} before, ${mib(peak)} at most, ${mib(server.memory)} after`)
    if (stalls) {
      assert.equal(reader.get('probe'), 0, 'the reader has read nothing meanwhile')
      socket._socket.resume()
    }
    const resumed = Date.now()
    // Not `converged`: text and XML are empty here.
    await until('the reader has what the others have', () => {
      const wanted = a.map.toJSON()
      const has = reader.map.toJSON()
      return Object.keys(wanted).every(key => has[key] === wanted[key])
    }, 60_000)
    t.diagnostic(`${what}: the reader had everything ${Date.now() - resumed} ms later, after ${reader.counts.received} frames, disconnected ${reader.closes} times`)
    assert.deepEqual([a.closes, b.closes], [0, 0])
    leaveAll()
    await server.dispose()
    server = await Server.start()
  }
  // 100,000 updates of 500 bytes are 50 MB: what a queue for the reader would have held.
  const extra = measured.true.grown - measured.false.grown
  assert.ok(extra < 24 * 2 ** 20, `the reader that stopped cost ${mib(extra)} of memory`)
  // Generous, because the clients themselves share the machine: a server that waited for the reader
  // would not answer at all.
  assert.ok(measured.true.latency.p99 < 5 * measured.false.latency.p99 + 100, 'the others did not wait for it')
})
