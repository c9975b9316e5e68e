// What the tests stand on: the program, the clients of every version, raw connections, and waiting.

import assert from 'node:assert/strict'
import { execFileSync, spawn } from 'node:child_process'
import { once } from 'node:events'
import fs from 'node:fs'
import { createRequire } from 'node:module'
import net from 'node:net'
import os from 'node:os'
import path from 'node:path'
import { fileURLToPath } from 'node:url'
import * as Y14 from '@y/y'
import { WebsocketProvider as Provider4 } from '@y/websocket'
import { Awareness as Awareness14 } from '@y/protocols/awareness'
import * as encoding from 'lib0/encoding'
import * as decoding from 'lib0/decoding'
import { WebSocket } from 'ws'

const here = path.dirname(fileURLToPath(import.meta.url))

// y-websocket 1.5 can be loaded by Node only through `require`. All of 1.x to 3.x are, so that they
// share one copy of yjs: Yjs checks constructors, and two copies do not know each other's.
const require = createRequire(import.meta.url)
export const Y = require('yjs')
const { Awareness } = require('y-protocols/awareness')
const stock = version => ({
  name: `y-websocket ${version}`,
  WebsocketProvider: require(`y-websocket-${version}`).WebsocketProvider,
  Awareness,
  ...flavour13
})

// ---------------------------------------------------------------------------------------------
// The clients
// ---------------------------------------------------------------------------------------------

/** How to write and to read one of everything with yjs 13. */
const flavour13 = {
  Y,
  text: doc => doc.getText('text'),
  map: doc => doc.getMap('map'),
  set: (map, key, value) => map.set(key, value),
  get: (map, key) => map.get(key),
  write (doc, who) {
    doc.transact(() => {
      const text = doc.getText('text')
      text.insert(0, `${who} wörld 🦀 `)
      text.format(0, who.length, { bold: true })
      text.insertEmbed(0, { image: who })
      const map = doc.getMap('map')
      map.set(who, 1)
      map.set(`${who} any`, { list: [1, null, true, 2.5, -7, 'ü'], bytes: [1, 2, 3] })
      map.set(`${who} bytes`, new Uint8Array([0, 1, 255]))
      map.set(`${who} big`, 2n ** 60n)
      const nested = new Y.Map()
      map.set(`${who} nested`, nested)
      nested.set('list', Y.Array.from(['deep', who]))
      nested.set('text', new Y.Text(who))
      const array = doc.getArray('array')
      array.insert(0, [1, who, { k: [who] }, null, false])
      array.delete(0, 1)
      array.push([new Y.Map([[who, 'in the array']])])
      const xml = doc.getXmlFragment('xml')
      const paragraph = new Y.XmlElement('p')
      xml.insert(0, [paragraph])
      paragraph.setAttribute('class', who)
      const xmlText = new Y.XmlText(`text of ${who}`)
      paragraph.insert(0, [xmlText, new Y.XmlElement('br')])
      xmlText.format(0, 4, { em: true })
    })
  },
  /** Everything in the document as one comparable value. */
  read: doc => plain({
    text: doc.getText('text').toDelta(),
    map: doc.getMap('map').toJSON(),
    array: doc.getArray('array').toJSON(),
    xml: doc.getXmlFragment('xml').toString()
  })
}

/** The same with @y/y 14, where one `Type` is text, map, array and element at once. */
const flavour14 = {
  Y: Y14,
  text: doc => doc.get('text'),
  map: doc => doc.get('map'),
  set: (map, key, value) => map.setAttr(key, value),
  get: (map, key) => map.getAttr(key),
  write (doc, who) {
    doc.transact(() => {
      const text = doc.get('text')
      text.insert(0, `${who} wörld 🦀 `)
      text.format(0, who.length, { bold: true })
      const map = doc.get('map')
      map.setAttr(who, 1)
      map.setAttr(`${who} any`, { list: [1, null, true, 2.5, -7, 'ü'], bytes: [1, 2, 3] })
      map.setAttr(`${who} bytes`, new Uint8Array([0, 1, 255]))
      map.setAttr(`${who} big`, 2n ** 60n)
      const nested = new Y14.Type()
      map.setAttr(`${who} nested`, nested)
      nested.setAttr('list', new Y14.Type())
      nested.getAttr('list').insert(0, ['deep', who])
      nested.setAttr('text', new Y14.Type())
      nested.getAttr('text').insert(0, who)
      const array = doc.get('array')
      array.insert(0, [1, who, { k: [who] }, null, false])
      array.delete(0, 1)
      array.push([new Y14.Type()])
      const xml = doc.get('xml')
      const paragraph = new Y14.Type('p')
      xml.insert(0, [paragraph])
      paragraph.setAttr('class', who)
      paragraph.insert(0, `text of ${who}`)
      paragraph.format(0, 4, { em: true })
      paragraph.push([new Y14.Type('br')])
    })
  },
  read: doc => plain(Object.fromEntries(['text', 'map', 'array', 'xml'].map(root => [root, doc.get(root).toDeltaDeep().toJSON()])))
}

