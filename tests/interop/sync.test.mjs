// Clients of every version share documents and presence through the running program.

import assert from 'node:assert/strict'
import { after, afterEach, before, describe, test } from 'node:test'
import { Client, Server, Wire, Y, converged, hangUpAll, join, leaveAll, message, messages, mib, pause, until, version31, version4, versions, versions13 } from './support.mjs'

let server
before(async () => { server = await Server.start() })
after(() => server.dispose())
afterEach(() => { leaveAll(); hangUpAll() })

for (const version of versions) {
  describe(version.name, { timeout: 300_000 }, () => {
    const room = name => `${name} ${version.name}`.replaceAll(/[^a-z0-9.]+/g, '-')

    test('two clients converge on text with formats, map, array, nested and XML types', async () => {
      const [a, b] = await Promise.all([join(version, server, room('converge')), join(version, server, room('converge'))])
      a.write('ann')
      b.write('bob')
      const content = await converged(a, b)
      for (const who of ['ann', 'bob']) assert.ok(JSON.stringify(content).includes(`"${who} nested"`))
      // And once more, now that there is something to change and to delete.
      a.text.delete(2, 6)
      b.text.format(1, 9, { bold: null, size: 12 })
      a.set('ann nested', 'no longer')
      b.version === version4 ? b.doc.get('array').delete(1, 2) : b.doc.getArray('array').delete(1, 2)
      await converged(a, b)
    })

    test('a late joiner gets the document and the presence of those who are there at once', async t => {
      const a = await join(version, server, room('late'), { state: { name: 'ann' } })
      a.write('ann')
      const began = Date.now()
      const late = await join(version, server, room('late'), { state: { name: 'late' } })
      await converged(a, late)
      // Clients renew their presence every 15 s: what comes within 5 s came from the server.
      await until('the late joiner sees who is there', () => late.sees(a)?.name === 'ann', 5_000)
      await until('and is seen', () => a.sees(late)?.name === 'late', 5_000)
      t.diagnostic(`document and presence after ${Date.now() - began} ms`)
    })

    test('presence goes when a client leaves', async t => {
      const [stays, leaves] = await Promise.all([join(version, server, room('leave'), { state: { name: 'stays' } }), join(version, server, room('leave'), { state: { name: 'leaves' } })])
      await until('both see each other', () => stays.sees(leaves) && leaves.sees(stays))
      const began = Date.now()
      leaves.destroy()
      await until('presence is gone', () => !stays.sees(leaves), 5_000)
      t.diagnostic(`gone after ${Date.now() - began} ms`)
    })

    test('presence goes when a socket is cut without a close frame', async t => {
      const [stays, leaves] = await Promise.all([join(version, server, room('cut'), { state: { name: 'stays' } }), join(version, server, room('cut'), { state: { name: 'leaves' } })])
      await until('both see each other', () => stays.sees(leaves) && leaves.sees(stays))
      const began = Date.now()
      leaves.cut()
      await until('presence is gone', () => !stays.sees(leaves), 5_000)
      t.diagnostic(`gone after ${Date.now() - began} ms`)
      assert.ok(stays.sees(stays), 'and only that')
    })

    test('edits made offline on both sides merge after both reconnect', async () => {
      const [a, b] = await Promise.all([join(version, server, room('offline')), join(version, server, room('offline'))])
      a.text.insert(0, 'shared ')
      await converged(a, b)
      a.disconnect()
      b.disconnect()
      a.write('ann')
      b.write('bob')
      a.text.delete(a.text.length - 3, 2)
      a.connect()
      b.connect()
      await Promise.all([a.synced(), b.synced()])
      const content = JSON.stringify(await converged(a, b))
      for (const who of ['ann', 'bob']) assert.ok(content.includes(`"${who} nested"`))
      assert.ok(content.includes('shar '), 'what was deleted offline is gone')
    })

    test('a document of 20 MB reaches a second client', async t => {
      const a = new Client(version, server, room('large'), { provider: { connect: false } })
      a.doc.transact(() => {
        for (let i = 0; i < 19; i++) a.set(`block ${i}`, new Uint8Array(2 ** 20).fill(i))
        a.text.insert(0, 'twenty megabytes '.repeat(70_000))
      })
      const began = Date.now()
      a.connect()
      await a.synced()
      const b = await join(version, server, room('large'))
      // Compared by what matters; turning 20 MB into JSON takes longer than to send it.
      await until('all of it has arrived', () => b.text.length === a.text.length && b.get('block 18')?.length === 2 ** 20, 120_000)
      assert.equal(b.text.toString(), a.text.toString())
      for (let i = 0; i < 19; i++) assert.ok(Buffer.from(b.get(`block ${i}`)).equals(Buffer.alloc(2 ** 20, i)))
      assert.deepEqual([a.closes, b.closes], [0, 0], 'nobody was disconnected')
      const size = version.Y.encodeStateAsUpdate(b.doc).length
      assert.ok(size > 20_000_000)
      t.diagnostic(`${mib(size)} there and back in ${Date.now() - began} ms`)
    })
  })
}

