// Real editing sessions, and random ones, through the running program. See ../traces/README.md.

import assert from 'node:assert/strict'
import fs from 'node:fs'
import { afterEach, beforeEach, describe, test } from 'node:test'
import zlib from 'node:zlib'
import { Server, Y, chance, converged, join, leaveAll, mib, pause, until, version31, version4, versions, versions13 } from './support.mjs'

const trace = name => JSON.parse(zlib.gunzipSync(fs.readFileSync(new URL(`../traces/${name}.json.gz`, import.meta.url))))

let server
beforeEach(async () => { server = await Server.start() })
afterEach(() => { leaveAll(); return server.dispose() })

/** A late joiner of each generation that fits, and the store after a restart, have the text. */
async function everywhere (t, room, text, version = version31) {
  const late = await join(version, server, room)
  await until('a late joiner has it', () => late.text.length === text.length)
  assert.equal(late.text.toString(), text, 'a late joiner')
  late.destroy()
  await server.stop()
  const updates = server.stored(room)
  t.diagnostic(`stored in ${updates.length} rows, ${mib(updates.reduce((sum, update) => sum + update.length, 0))}`)
  assert.equal(version.text(server.storedDoc(room, version)).toString(), text, 'the store')
  await server.restart()
  const returning = await join(version, server, room)
  assert.equal(returning.text.toString(), text, 'after a restart')
}

/** Applies the patches of a transaction. Positions are code points; all traces stay within one UTF-16 unit each. */
function apply (doc, text, patches, origin) {
  doc.transact(() => {
    for (const [position, deleted, inserted] of patches) {
      if (deleted) text.delete(position, deleted)
      if (inserted) text.insert(position, inserted)
    }
  }, origin)
}

describe('friendsforever', { timeout: 300_000 }, () => {
  for (const version of [version31, version4]) {
    // Each transaction is made by a connected client whose document is, at that moment, exactly what
    // its author saw. To make it so, a client's edits leave it no earlier than the other one needs
    // them: they wait in `held`, as on a slow line, and travel through the server when they are let go.
    test(`two people writing at the same time end in endContent on both, late and stored: ${version.name}`, async t => {
      const { txns, endContent } = trace('friendsforever')
      const room = `friendsforever-${version.name}`.replaceAll(/[^a-z0-9.]+/g, '-')
      // The recorded outcome of concurrent insertions at one place is that of the lower agent first.
      const live = await Promise.all([1, 2].map(clientID => join(version, server, room, { clientID })))
      live.forEach(client => { client.held = [] })
      // The same session without a network says what each author saw.
      const models = [1, 2].map(clientID => Object.assign(new version.Y.Doc(), { clientID }))
      const updates = [[], []]
      models.forEach((model, agent) => model.on('update', (update, origin) => { if (origin === 'own') updates[agent].push(update) }))
      const seen = []
      const has = [0, 0] // how many transactions of the other one each has
      const read = doc => version.text(doc).toString()
      const deliver = async (agent, count) => {
        if (has[agent] === count) return
        const other = live[1 - agent]
        for (; has[agent] < count; has[agent]++) {
          version.Y.applyUpdate(models[agent], updates[1 - agent][has[agent]])
          other.release(other.held.shift())
        }
        const expected = read(models[agent])
        await until('the transactions of the other one have arrived', () => live[agent].text.length === expected.length && read(live[agent].doc) === expected)
      }
      const began = Date.now()
      let handovers = 0
      for (const [index, { agent, parents, patches }] of txns.entries()) {
        const past = [0, 1].map(who => Math.max(0, ...parents.map(parent => seen[parent][who])))
        assert.equal(past[agent], updates[agent].length, 'an author knows its own transactions')
        if (has[agent] < past[1 - agent]) handovers++
        await deliver(agent, past[1 - agent])
        apply(models[agent], version.text(models[agent]), patches, 'own')
        apply(live[agent].doc, live[agent].text, patches)
        assert.equal(live[agent].held.length, updates[agent].length - has[1 - agent], 'one transaction, one update')
        past[agent] += 1
        seen[index] = past
      }
      await deliver(0, updates[1].length)
      await deliver(1, updates[0].length)
      t.diagnostic(`${txns.length} transactions, ${handovers} handovers, ${Date.now() - began} ms`)
      live.forEach(client => assert.equal(client.text.toString(), endContent))
      leaveAll()
      await everywhere(t, room, endContent, version)
    })
  }
})

describe('automerge-paper', { timeout: 300_000 }, () => {
  test('259,778 keystrokes of one client end in endContent on a peer, late and stored', async t => {
    const { txns, endContent } = trace('automerge-paper')
    const [author, peer] = await Promise.all([join(version31, server, 'automerge-paper'), join(version31, server, 'automerge-paper')])
    const before = server.memory
    const began = Date.now()
    for (const [index, { patches }] of txns.entries()) {
      apply(author.doc, author.text, patches)
      // Leaves the socket a chance to write, as a person's pauses do.
      if (index % 500 === 0) {
        await pause(0)
        await until('the socket has written', () => author.provider.ws.bufferedAmount < 100_000)
      }
    }
    assert.equal(author.text.toString(), endContent)
    await until('the peer has it all', () => peer.text.length === endContent.length && peer.text.toString() === endContent, 120_000)
    t.diagnostic(`${txns.length} keystrokes at a peer in ${Date.now() - began} ms; it received ${peer.counts.received} frames`)
    t.diagnostic(`server memory ${mib(before)} before, ${mib(server.memory)} after`)
    assert.deepEqual([author.closes, peer.closes], [0, 0])
    // All is acknowledged only when the store has all of it: SIGTERM must flush the rest.
    leaveAll()
    await everywhere(t, 'automerge-paper', endContent)
  })
})