/** Every client version that the tests drive, oldest first. */
export const versions = [
  stock('1.5'),
  stock('2.1'),
  stock('3.0'),
  stock('3.1'),
  { name: '@y/websocket 4', WebsocketProvider: Provider4, Awareness: Awareness14, ...flavour14 }
]
export const versions13 = versions.filter(version => version.Y === Y)
export const version31 = versions[3]
export const version4 = versions[4]

/**
 * A document with its provider, connected to a room. `counts` says how many frames went each way;
 * `closes` how often the connection ended; updates go to `held` instead of to the server
 * while that is an array; `release` sends one.
 */
export class Client {
  constructor (version, server, room, { state, clientID, doc, provider: options } = {}) {
    Object.assign(this, { version, server, room })
    this.doc = doc ?? new version.Y.Doc()
    if (clientID !== undefined) this.doc.clientID = clientID
    this.awareness = new version.Awareness(this.doc)
    if (state !== undefined) this.awareness.setLocalState(state)
    this.counts = { sent: 0, received: 0 }
    this.closes = 0
    this.onFrame = () => {}
    this.held = null
    const client = this
    class Observed extends WebSocket {
      constructor (...args) {
        super(...args)
        this.on('message', frame => {
          client.counts.received += 1
          client.onFrame(frame)
        })
      }

      send (frame) {
        if (client.held && frame[0] === 0 && frame[1] === 2) client.held.push(frame)
        else this.pass(frame)
      }

      pass (frame) {
        client.counts.sent += 1
        super.send(frame)
      }
    }
    this.provider = new version.WebsocketProvider(server.url, room, this.doc, {
      WebSocketPolyfill: Observed,
      awareness: this.awareness,
      // Clients of one process would otherwise find each other without the server.
      disableBc: true,
      maxBackoffTime: 500,
      ...options
    })
    this.provider.on('status', ({ status }) => { if (status === 'disconnected') this.closes += 1 })
    clients.add(this)
  }

  get text () { return this.version.text(this.doc) }
  get map () { return this.version.map(this.doc) }
  get content () { return this.version.read(this.doc) }
  set (key, value) { this.version.set(this.map, key, value) }
  get (key) { return this.version.get(this.map, key) }
  write (who) { this.version.write(this.doc, who) }

  /** What others see of `other`'s presence here; undefined if nothing. */
  sees (other) { return this.awareness.getStates().get(other.doc.clientID) }

  async synced () {
    await until(`${this.version.name} synced in ${this.room}`, () => this.provider.synced)
    return this
  }

  release (update) { this.provider.ws.pass(update) }
  disconnect () { this.provider.disconnect() }
  /** Comes back. Not once destroyed: a stock provider would, and would then try for ever. */
  connect () { if (clients.has(this)) this.provider.connect() }

  /** Ends the connection without a close frame, as a pulled cable does, and stays away. */
  cut () {
    this.provider.shouldConnect = false
    this.provider.ws.terminate()
  }

  destroy () {
    if (!clients.delete(this)) return
    this.provider.destroy()
    this.awareness.destroy()
    this.doc.destroy()
  }
}
const clients = new Set()
process.setMaxListeners(0)

/** Connects a client and waits until it has synced. */
export const join = (version, server, room, options) => new Client(version, server, room, options).synced()

/** Leaves with every client that is still there: for `afterEach`. */
export const leaveAll = () => [...clients].forEach(client => client.destroy())

/** Waits until all of them have the same content, which is returned. */
export async function converged (...replicas) {
  const same = () => replicas.every(replica => equal(replica.content, replicas[0].content))
  try {
    // Equal and nothing under way: state vectors agree too.
    await until('all replicas are equal', () => sameStateVector(replicas) && same())
  } catch (error) {
    replicas.forEach(replica => assert.deepEqual(replica.content, replicas[0].content, replica.version.name))
    throw error
  }
  return replicas[0].content
}

const sameStateVector = replicas => {
  const vectors = replicas.map(({ version, doc }) => version.Y.decodeStateVector(version.Y.encodeStateVector(doc)))
  return vectors.every(vector => vector.size === vectors[0].size && [...vector].every(([id, clock]) => vectors[0].get(id) === clock))
}

// ---------------------------------------------------------------------------------------------
// The program
// ---------------------------------------------------------------------------------------------

const program = process.env.YRS_WEBSOCKET_SERVER ?? path.join(here, '../../target/release/yrs-websocket-server')

