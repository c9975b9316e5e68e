// Random histories of Yjs documents: the updates that five writers made, in the order they arrive.

import * as Y from 'yjs'

const WRITERS = 5
const STEPS = 150

/** A small xorshift, so that a history is its seed. Returns a whole number below n. */
export const random = (seed) => {
  let x = Math.imul(seed + 1, 2654435761) | 1
  return (n) => {
    x ^= x << 13
    x ^= x >>> 17
    x ^= x << 5
    return (x >>> 0) % n
  }
}

export const newDocument = (options = {}) => {
  const doc = new Y.Doc(options)
  doc.getText('t')
  doc.getMap('m')
  doc.getArray('a')
  doc.getXmlFragment('x')
  return doc
}

/** Makes { writers, updates, snapshots, isShuffled }: snapshots are what writers once had. */
export const history = (seed) => {
  const pick = random(seed)
  const updates = []
  const writers = Array.from({ length: WRITERS }, (_, i) => {
    // Two writers keep what they delete, so that living and collected versions of a struct meet.
    const doc = newDocument({ gc: i < 3 })
    doc.clientID = [7, 300, 70_000, 2 ** 31 + 5, 2 ** 32 - 2][i]
    doc.on('update', (update, origin) => origin !== 'peer' && updates.push(update))
    return doc
  })
  const undo = writers.map((doc) => new Y.UndoManager(roots(doc), {
    trackedOrigins: new Set(['writer']),
    captureTimeout: pick(2) ? 0 : 500
  }))
  const snapshots = []
  const anyone = () => writers[pick(WRITERS)]
  const some = () => updates[pick(updates.length)]

  for (let step = 0; step < STEPS; step++) {
    const i = pick(WRITERS)
    const doc = writers[i]
    const what = pick(20)
    if (what === 0) {
      undo[i].undo()
    } else if (what === 1) {
      undo[i].redo()
    } else {
      doc.transact(() => {
        for (let n = 1 + pick(3); n > 0; n--) edit(pick, doc)
      }, 'writer')
    }
    if (pick(4) === 0) {
      const [to, from] = [anyone(), anyone()]
      Y.applyUpdate(to, Y.encodeStateAsUpdate(from, Y.encodeStateVector(to)), 'peer')
    }
    if (pick(12) === 0) {
      const from = anyone()
      snapshots.push({ stateVector: Y.encodeStateVector(from), state: Y.encodeStateAsUpdate(from) })
    }
    // What also arrives at servers: answers to state vectors, full states, merged and cut updates.
    if (pick(15) === 0) updates.push(Y.encodeStateAsUpdate(anyone(), Y.encodeStateVector(anyone())))
    if (pick(40) === 0) updates.push(Y.encodeStateAsUpdate(anyone()))
    if (updates.length > 4 && pick(20) === 0) updates.push(Y.mergeUpdates([some(), some(), some()]))
    if (updates.length > 4 && pick(20) === 0) {
      updates.push(Y.diffUpdate(Y.mergeUpdates(updates.slice(-4)), Y.encodeStateVector(anyone())))
    }
  }
  for (const to of writers) {
    for (const from of writers) Y.applyUpdate(to, Y.encodeStateAsUpdate(from), 'peer')
  }

  // In order, shuffled, or with the first part merged and late.
  const order = pick(3)
  if (order === 1) {
    for (let i = updates.length - 1; i > 0; i--) {
      const j = pick(i + 1)
      ;[updates[i], updates[j]] = [updates[j], updates[i]]
    }
  } else if (order === 2) {
    const merged = Y.mergeUpdates(updates.splice(0, 1 + pick(updates.length)))
    updates.splice(pick(updates.length + 1), 0, merged)
  }
  return { writers, updates, snapshots, order }
}

const roots = (doc) => [doc.getText('t'), doc.getMap('m'), doc.getArray('a'), doc.getXmlFragment('x')]

/** All shared types that are in sight. */
const types = (doc) => {
  const found = roots(doc)
  for (let i = 0; i < found.length; i++) {
    const type = found[i]
    const children = type instanceof Y.Map
      ? [...type.values()]
      : type instanceof Y.Array || type instanceof Y.XmlFragment ? type.toArray() : []
    found.push(...children.filter((child) => child instanceof Y.AbstractType))
  }
  return found
}

