// Our client and the servers of others: it converges there with their own clients, sees and is seen, and
// comes back when such a server is killed.

import assert from 'node:assert/strict'
import { spawn } from 'node:child_process'
import { once } from 'node:events'
import net from 'node:net'
import path from 'node:path'
import { afterEach, describe, test } from 'node:test'
import { fileURLToPath } from 'node:url'
import { join, leaveAll, until, version31, version4, within } from './support.mjs'

const here = path.dirname(fileURLToPath(import.meta.url))
const python = process.env.YRS_WEBSOCKET_PYTHON
const client = process.env.YRS_WEBSOCKET_CLIENT

const servers = [
  {
    name: '@y/websocket-server',
    command: port => [process.execPath, [path.join(here, 'foreign/node_modules/@y/websocket-server/src/server.js')], { HOST: '127.0.0.1', PORT: port }]
  },
  {
    name: 'pycrdt-websocket',
    command: port => [python, [path.join(here, 'foreign/server.py'), port], {}],
    // Its own client.
    own: true
  }
]

/** Whatever was started and still runs. */
const running = new Set()
afterEach(() => {
  leaveAll()
  running.forEach(program => program.kill('SIGKILL'))
})

/** A program with what it has said, which ends with the tests. */
function start (file, args, env = {}) {
  const program = spawn(file, args, { env: { ...process.env, ...env }, stdio: 'pipe' })
  running.add(program)
  program.out = program.err = ''
  program.stdout.on('data', data => { program.out += data })
  program.stderr.on('data', data => { program.err += data })
  program.ended = once(program, 'exit').then(([code, signal]) => {
    running.delete(program)
    return code ?? signal
  })
  return program
}

/** A server of others that can be killed, and started again on its port. */
class Foreign {
  static async start (kind) {
    const foreign = new Foreign()
    const free = net.createServer().listen(0, '127.0.0.1')
    await once(free, 'listening')
    Object.assign(foreign, { kind, port: free.address().port })
    free.close()
    await once(free, 'close')
    foreign.url = `ws://127.0.0.1:${foreign.port}`
    await foreign.restart()
    return foreign
  }

  async restart () {
    const [file, args, env] = this.kind.command(String(this.port))
    this.program = start(file, args, env)
    await until(`${this.kind.name} listens`, async () => {
      assert.equal(this.program.exitCode, null, `it ended: ${this.program.out}${this.program.err}`)
      const socket = net.connect(this.port, '127.0.0.1')
      const open = await once(socket, 'connect').then(() => true, () => false)
      socket.destroy()
      return open
    })
  }

  async kill () {
    this.program.kill('SIGKILL')
    assert.equal(await within(10_000, this.program.ended, 'it ends'), 'SIGKILL')
  }
}

/** A client that is driven by lines: it writes what it is given and prints the text whenever that changes. */
class Lines {
  constructor (program) { this.program = program }

  write (text) { this.program.stdin.write(`${text}\n`) }
  get text () { return this.program.out.split('--\n').at(-1).slice(0, -1) }
  get log () { return this.program.err }
  async synced (times) { await until(`ours has synced ${times} times`, () => this.log.split('Synced').length > times) }

  /** Leaves; how it ended. */
  async leave () {
    this.program.stdin.end()
    return await within(20_000, this.program.ended, 'the client leaves')
  }
}

const ours = (server, room, name) => new Lines(start(client, [`127.0.0.1:${server.port}`, room, name]))
const theirs = (server, room) => new Lines(start(python, [path.join(here, 'foreign/client.py'), `${server.url}/${room}`]))

for (const kind of servers) {
  describe(kind.name, { timeout: 60_000 }, () => {
    test('our client converges with stock clients, sees them and is seen, and comes back after SIGKILL', async () => {
      const server = await Foreign.start(kind)
      // One after another: of two who open a room at once pycrdt-websocket leaves one waiting for ever.
      const stock = [await join(version31, server, 'notes'), await join(version4, server, 'notes')]
      const rust = ours(server, 'notes', 'Ada')
      const texts = () => [rust.text, ...stock.map(({ text }) => text.toString())]
      const all = async (...parts) => await until(`all have ${parts}, each once`, () => {
        const [first, ...others] = texts()
        return others.every(other => other === first) && parts.every(part => first.split(part).length === 2)
      })

      rust.write('by rust')
      await all('by rust')
      for (const { text, version } of stock) text.insert(text.length, `by ${version.name}\n`)
      const written = ['by rust', ...stock.map(({ version }) => `by ${version.name}`)]
      await all(...written)

      const isSeen = ({ awareness }) => [...awareness.getStates().values()].some(({ user }) => user?.name === 'Ada')
      await until('the stock clients see ours', () => stock.every(isSeen))
      const appear = async suffix => {
        const names = stock.map(({ version }) => version.name + suffix)
        stock.forEach(({ awareness }, index) => awareness.setLocalState({ user: { name: names[index] } }))
        await until(`ours sees ${names}`, () => names.every(name => rust.log.includes(`\\"name\\":\\"${name}\\"`)))
      }
      await appear(' here')

      await server.kill()
      await until('all notice', () => /Disconnected/.test(rust.log) && stock.every(({ provider }) => !provider.wsconnected))
      rust.write('meanwhile by rust')
      stock[0].text.insert(0, 'meanwhile by yjs\n')
      if (kind.own) stock.forEach(client => client.disconnect())
      await server.restart()
      await rust.synced(2)
      for (const client of stock) {
        client.connect()
        await client.synced()
      }
      await all(...written.slice(1), 'meanwhile by rust', 'meanwhile by yjs')
      await appear(' again')
      // pycrdt-websocket says nothing of those present to who comes: they are seen when they renew it.
      if (!kind.own) await until('the stock clients see ours again', () => stock.every(isSeen))

      assert.equal(await rust.leave(), 0)
      assert.doesNotMatch(rust.log, /not everything/)
      await until('it is gone', () => !stock.some(isSeen))
    })

    if (!kind.own) return
    test('our client converges with its own client, before and after SIGKILL', async () => {
      const server = await Foreign.start(kind)
      const rust = ours(server, 'notes', 'Ada')
      await rust.synced(1)
      let other = theirs(server, 'notes')
      rust.write('by rust')
      await until('it has what ours wrote', () => other.text === 'by rust\n')
      other.write('by python')
      await until('ours has it', () => rust.text === 'by rust\nby python\n')
      await server.kill()
      // It does not come back by itself: what it wrote does, by ours.
      await within(10_000, other.program.ended, 'it ends')
      rust.write('meanwhile')
      await server.restart()
      await rust.synced(2)
      other = theirs(server, 'notes')
      await until('it has everything', () => other.text === 'by rust\nby python\nmeanwhile\n')
      assert.equal(await rust.leave(), 0)
      assert.equal(await other.leave(), 0)
    })
  })
}