describe('mixed versions', { timeout: 120_000 }, () => {
  test('one client of each version on yjs 13 converge on everything', async () => {
    const all = await Promise.all(versions13.map(version => join(version, server, 'mixed-13', { state: { name: version.name } })))
    all.forEach(client => client.write(client.version.name))
    const content = JSON.stringify(await converged(...all))
    for (const { name } of versions13) assert.ok(content.includes(`"${name} nested"`))
    for (const a of all) await until('everyone sees everyone', () => all.every(b => a.sees(b)?.name === b.version.name), 10_000)
  })

  // yjs 13 and @y/y 14 share the update format; their types differ (a nested @y/y type is text, map
  // and element in one). What both can name is plain values and text in root types.
  test('@y/websocket 4 and one of each other share text, plain values and presence', async () => {
    const all = await Promise.all(versions.map(version => join(version, server, 'mixed-all', { state: { name: version.name } })))
    all.forEach(client => {
      client.text.insert(0, `${client.version.name} wörld 🦀 `)
      client.set(client.version.name, { list: [1, null, true, 'ü'] })
    })
    const read = client => JSON.stringify([client.text.toString(), versions.map(({ name }) => client.get(name))])
    await until('all read the same', () => all.every(client => read(client) === read(all[0])))
    for (const { name } of versions) assert.ok(read(all[0]).includes(`${name} wörld 🦀`))
    for (const a of all) await until('everyone sees everyone', () => all.every(b => a.sees(b)?.name === b.version.name), 10_000)
  })
})

describe('rooms', { timeout: 120_000 }, () => {
  // Names as given to the client. None is encoded by it; `ws` normalises them as browsers do.
  const names = ['plain', 'Plain', 'café', 'cafe\u0301', '日本語/ノート', '🦀 emoji 👩‍👩‍👧', 'with space', 'with%2520percent', 'a/b', 'a/b/', '/a/b', 'a%252Fb', 'dot.ted~name_(1)', 'x'.repeat(1024)]

  for (const version of [versions[0], version31, version4]) {
    test(`rooms of any name are told apart, and found again: ${version.name}`, async () => {
      const writers = await Promise.all(names.map(name => join(version, server, name)))
      writers.forEach((writer, i) => writer.set(version.name, `${version.name} in ${names[i]}`))
      // Encoded in full, as `encodeURIComponent` in an application would, it is the same room.
      const encoded = name => encodeURIComponent(decodeURIComponent(name))
      const readers = await Promise.all(names.map(name => join(version, server, encoded(name))))
      for (const [i, reader] of readers.entries()) {
        await until(`${names[i]} is found again`, () => reader.get(version.name) === `${version.name} in ${names[i]}`)
      }
    })
  }

  test('%2F is a slash', async () => {
    const [a, b] = await Promise.all([join(version31, server, 'slash/room'), join(version31, server, 'slash%2Froom')])
    a.set('key', 'value')
    await until('the same room', () => b.get('key') === 'value')
  })

  test('parameters are no part of the name', async () => {
    const [a, b] = await Promise.all([join(version31, server, 'parameters', { provider: { params: { token: 'a b&c' } } }), join(version31, server, 'parameters')])
    a.set('key', 'value')
    await until('the same room', () => b.get('key') === 'value')
  })

  test('two rooms never mix: neither edits nor presence', async () => {
    const [a, a2, b] = await Promise.all(['one', 'one', 'two'].map(room => join(version31, server, room, { state: { in: room } })))
    const wire = await Wire.connect(server, 'two')
    for (let i = 0; i < 200; i++) {
      a.set(`key ${i}`, i)
      a.awareness.setLocalState({ in: 'one', i })
      if (i % 20 === 0) await pause(5)
    }
    await until('one has it all', () => a2.get('key 199') === 199 && a2.sees(a)?.i === 199)
    // What was meant for `one` would be here before what `two` is sent afterwards.
    b.set('last', true)
    await wire.frame('the edit in two', frame => messages(frame)[0].kind === 'update')
    assert.equal(b.map.size, 1)
    assert.deepEqual([...b.awareness.getStates().keys()], [b.doc.clientID])
    const doc = new Y.Doc()
    wire.send(message.step1())
    const answer = await wire.frame('SyncStep2', frame => messages(frame)[0].kind === 'step2')
    Y.applyUpdate(doc, messages(answer)[0].payload)
    assert.deepEqual(doc.getMap('map').toJSON(), { last: true })
  })
})