/** The running program. `restart` starts it again over the same store, on the same port. */
export class Server {
  static async start (options = {}) {
    const server = new Server()
    server.directory = fs.mkdtempSync(path.join(os.tmpdir(), 'yrs-websocket-interop-'))
    server.store = options.store ?? `sqlite:${path.join(server.directory, 'store.sqlite3')}`
    await server.#spawn('127.0.0.1:0')
    return server
  }

  get pid () { return this.child.pid }

  /** Resident memory in bytes. */
  get memory () {
    return Number(/VmRSS:\s+(\d+) kB/.exec(fs.readFileSync(`/proc/${this.pid}/status`, 'utf8'))[1]) * 1024
  }

  /** Ends it with SIGTERM, which drains and flushes; fails unless the exit code is 0. */
  async stop () {
    assert.deepEqual(await this.#end('SIGTERM'), [0, null], 'SIGTERM drains, flushes and exits with 0')
  }

  /** Ends it with SIGKILL, which does nothing of the kind. */
  async kill () {
    assert.deepEqual(await this.#end('SIGKILL'), [null, 'SIGKILL'])
  }

  /** Starts it again after `stop` or `kill`. */
  async restart () {
    const address = new URL(this.url).host
    // Another connection of this machine may be using the port for a moment.
    await until(`listening again on ${address}`, () => this.#spawn(address).then(() => true, () => false))
  }

  /** Ends it if it still runs, and removes its files: for `after`. */
  async dispose () {
    if (this.child.exitCode === null && this.child.signalCode === null) await this.#end('SIGKILL')
    fs.rmSync(this.directory, { recursive: true, force: true })
  }

  /** The updates stored for a room, oldest first, the checkpoint before them. */
  stored (room) {
    const file = this.store.replace(/^sqlite:/, '')
    const lines = execFileSync('python3', [path.join(here, 'stored.py'), file, room], { encoding: 'utf8', maxBuffer: 1 << 30 })
    return lines.split('\n').filter(line => line).map(line => Buffer.from(line, 'hex'))
  }

  /** The stored document, read from the database as any Yjs program would. */
  storedDoc (room, version = version31) {
    const updates = this.stored(room)
    assert.ok(updates.length > 0, `nothing is stored for ${room}`)
    const doc = new version.Y.Doc()
    doc.transact(() => updates.forEach(update => version.Y.applyUpdate(doc, update)))
    return doc
  }

  async #end (signal) {
    const exited = once(this.child, 'exit')
    this.ending = true
    this.child.kill(signal)
    return await within(30_000, exited, `the program ends after ${signal}`)
  }

  async #spawn (address) {
    this.ending = false
    const child = this.child = spawn(program, ['--listen', address, '--store', this.store, '--log', 'warn'], { stdio: ['ignore', 'pipe', 'pipe'] })
    let out = ''
    let err = ''
    child.stderr.on('data', data => { err = (err + data).slice(-10_000) })
    const listening = new Promise((resolve, reject) => {
      child.stdout.on('data', data => {
        out = (out + data).slice(-10_000)
        const url = /ws:\/\/127\.0\.0\.1:\d+/.exec(out)
        if (url) resolve(url[0])
      })
      child.on('error', reject)
      child.on('exit', (code, signal) => {
        reject(new Error(`the program ended (${code ?? signal}) before it listened:\n${out}${err}`))
        if (!this.ending) console.error(`THE PROGRAM ENDED BY ITSELF (${code ?? signal}):\n${out}${err}`)
      })
    })
    this.url = await within(30_000, listening, 'the program prints where it listens')
  }
}

// ---------------------------------------------------------------------------------------------
// Raw connections
// ---------------------------------------------------------------------------------------------

/** A WebSocket that speaks in bytes. `frames` holds what came, as Buffers. */
export class Wire {
  static async connect (server, room, options = {}) {
    const wire = new Wire()
    wire.frames = []
    wire.socket = new WebSocket(`${server.url}/${room}`, { perMessageDeflate: false, maxPayload: 1 << 30, ...options })
    wire.socket.on('message', (frame, isBinary) => {
      assert.ok(isBinary, 'the server sends binary frames only')
      wire.frames.push(frame)
    })
    wire.socket.on('close', code => { wire.code = code })
    wire.socket.on('error', () => {})
    wires.add(wire)
    await within(30_000, once(wire.socket, 'open'), `a raw connection to ${room}`)
    return wire
  }

  send (...bytes) { this.socket.send(Buffer.concat(bytes.map(part => Buffer.from(part)))) }

  /** The first frame from number `from` on that satisfies `wanted`. */
  async frame (what, wanted, from = 0) {
    let found
    await until(what, () => {
      if (this.code !== undefined) throw new Error(`closed with ${this.code} instead of: ${what}`)
      found = this.frames.slice(from).find(wanted)
      return found !== undefined
    })
    return found
  }

  /** The code that the server closed the connection with. */
  async closed (deadline) {
    await until('the server closes the connection', () => this.code !== undefined, deadline)
    return this.code
  }

