// What was acknowledged is there after a restart, whatever ended the program. The acknowledgement is
// the echo: an author gets its own edit back once the store has it.

import assert from 'node:assert/strict'
import { afterEach, describe, test } from 'node:test'
import { Client, Server, Wire, Y, clockOf, converged, hangUpAll, isKind, join, leaveAll, message, messages, until, version31, version4, versions } from './support.mjs'

let server
const start = async options => { server = await Server.start(options) }
afterEach(async () => {
  leaveAll()
  hangUpAll()
  await server.dispose()
})

/** Watches what the server acknowledges to a client: `acknowledged()` is a clock of its own. */
function watch (client) {
  let acknowledged = 0
  client.onFrame = frame => messages(frame).filter(({ kind }) => kind === 'update' || kind === 'step2').forEach(({ payload }) => {
    acknowledged = Math.max(acknowledged, clockOf(payload, client.doc.clientID))
  })
  return () => acknowledged
}

/** What `typing` has typed after so many characters. */
const alphabet = length => 'abcdefghij'.repeat(Math.ceil(length / 10)).slice(0, length)

/** Types one character after another without waiting, until told to stop. */
function typing (client) {
  let typed = 0
  const timer = setInterval(() => {
    if (client.provider.wsconnected) client.text.insert(client.text.length, 'abcdefghij'[typed++ % 10])
  }, 1)
  return { stop: () => clearInterval(timer), typed: () => typed }
}

for (const version of versions) {
  describe(version.name, { timeout: 120_000 }, () => {
    test('after SIGKILL in the middle of typing everything acknowledged is there', async t => {
      await start()
      const author = await join(version, server, 'killed')
      const acknowledged = watch(author)
      const work = typing(author)
      await until('a good part is acknowledged', () => acknowledged() >= 150)
      await server.kill()
      work.stop()
      const promised = acknowledged()
      author.destroy()
      await server.restart()
      const reader = await join(version, server, 'killed')
      t.diagnostic(`typed ${work.typed()}, acknowledged ${promised}, there after restart ${reader.text.length}`)
      assert.ok(reader.text.length >= promised, `${reader.text.length} of ${promised} characters that were acknowledged`)
      assert.equal(reader.text.toString(), alphabet(reader.text.length), 'and in order, without holes')
    })

    test('after SIGTERM in the middle of typing everything acknowledged is there', async t => {
      await start()
      const author = await join(version, server, 'ended')
      const acknowledged = watch(author)
      const work = typing(author)
      await until('a good part is acknowledged', () => acknowledged() >= 150)
      await server.stop()
      work.stop()
      const promised = acknowledged()
      author.destroy()
      await server.restart()
      const reader = await join(version, server, 'ended')
      t.diagnostic(`typed ${work.typed()}, acknowledged ${promised}, there after restart ${reader.text.length}`)
      assert.ok(reader.text.length >= promised, `${reader.text.length} of ${promised} characters that were acknowledged`)
      assert.equal(reader.text.toString(), alphabet(reader.text.length), 'and in order, without holes')
    })

    test('its edit, its echo, SIGKILL at once, restart: the edit is there', async () => {
      await start()
      const author = await join(version, server, 'echo')
      const acknowledged = watch(author)
      author.write('ann')
      const [clock] = [...version.Y.decodeStateVector(version.Y.encodeStateVector(author.doc)).values()]
      await until('the echo', () => acknowledged() >= clock)
      await server.kill()
      const content = author.content
      author.destroy()
      await server.restart()
      assert.deepEqual((await join(version, server, 'echo')).content, content)
    })

    test('everything in a document survives SIGTERM, and clients come back by themselves', async () => {
      await start()
      const [a, b] = await Promise.all([join(version, server, 'survives'), join(version, server, 'survives')])
      a.write('ann')
      b.write('bob')
      const content = await converged(a, b)
      await server.stop()
      await until('both notice', () => a.closes === 1 && b.closes === 1)
      assert.deepEqual(version.read(server.storedDoc('survives', version)), content, 'the stored document')
      a.text.insert(0, 'while the server was away ')
      await server.restart()
      await Promise.all([a.synced(), b.synced()])
      assert.notDeepEqual(await converged(a, b, await join(version, server, 'survives')), content)
    })
  })
}

describe('on the wire', { timeout: 120_000 }, () => {
  test('peers get an edit, its author gets the echo, byte for byte, and SIGKILL right after it loses nothing', async () => {
    await start()
    const [author, peer] = await Promise.all([Wire.connect(server, 'raw'), Wire.connect(server, 'raw')])
    await Promise.all([author, peer].map(wire => wire.frame('SyncStep1', isKind('step1'))))
    const doc = new Y.Doc()
    doc.getText('text').insert(0, 'durable')
    const edit = message.update(Y.encodeStateAsUpdate(doc))
    author.send(edit)
    assert.deepEqual(await peer.frame('the edit', isKind('update')), edit)
    assert.deepEqual(await author.frame('the echo', isKind('update')), edit)
    await server.kill()
    assert.equal(server.storedDoc('raw').getText('text').toString(), 'durable')
    await server.restart()
    assert.equal((await join(version31, server, 'raw')).text.toString(), 'durable')
  })

  test('each of 50 acknowledged edits survives its own SIGKILL', { timeout: 300_000 }, async () => {
    await start()
    const doc = new Y.Doc()
    for (let i = 0; i < 50; i++) {
      const author = await Wire.connect(server, 'again')
      await author.frame('SyncStep1', isKind('step1'))
      const before = Y.encodeStateVector(doc)
      doc.getArray('array').push([i])
      author.send(message.update(Y.encodeStateAsUpdate(doc, before)))
      await author.frame('the echo', isKind('update'))
      await server.kill()
      await server.restart()
    }
    const reader = new Client(version31, server, 'again')
    await reader.synced()
    assert.deepEqual(reader.doc.getArray('array').toJSON(), doc.getArray('array').toJSON())
  })

  test('an edit followed at once by the end of its connection is stored', async () => {
    await start()
    const author = await Wire.connect(server, 'leaver')
    await author.frame('SyncStep1', isKind('step1'))
    const doc = new Y.Doc()
    doc.getText('text').insert(0, 'last words')
    author.socket.send(message.update(Y.encodeStateAsUpdate(doc)))
    author.socket.close()
    await author.closed()
    await server.stop()
    assert.equal(server.storedDoc('leaver').getText('text').toString(), 'last words')
  })

  test('an edit whose dependencies are missing is stored and relayed all the same', async () => {
    await start()
    const [author, peer] = await Promise.all([Wire.connect(server, 'gap'), Wire.connect(server, 'gap')])
    await Promise.all([author, peer].map(wire => wire.frame('SyncStep1', isKind('step1'))))
    const doc = new Y.Doc()
    const updates = []
    doc.on('update', update => updates.push(update))
    doc.getText('text').insert(0, 'one ')
    doc.getText('text').insert(4, 'two')
    author.send(message.update(updates[1]))
    await peer.frame('the second edit', frame => isKind('update')(frame) && clockOf(messages(frame)[0].payload, doc.clientID) === 7)
    await author.frame('its echo', isKind('update'))
    await server.kill()
    await server.restart()
    const again = await Wire.connect(server, 'gap')
    await again.frame('SyncStep1', isKind('step1'))
    again.send(message.update(updates[0]))
    await again.frame('the echo', isKind('update'))
    assert.equal((await join(version31, server, 'gap')).text.toString(), 'one two')
    assert.equal((await join(version4, server, 'gap')).text.toString(), 'one two')
  })
})