describe('random edits', { timeout: 300_000 }, () => {
  for (const [name, five] of [
    ['y-websocket 1.5 to 3.1', [...versions13, version31]],
    ['@y/websocket 4', Array(5).fill(version4)]
  ]) {
    test(`five clients, 1,000 concurrent edits each: all replicas and the stored document are equal: ${name}`, async t => {
      const seed = Number(process.env.SEED ?? 1)
      t.diagnostic(`SEED=${seed}`)
      const version = five[0]
      const room = `random-${versions.indexOf(version)}`
      const clients = await Promise.all(five.map((version, i) => join(version, server, room, { clientID: seed * 10 + i + 1, state: { i } })))
      await Promise.all(clients.map(async (client, i) => {
        const random = chance(seed * 1000 + i)
        for (let edit = 0; edit < 1000; edit++) {
          client.doc.transact(() => (client.version === version4 ? edit14 : edit13)(client.doc, random))
          if (random() < 0.005) {
            client.disconnect()
            setTimeout(() => client.connect(), random() * 200)
          }
          // Others come in between, after a while that differs.
          if (random() < 0.3) await pause(random() * 10)
        }
        client.connect()
      }))
      const content = await converged(...clients)
      await Promise.all(clients.map(client => client.synced()))
      t.diagnostic(`${JSON.stringify(content).length} characters of content, connections ended on purpose: ${clients.map(({ closes }) => closes)}`)
      leaveAll()
      await server.stop()
      assert.deepEqual(version.read(server.storedDoc(room, version)), content, 'the stored document')
      await server.restart()
      assert.deepEqual((await join(version, server, room)).content, content, 'a late joiner after the restart')
    })
  }
})

/** One random edit with yjs 13. Text stays clear of surrogate pairs: Yjs itself does not always converge on insertions inside one. */
function edit13 (doc, random) {
  const below = n => Math.floor(random() * n)
  const word = () => ['a', 'bc', 'ü', '日本', 'word ', '\n'][below(6)]
  const plain = () => [below(100), word(), { k: [word(), null] }, true, new Uint8Array([below(256)])][below(5)]
  const value = () => random() < 0.1 ? 2n ** 60n + BigInt(below(9)) : plain() // yjs 13 takes big integers in maps only
  const from = length => { const at = below(length); return [at, 1 + below(Math.min(4, length - at))] }
  const text = doc.getText('text')
  const map = doc.getMap('map')
  const array = doc.getArray('array')
  const xml = doc.getXmlFragment('xml')
  switch (below(12)) {
    case 0: case 1: case 2: text.insert(below(text.length + 1), word()); break
    case 3: if (text.length) text.delete(...from(text.length)); break
    case 4: if (text.length) text.format(...from(text.length), { [['b', 'i'][below(2)]]: [true, null][below(2)] }); break
    case 5: map.set(`key ${below(10)}`, value()); break
    case 6: map.delete(`key ${below(10)}`); break
    case 7: array.insert(below(array.length + 1), [plain(), plain()]); break
    case 8: if (array.length) array.delete(...from(array.length)); break
    case 9: {
      const inner = map.get('inner')
      if (inner instanceof Y.Map && random() < 0.95) inner.set(`key ${below(5)}`, Y.Array.from([plain()]))
      else map.set('inner', new Y.Map([['first', below(100)]]))
      break
    }
    case 10: {
      const element = new Y.XmlElement(['p', 'li'][below(2)])
      element.setAttribute('k', word())
      element.insert(0, [new Y.XmlText(word())])
      xml.insert(below(xml.length + 1), [element])
      break
    }
    case 11: if (xml.length) { const at = below(xml.length); random() < 0.5 ? xml.delete(at, 1) : xml.get(at).setAttribute('k', word()) } break
  }
}

/** One random edit with @y/y 14. */
function edit14 (doc, random) {
  const { Type } = version4.Y
  const below = n => Math.floor(random() * n)
  const word = () => ['a', 'bc', 'ü', '日本', 'word ', '\n'][below(6)]
  const value = () => [below(100), word(), { k: [word(), null] }, true][below(4)]
  const from = length => { const at = below(length); return [at, 1 + below(Math.min(4, length - at))] }
  const text = doc.get('text')
  const map = doc.get('map')
  const array = doc.get('array')
  switch (below(9)) {
    case 0: case 1: case 2: text.insert(below(text.length + 1), word()); break
    case 3: if (text.length) text.delete(...from(text.length)); break
    case 4: map.setAttr(`key ${below(10)}`, value()); break
    case 5: map.deleteAttr(`key ${below(10)}`); break
    case 6: array.insert(below(array.length + 1), [value(), value()]); break
    case 7: if (array.length) array.delete(...from(array.length)); break
    case 8: {
      const inner = map.getAttr('inner')
      if (inner instanceof Type && random() < 0.95) inner.insert(0, [new Type('p')])
      else map.setAttr('inner', new Type())
      break
    }
  }
}