  destroy () {
    wires.delete(this)
    this.socket.terminate()
  }
}
const wires = new Set()

/** Ends every raw connection that is still there: for `afterEach`. */
export const hangUpAll = () => [...wires].forEach(wire => wire.destroy())

/** Sends bytes over plain TCP; everything that comes back until `enough`, or the end. */
export async function tcp (server, bytes, enough = () => false) {
  const socket = net.connect(Number(new URL(server.url).port), '127.0.0.1')
  let received = Buffer.alloc(0)
  try {
    await within(30_000, new Promise((resolve, reject) => {
      socket.on('data', data => {
        received = Buffer.concat([received, data])
        if (enough(received)) resolve()
      })
      socket.on('end', resolve)
      socket.on('close', resolve)
      socket.on('error', error => error.code === 'ECONNRESET' ? resolve() : reject(error))
      socket.write(bytes)
    }), 'an answer over TCP')
  } finally {
    socket.destroy()
  }
  return received
}

/** The messages of y-protocols as frames. */
export const message = {
  step1: (vector = [0]) => frame(0, 0, vector),
  step2: update => frame(0, 1, update),
  update: update => frame(0, 2, update),
  awareness: update => frame(1, update)
}

function frame (...parts) {
  const encoder = encoding.createEncoder()
  parts.slice(0, -1).forEach(type => encoding.writeVarUint(encoder, type))
  encoding.writeVarUint8Array(encoder, new Uint8Array(parts.at(-1)))
  return Buffer.from(encoding.toUint8Array(encoder))
}

/** Writes something with lib0's encoder: `bytes(e => writeVarUint(e, 300))`. */
export function bytes (write) {
  const encoder = encoding.createEncoder()
  write(encoder)
  return Buffer.from(encoding.toUint8Array(encoder))
}

/**
 * The messages of a frame, strictly: `{ kind, payload }`. Throws where bytes are left over, so a
 * frame that this reads as one message is one message.
 */
export function messages (frame) {
  const decoder = decoding.createDecoder(new Uint8Array(frame))
  const found = []
  while (decoding.hasContent(decoder)) {
    const type = decoding.readVarUint(decoder)
    const kind = type === 0 ? ['step1', 'step2', 'update'][decoding.readVarUint(decoder)] : type === 1 ? 'awareness' : undefined
    assert.ok(kind, `a frame of an unknown kind: ${Buffer.from(frame).toString('hex')}`)
    found.push({ kind, payload: decoding.readVarUint8Array(decoder) })
  }
  return found
}

export const isKind = (...kinds) => frame => kinds.includes(messages(frame)[0].kind)

/** The clock up to which an update carries structs of a client; 0 if none. */
export const clockOf = (update, clientID) => Math.max(0, ...Y.decodeUpdate(update).structs.filter(({ id }) => id.client === clientID).map(({ id, length }) => id.clock + length))

// ---------------------------------------------------------------------------------------------
// Waiting, comparing, chance
// ---------------------------------------------------------------------------------------------

/** Waits until a condition holds. It is looked at often and given long: a slow machine is no failure. */
export async function until (what, condition, deadline = 30_000) {
  const end = Date.now() + deadline
  for (let wait = 1; !await condition(); wait = Math.min(wait * 1.3, 50)) {
    if (Date.now() > end) throw new Error(`not within ${deadline / 1000} s: ${what}`)
    await pause(wait)
  }
}

export async function within (deadline, promise, what) {
  let timer
  const late = new Promise((resolve, reject) => { timer = setTimeout(() => reject(new Error(`not within ${deadline / 1000} s: ${what}`)), deadline) })
  try {
    return await Promise.race([promise, late])
  } finally {
    clearTimeout(timer)
  }
}

/** Lets time pass: for tests that are about time, never to be right by luck. */
export const pause = ms => new Promise(resolve => setTimeout(resolve, ms))

export const mib = bytes => `${(bytes / 1024 / 1024).toFixed(1)} MiB`

/** Numbers from 0 to below 1 that are the same for the same seed (mulberry32). */
export function chance (seed) {
  return () => {
    seed = (seed + 0x6D2B79F5) | 0
    let t = Math.imul(seed ^ (seed >>> 15), 1 | seed)
    t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t
    return ((t ^ (t >>> 14)) >>> 0) / 4294967296
  }
}

function equal (a, b) {
  try {
    assert.deepEqual(a, b)
    return true
  } catch {
    return false
  }
}

/** A copy that compares well: bytes as hex, big integers as text, so that neither is lost. */
function plain (value) {
  return JSON.parse(JSON.stringify(value, (key, value) =>
    typeof value === 'bigint' ? `${value}n` : value instanceof Uint8Array ? `bytes ${Buffer.from(value).toString('hex')}` : value))
}
