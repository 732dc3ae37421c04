// An MQTT broker for one federation, made with aedes. aedes.json beside this file says who may come and touch what.

import { pbkdf2, timingSafeEqual } from 'node:crypto'
import { readFileSync } from 'node:fs'
import { createServer } from 'node:tls'
import { promisify } from 'node:util'

import { Aedes } from 'aedes'

const beside = (name) => readFileSync(new URL(name, import.meta.url))
const settings = JSON.parse(beside('aedes.json'))
const users = new Map(Object.entries(settings.users))
const derived = promisify(pbkdf2)

async function knows (user, password) {
  const [, , iterations, salt, digest] = user.password.split('$')
  const wanted = Buffer.from(digest, 'base64')
  const found = await derived(password, Buffer.from(salt, 'base64'), Number(iterations), wanted.length, 'sha512')
  return timingSafeEqual(found, wanted)
}

// What a topic's filter holds; a filter that is subscribed to is held to the same.
function holds (filter, topic) {
  const wanted = filter.split('/')
  const levels = topic.split('/')
  for (const [at, level] of wanted.entries()) {
    if (level === '#') return true
    if (at >= levels.length || (level !== '+' && level !== levels[at])) return false
  }
  return wanted.length === levels.length
}

const may = (client, kind, topic) => users.get(client.user)[kind].some((filter) => holds(filter, topic))

const broker = await Aedes.createBroker({ queueLimit: 1000, drainTimeout: 30_000 })

broker.authenticate = (client, name, password, done) => {
  const user = users.get(name)
  if (user === undefined || password === undefined || client.id !== user.client) return done(null, false)
  client.user = name
  knows(user, password).then((good) => done(null, good), (fault) => done(fault, false))
}
broker.authorizePublish = (client, packet, done) => {
  done(client !== null && may(client, 'writes', packet.topic) ? null : new Error('not a topic of its own'))
}
broker.authorizeSubscribe = (client, subscription, done) => {
  done(null, may(client, 'reads', subscription.topic) ? subscription : null)
}
broker.on('clientError', (client, fault) => console.error(`${client.id}: ${fault.message}`))
broker.on('connectionError', (client, fault) => console.error(`${client.id}: ${fault.message}`))

const server = createServer({ cert: beside('broker.pem'), key: beside('broker.key'), minVersion: 'TLSv1.2' }, broker.handle)
server.maxConnections = settings.connections
server.listen(settings.port, () => console.log(`listens on port ${settings.port}`))
