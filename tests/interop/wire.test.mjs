// What goes over the wire byte for byte, and what a hostile or broken peer can do: end its own
// connection, nothing else.

import assert from 'node:assert/strict'
import { randomBytes } from 'node:crypto'
import { after, afterEach, before, describe, test } from 'node:test'
import * as encoding from 'lib0/encoding'
import { Server, Wire, Y, bytes, hangUpAll, isKind, join, leaveAll, message, messages, mib, tcp, until, version31, version4 } from './support.mjs'

let server
before(async () => { server = await Server.start() })
after(() => server.dispose())
afterEach(() => { leaveAll(); hangUpAll() })

const hex = text => Buffer.from(text.replaceAll(' ', ''), 'hex')

describe('frames', { timeout: 60_000 }, () => {
  test('the server speaks first: SyncStep1 of an empty room', async () => {
    const wire = await Wire.connect(server, 'first')
    await until('a frame', () => wire.frames.length > 0)
    assert.deepEqual(wire.frames[0], hex('00 00 01 00'))
  })

  test('SyncStep1 is answered with SyncStep2', async () => {
    const wire = await Wire.connect(server, 'step2')
    wire.send(hex('00 00 01 00'))
    await until('two frames', () => wire.frames.length >= 2)
    assert.deepEqual(wire.frames, [hex('00 00 01 00'), hex('00 01 02 00 00')])
  })

  test('SyncStep2 holds what the asker lacks, SyncStep1 what the server has', async () => {
    const edit = hex('00 02 12 01 01 01 00 04 01 04 74 65 78 74 05 48 65 6c 6c 6f 00') // client 1: "Hello"
    const author = await Wire.connect(server, 'hello')
    author.send(edit)
    assert.deepEqual(await author.frame('the echo', isKind('update')), edit)
    const wire = await Wire.connect(server, 'hello')
    assert.deepEqual(await wire.frame('SyncStep1', isKind('step1')), hex('00 00 03 01 01 05'))
    wire.send(hex('00 00 01 00'))
    assert.deepEqual(await wire.frame('everything', isKind('step2')), hex('00 01 12 01 01 01 00 04 01 04 74 65 78 74 05 48 65 6c 6c 6f 00'))
    const from = wire.frames.length
    wire.send(hex('00 00 03 01 01 03'))
    assert.deepEqual(await wire.frame('the rest', isKind('step2'), from), hex('00 01 0b 01 01 01 03 84 01 02 02 6c 6f 00'))
  })

  test('presence is sent to others, to those who come later and back to its sender', async () => {
    const [a, b] = await Promise.all([Wire.connect(server, 'presence'), Wire.connect(server, 'presence')])
    const entry = hex('01 07 01 ac 02 01 02 7b 7d') // client 300, clock 1, {}
    a.send(entry)
    assert.deepEqual(await b.frame('presence', isKind('awareness')), entry)
    assert.deepEqual(await a.frame('its echo, which keeps stock clients connected', isKind('awareness')), entry)
    const late = await Wire.connect(server, 'presence')
    assert.deepEqual(await late.frame('presence on joining', isKind('awareness')), entry)
    const from = late.frames.length
    late.send(hex('03'))
    assert.deepEqual(await late.frame('presence when asked', isKind('awareness'), from), entry)
    const gone = b.frames.length
    a.destroy()
    const removal = messages(await b.frame('its removal', isKind('awareness'), gone))[0].payload
    assert.deepEqual([...removal.slice(0, 3)], [1, 0xac, 2])
    assert.equal(Buffer.from(removal.slice(-4)).toString(), 'null')
  })

  test('the server sends one message per frame and understands several', async () => {
    const wire = await Wire.connect(server, 'several')
    const doc = new Y.Doc()
    doc.getText('text').insert(0, 'x')
    wire.send(message.step1(), message.update(Y.encodeStateAsUpdate(doc)), message.awareness([1, 7, 1, 2, 0x7b, 0x7d]), hex('03'))
    for (const kind of ['step1', 'step2', 'update', 'awareness']) await wire.frame(kind, isKind(kind))
    const late = await Wire.connect(server, 'several')
    late.send(message.step1(), message.step1(), hex('03'))
    // Presence comes with the greeting, and as the answer to the last message.
    await until('the last answer', () => late.frames.filter(isKind('awareness')).length === 2)
    // An answer may be as long as the document: a frame gets one, however often it asks.
    assert.equal(late.frames.filter(isKind('step2')).length, 1)
    // `messages` is strict: nothing is left over and each kind is known.
    for (const frame of [...wire.frames, ...late.frames]) assert.equal(messages(frame).length, 1, frame.toString('hex'))
  })
})