const edit = (pick, doc) => {
  const all = types(doc)
  // Mostly the roots, so that writers meet.
  const type = pick(3) ? all[pick(4)] : all[pick(all.length)]
  if (type instanceof Y.XmlElement && pick(3) === 0) {
    const name = 'at' + pick(3)
    pick(3) ? type.setAttribute(name, 'v' + pick(9)) : type.removeAttribute(name)
  } else if (type instanceof Y.XmlFragment) {
    if (type.length > 1 && pick(3) === 0) type.delete(pick(type.length), 1)
    else type.insert(pick(type.length + 1), [pick(3) ? new Y.XmlElement(['p', 'div'][pick(2)]) : new Y.XmlText('xt')])
  } else if (type instanceof Y.Text) {
    editText(pick, type)
  } else if (type instanceof Y.Map) {
    const key = 'k' + pick(4)
    pick(4) ? type.set(key, child(pick)) : type.delete(key)
  } else if (type.length > 2 && pick(2)) {
    const at = pick(type.length)
    type.delete(at, Math.min(type.length - at, 1 + pick(3)))
  } else {
    type.insert(pick(type.length + 1), pick(2) ? [value(pick), value(pick), value(pick)].slice(0, 1 + pick(3)) : [child(pick)])
  }
}

const editText = (pick, text) => {
  const string = text.toString()
  if (text.length !== string.length) {
    text.insert(0, 'E') // Embeds: positions in the string are not those of the type.
    return
  }
  // Never inside a surrogate pair: there Yjs itself does not always converge.
  const between = (at) => /[\udc00-\udfff]/.test(string.charAt(at)) ? at + 1 : at
  const from = between(pick(string.length + 1))
  const to = between(Math.min(string.length, from + 1 + pick(5)))
  const what = pick(9)
  if (what < 4) {
    text.insert(from, ['a', 'bcd', '😀', 'é', 'long text here'][pick(5)], pick(4) ? undefined : { bold: true })
  } else if (what < 6 && to > from) {
    text.delete(from, to - from)
  } else if (what === 6 && to > from) {
    text.format(from, to - from, [{ bold: true }, { bold: null }, { i: 'x'.repeat(50) }, { a: { b: 1 } }][pick(4)])
  } else if (what === 7 && pick(9) === 0) {
    text.insertEmbed(from, { image: pick(9) })
  } else {
    text.insert(from, 'z')
  }
}

const value = (pick) => [
  pick(100), 's' + pick(9), { x: pick(9) }, null, true, new Uint8Array([pick(9)]), [1, [2]], 1.5, -0, { big: 2n ** 60n, none: undefined }
][pick(10)]

const child = (pick) => {
  switch (pick(6)) {
    case 0: {
      const map = new Y.Map()
      map.set('y', new Y.Text('zz'))
      map.set('q', pick(9))
      return map
    }
    case 1: {
      const array = new Y.Array()
      array.insert(0, [1, 2, new Y.Map()])
      return array
    }
    case 2: return new Y.Text('hello')
    case 3: return pick(4) ? new Y.Map() : new Y.Doc({ guid: 'g' + pick(1e6) })
    default: return value(pick)
  }
}

/** What a reader sees, as a string that is equal where documents are. */
export const content = (doc) => JSON.stringify([
  chunks(doc.getText('t')),
  canonical(doc.getMap('m').toJSON()),
  canonical(doc.getArray('a').toJSON()),
  tree(doc.getXmlFragment('x')),
  [...doc.getMap('m').keys()].sort(),
  [...doc.subdocs].map((subdoc) => subdoc.guid).sort()
])

export const clocks = (encoded) =>
  JSON.stringify([...Y.decodeStateVector(encoded)].sort(([a], [b]) => a - b))

const canonical = (value) => {
  if (Array.isArray(value)) return value.map(canonical)
  if (value instanceof Uint8Array) return 'bytes ' + value
  if (value instanceof Y.Doc) return 'document ' + value.guid
  if (typeof value === 'bigint') return 'big ' + value
  if (Object.is(value, -0)) return 'minus zero'
  if (value === undefined) return 'undefined'
  if (value === null || typeof value !== 'object') return value
  return Object.fromEntries(Object.keys(value).sort().map((key) => [key, canonical(value[key])]))
}

// Where Yjs splits a text says nothing: neighbours with equal attributes are one chunk.
const chunks = (text) => {
  const out = []
  for (const { insert, attributes } of text.toDelta()) {
    const what = insert instanceof Y.AbstractType ? insert.toJSON() : canonical(insert)
    const how = JSON.stringify(canonical(attributes ?? {}))
    const last = out.at(-1)
    if (last && typeof what === 'string' && typeof last[0] === 'string' && last[1] === how) last[0] += what
    else out.push([what, how])
  }
  return out
}

const tree = (node) => {
  if (node instanceof Y.XmlText) return ['text', chunks(node)]
  if (node instanceof Y.XmlElement) return [node.nodeName, canonical(node.getAttributes()), node.toArray().map(tree)]
  return node.toArray().map(tree)
}
