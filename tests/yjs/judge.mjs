// Real Yjs documents judge what yjs.rs makes of random histories.
//
// Each history goes to stdout as two lists of byte strings, its updates and the state vectors of some
// earlier states; the answer comes from stdin. A list is a count and as many lengths and bytes, all
// numbers u32, little end first. An empty list of updates says goodbye. HISTORIES says how many
// histories there are, FROM with which seed they begin.

import fs from 'node:fs'
import * as Y from 'yjs'
import { clocks, content, history, newDocument } from './histories.mjs'

const count = Number(process.env.HISTORIES ?? 150)
const from = Number(process.env.FROM ?? 0)

const write = (bytes) => {
  for (let at = 0; at < bytes.length;) at += fs.writeSync(1, bytes, at)
}

const read = (length) => {
  const bytes = Buffer.alloc(length)
  for (let at = 0; at < length;) {
    const more = fs.readSync(0, bytes, at, length - at, null)
    if (more === 0) throw new Error('the other side is gone')
    at += more
  }
  return bytes
}

const number = (n) => {
  const bytes = Buffer.alloc(4)
  bytes.writeUInt32LE(n)
  return bytes
}

const writeList = (list) =>
  write(Buffer.concat([number(list.length), ...list.flatMap((bytes) => [number(bytes.length), bytes])]))

const readList = () =>
  Array.from({ length: read(4).readUInt32LE() }, () => new Uint8Array(read(read(4).readUInt32LE())))

let checks = 0
const failures = new Map()
const check = (isRight, what, seed) => {
  checks++
  if (!isRight) failures.set(what, [...failures.get(what) ?? [], seed])
}

let parked = 0
let late = 0
let behind = 0
let undecided = 0

/** Whether a document has come as far as a state vector says. */
const hasReached = (doc, encoded) => {
  const expected = clocks(encoded)
  if (clocks(Y.encodeStateVector(doc)) === expected) return true
  if (!doc.store.pendingStructs) return false
  // Now and then Yjs does not notice at once that what was pending has become possible.
  late++
  const noticed = newDocument()
  Y.applyUpdate(noticed, Y.encodeStateAsUpdate(doc))
  if (clocks(Y.encodeStateVector(noticed)) === expected) return true
  // Of pending clocks that are content in one update and collected in another Yjs keeps one version. If
  // it is the content, that waits for its origin, while the journal, which keeps both, goes on.
  behind++
  const limit = Y.decodeStateVector(encoded)
  return [...Y.decodeStateVector(Y.encodeStateVector(noticed))].every(([client, clock]) => clock <= (limit.get(client) ?? 0))
}

for (let seed = from; seed < from + count; seed++) {
  const { writers, updates, snapshots } = history(seed)
  writeList(updates)
  writeList(snapshots.map(({ stateVector }) => stateVector))
  const wholes = readList() // each says all of the history, as the names below
  const diffs = snapshots.map(() => readList()) // what each snapshot lacks, as the names below
  const stateVectors = readList() // of the journal, after each update
  const relayed = readList() // what of each update was new

  // The document that got the updates one by one, and the one that got what was relayed.
  const doc = newDocument()
  const peer = newDocument()
  updates.forEach((update, i) => {
    Y.applyUpdate(doc, update)
    Y.applyUpdate(peer, relayed[i])
    if (doc.store.pendingStructs) parked++
    check(hasReached(doc, stateVectors[i]), 'state vector after an update', seed)
    check(hasReached(peer, stateVectors[i]), 'state vector of who was relayed', seed)
  })
  if (doc.store.pendingStructs || doc.store.pendingDs) throw new Error(`history ${seed} is incomplete`)

  // Writers that saw the same in another order may disagree, which is Yjs' own business: then either
  // reading is right.
  const right = new Set([doc, ...writers].map(content))
  if (right.size > 1) undecided++
  const end = clocks(Y.encodeStateVector(doc))
  const judge = (what, reader, original) => {
    const read = content(reader)
    check(right.has(read) || read === original?.(), what + ': content', seed)
    check(clocks(Y.encodeStateVector(reader)) === end, what + ': state vector', seed)
    check(!reader.store.pendingStructs && !reader.store.pendingDs, what + ': something is pending', seed)
  }
  const apply = (what, states, gc, original) => {
    const reader = newDocument({ gc })
    try {
      for (const state of states) Y.applyUpdate(reader, state)
    } catch (error) {
      check(false, `${what}: ${error.message}`, seed)
      return
    }
    judge(what, reader, original)
  }
  judge('relayed', peer)
  const names = ['join', 'squash', 'squash without collecting', 'squash of a squash', 'squash bit by bit',
    'squash of a join', 'journal', 'squash of a journal']
  if (names.length !== wholes.length) throw new Error('the other side speaks another language')
  for (const gc of [true, false]) {
    names.forEach((name, i) => apply(name, [wholes[i]], gc))
    snapshots.forEach(({ state }, i) => {
      // Nor may a document that begins here agree with the others when Yjs gives it the originals.
      const original = () => {
        const reader = newDocument({ gc })
        for (const update of [state, ...updates]) Y.applyUpdate(reader, update)
        return content(reader)
      }
      const of = ['join', 'squash', 'squash without collecting', 'journal', 'squashed journal']
      of.forEach((name, j) => apply('diff of ' + name, [state, diffs[i][j]], gc, original))
    })
  }
}
writeList([])

console.error(`yjs: ${count} histories, ${checks} checks; ${parked} updates arrived while something was ` +
  `missing; ${late} times Yjs integrated late, ${behind} times it waited for more than the journal; in ${undecided} histories Yjs was not of one mind`)
for (const [what, seeds] of failures) {
  console.error(`FAILED ${seeds.length} times: ${what}, first in history ${seeds[0]}`)
}
process.exit(failures.size ? 1 : 0)