describe('upgrades', { timeout: 60_000 }, () => {
  const upgrade = (target, changes = {}) => {
    const headers = { Host: '127.0.0.1', Connection: 'Upgrade', Upgrade: 'websocket', 'Sec-WebSocket-Version': '13', 'Sec-WebSocket-Key': randomBytes(16).toString('base64'), ...changes }
    return `GET ${target} HTTP/1.1\r\n${Object.entries(headers).filter(([, value]) => value !== undefined).map(([name, value]) => `${name}: ${value}\r\n`).join('')}\r\n`
  }
  const answer = async request => (await tcp(server, request, data => data.includes('\r\n\r\n'))).toString('latin1')

  for (const [what, target] of [['no name', '/'], ['no name but parameters', '/?token=1'], ['half an escape', '/a%zz'], ['a cut escape', '/a%f'], ['bytes that are no UTF-8', '/%ff%fe'], ['a control character', '/a%00b'], ['1,025 bytes', '/' + 'x'.repeat(1025)]]) {
    test(`a room name that is none is answered with 400: ${what}`, async () => {
      assert.match(await answer(upgrade(target)), /^HTTP\/1\.1 400 /)
    })
  }

  test('a proper upgrade is answered with 101', async () => {
    assert.match(await answer(upgrade('/room?token=1')), /^HTTP\/1\.1 101 /)
  })

  test('a wrong version is answered with 426 and the right one', async () => {
    const text = await answer(upgrade('/room', { 'Sec-WebSocket-Version': '12' }))
    assert.match(text, /^HTTP\/1\.1 426 /)
    assert.match(text, /\r\nSec-WebSocket-Version: *13\r\n/i)
  })

  test('garbage is answered with 400', async () => {
    assert.match(await answer('\x16\x03\x01 this is no HTTP\r\n\r\n'), /^HTTP\/1\.1 400 /)
  })

  test('a plain GET is answered, not left hanging', async () => {
    assert.match(await answer('GET /room HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n'), /^HTTP\/1\.1 (426|200|404) /)
  })

  /** A frame of a client by hand: header, mask of zeros, payload; what the server's close frame says. */
  const closedBy = async frame => {
    let head
    const received = await tcp(server, Buffer.concat([Buffer.from(upgrade('/by-hand')), frame]), data => {
      head = data.indexOf('\r\n\r\n') + 4
      return head > 3 && closeCode(data.subarray(head)) !== undefined
    })
    return closeCode(received.subarray(head))
  }

  test('a frame that announces too much closes with 1009, at its header', async t => {
    const before = server.memory
    assert.equal(await closedBy(hex('82 ff 00 00 01 00 00 00 00 00 00 00 00 00 00 00')), 1009) // a terabyte
    t.diagnostic(`server memory ${mib(before)} before, ${mib(server.memory)} after a frame of 1 TiB was announced`)
  })

  test('an unmasked frame closes with 1002', async () => {
    assert.equal(await closedBy(hex('82 04 00 00 01 00')), 1002)
  })

  test('a text frame closes with 1003', async () => {
    const wire = await Wire.connect(server, 'text')
    wire.socket.send('hello')
    assert.equal(await wire.closed(), 1003)
  })
})

describe('malformed', { timeout: 300_000 }, () => {
  const uint = encoding.writeVarUint
  const string = encoding.writeVarString
  const ff = 'ff ff ff ff 0f' // 2^32 - 1
  const update = (name, payload) => [
    [`${name}, as an update`, message.update(payload)],
    [`${name}, in a SyncStep2`, message.step2(payload)]
  ]
  /** An update of one struct of client 1, at clock 0, in root "t". */
  const struct = (info, content) => Buffer.concat([hex('01 01 01 00'), Buffer.from([info]), hex('01 01 74'), content, hex('00')])

  /** Each must end its own connection with the code; what has no code must not. */
  const corpus = [
    ...[
      ['an empty frame', hex('')],
      ['a sync message of no kind', hex('00')],
      ['a sync message of unknown kind', hex('00 09 00')],
      ['an update shorter than announced', hex('00 02 05 61 62 63')],
      ['an update that is none', hex('00 02 02 ff ff')],
      ['an awareness message that ends after its type', hex('01')],
      ['a state vector shorter than announced', hex('00 00 05 00')],
      ['a state vector of 2^32 clients in 8 bytes', hex(`00 00 05 ${ff}`)],
      ['a state vector with something left over', hex('00 00 02 00 00')],
      ['a state vector that ends inside an entry', hex('00 00 02 01 01')],
      ['a length of eleven bytes', hex('00 00 ff ff ff ff ff ff ff ff ff ff 01')],
      ['presence of 2^32 clients in 7 bytes', hex(`01 05 ${ff}`)],
      ['presence that is no JSON', message.awareness([1, 1, 1, 3, 0x7b, 0x7b, 0x7b])],
      ['presence that is no UTF-8', message.awareness([1, 1, 1, 3, 0x22, 0xff, 0x22])],
      ['presence with something left over', message.awareness([1, 1, 1, 2, 0x7b, 0x7d, 0])],
      ['presence nested 50,000 deep', message.awareness(bytes(e => { uint(e, 1); uint(e, 1); uint(e, 1); string(e, '['.repeat(50_000) + ']'.repeat(50_000)) }))],
      ['presence of a client id of 2^53', message.awareness(Buffer.concat([hex('01 80 80 80 80 80 80 80 10 01 02 7b 7d')]))],
      ['something good and then something bad', Buffer.concat([message.step1(), hex('00')])],
      ...update('nothing at all', hex('')),
      ...update('something left over', hex('00 00 00')),
      ...update('2^32 clients', hex(ff)),
      ...update('2^32 structs', hex(`01 ${ff} 01 00`)),
      ...update('2^32 deletes', hex(`00 ${ff}`)),
      ...update('2^32 delete ranges', hex(`00 01 01 ${ff}`)),
      ...update('a client twice', hex('02 01 01 00 04 01 01 74 01 61 01 01 01 04 01 01 74 01 62 00')),
      ...update('an empty section', hex('01 00 01 00 00')),
      ...update('a client id of 2^53', hex('01 01 80 80 80 80 80 80 80 10 00 04 01 01 74 01 61 00')),
      ...update('a clock of 2^53', hex('01 01 01 80 80 80 80 80 80 80 10 04 01 01 74 01 61 00')),
      ...update('a string that is no UTF-8', struct(4, hex('02 c3 28'))),
      ...update('an empty string', struct(4, hex('00'))),
      ...update('a string longer than the update', struct(4, hex(ff))),
      ...update('unknown content', struct(11, hex('00'))),
      ...update('an unknown type', struct(7, hex('09'))),
      ...update('an unknown value', struct(8, hex('01 05'))),
      ...update('2^32 values', struct(8, hex(ff))),
      ...update('an embed that is no JSON', struct(5, hex('02 7b 7b'))),
      ...update('an embed that is undefined', struct(5, bytes(e => string(e, 'undefined')))),
      ...update('an item whose parent it is itself', hex('01 01 01 00 04 00 01 00 01 61 00')),
      ...update('an item whose origin it is itself', hex('01 01 01 00 84 01 00 01 61 00')),
      ...update('a Skip alone', hex('01 01 01 00 0a 05 00')),
      ...update('50,000 arrays one inside the other', struct(8, Buffer.concat([hex('01'), Buffer.from('7501'.repeat(50_000), 'hex'), hex('7e')]))),
      ...update('50,000 objects one inside the other', struct(8, Buffer.concat([hex('01'), Buffer.from('76010161'.repeat(50_000), 'hex'), hex('7e')]))),
      ...update('JSON nested 50,000 deep', struct(5, bytes(e => string(e, '['.repeat(50_000) + ']'.repeat(50_000))))),
      ...update('old JSON nested 50,000 deep', struct(2, bytes(e => { uint(e, 1); string(e, '['.repeat(50_000) + ']'.repeat(50_000)) })))
    ].map(entry => [...entry, 1007]),
    // Not malformed, or not ours to judge.
    ['an Auth message from a client', hex('02 00 00')],
    ['the question for presence', hex('03')],
    ['the question for presence with presence behind it, as y-sweet sends it', hex('03 01 01 00')],
    ['an unknown message', hex('07 01 02 03')],
    ['a message of Jupyter under the type of Auth', hex('02 04 73 61 76 65 01')],
    ['an empty awareness update', hex('01 01 00')],
    ['an empty update', hex('00 02 02 00 00')]
  ]

  /** A room with a writer and a witness, real clients of both generations, who must not notice. */
  async function witnessed (t, room, run) {
    const writer = await join(version31, server, room, { state: { name: 'writer' } })
    const witness = await join(version31, server, room, { state: { name: 'witness' } })
    const other = await join(version4, server, room, { state: { name: 'other' } })
    let n = 0
    const works = async () => {
      writer.set('n', ++n)
      await until('the witnesses get what the writer writes', () => witness.get('n') === n && other.get('n') === n)
    }
    await works()
    await run(works)
    await works()
    assert.deepEqual([writer, witness, other].map(({ closes }) => closes), [0, 0, 0], 'nobody else was disconnected')
    await until('and presence is what it was', () => witness.sees(writer)?.name === 'writer' && witness.awareness.getStates().size === 3)
    assert.equal(server.child.exitCode, null, 'the program runs')
  }

  /** Sends one entry from a connection of its own and sees what comes of it. */
  async function attack (room, [name, frame, code]) {
    const wire = await Wire.connect(server, room)
    await wire.frame('SyncStep1', isKind('step1'))
    wire.send(frame)
    if (code !== undefined) {
      assert.equal(await wire.closed(5_000), code, name)
    } else {
      const from = wire.frames.length
      wire.send(message.step1())
      await wire.frame(`an answer after ${name}`, isKind('step2'), from)
    }
    wire.destroy()
  }

  test('every malformed frame ends its own connection with 1007, unknown ones are ignored, others do not notice', async t => {
    await witnessed(t, 'malformed', async works => {
      const wrong = []
      for (const entry of corpus) {
        await attack('malformed', entry).catch(error => wrong.push(`${entry[0]}: ${error.message.split('\n')[0]}`))
        await works()
      }
      assert.deepEqual(wrong, [], 'each as it should')
    })
  })

  test('and memory stays flat: the corpus again and again', async t => {
    const all = async () => { for (const entry of corpus) await attack('flood', entry).catch(() => {}) }
    await witnessed(t, 'flood', async () => {
      await all()
      const before = server.memory
      for (let round = 0; round < 10; round++) await all()
      const grown = server.memory - before
      t.diagnostic(`server memory ${mib(before)} before, ${mib(server.memory)} after ${10 * corpus.length} malformed frames`)
      // The frames are 100 kB at most; a count that were believed would ask for half a gigabyte.
      assert.ok(grown < 32 * 2 ** 20, `grown by ${mib(grown)}`)
    })
  })

  test('the 19 bytes that panic yrs, and clocks out of its range, are refused or harmless', async t => {
    await witnessed(t, 'panic', async works => {
      for (const payload of [
        [1, 1, 1, 253, 255, 255, 255, 255, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1],
        hex('01 01 01 fe ff ff ff ff ff ff 0f 04 01 01 74 01 61 00'),
        hex('00 01 01 01 fe ff ff ff ff ff ff 0f 01')
      ]) {
        for (const frame of [message.update(payload), message.step2(payload)]) {
          const wire = await Wire.connect(server, 'panic')
          wire.send(frame)
          const from = wire.frames.length
          wire.send(message.step1())
          await until('it is refused, or answered', () => wire.code === 1007 || wire.frames.slice(from).some(isKind('step2')))
          t.diagnostic(`${Buffer.from(payload).toString('hex')}: ${wire.code ?? 'harmless'}`)
          wire.destroy()
          await works()
        }
      }
      const late = await join(version31, server, 'panic')
      await until('a late joiner gets the document', () => late.get('n') > 0)
    })
  })

  test('too much presence on one connection closes it with 1008', async t => {
    let id = 1000 // never one twice: what was removed with its connection must come back with a newer clock
    const entries = (n, state) => message.awareness(bytes(e => { uint(e, n); for (let i = 0; i < n; i++) { uint(e, id++); uint(e, 1); string(e, state) } }))
    await witnessed(t, 'presence-limit', async works => {
      for (const [what, frame] of [['300 ids', entries(300, '{}')], ['300 kB', entries(1, JSON.stringify('x'.repeat(300_000)))]]) {
        const wire = await Wire.connect(server, 'presence-limit')
        wire.send(frame)
        assert.equal(await wire.closed(5_000).catch(() => 'not closed'), 1008, what)
        await works()
      }
    })
  })

  test('the document is what it was: nothing malformed was stored', async () => {
    await server.stop()
    const doc = server.storedDoc('malformed')
    assert.deepEqual([...doc.share.keys()], ['map'])
    assert.deepEqual(Object.keys(doc.getMap('map').toJSON()), ['n'])
    await server.restart()
  })
})

/** The code in a server's close frame, once it has arrived whole; other frames before it are skipped. */
function closeCode (data) {
  for (let at = 0; at + 2 <= data.length;) {
    const length = data[at + 1] & 127
    const [start, size] = length < 126 ? [at + 2, length] : length === 126 ? [at + 4, at + 4 <= data.length ? data.readUInt16BE(at + 2) : Infinity] : [at + 10, Infinity]
    if (start + size > data.length) return undefined
    if ((data[at] & 15) === 8) return size >= 2 ? data.readUInt16BE(start) : 1005
    at = start + size
  }
}
