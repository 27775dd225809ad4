// socket.io's own client and server: which ways of carrying a token connect, over which transport, and what the log says of
// the way that cannot.
import assert from 'node:assert/strict';
import { createServer } from 'node:http';
import test from 'node:test';
import { Server } from 'socket.io';
import { io } from 'socket.io-client';
import { listening, startFixture, within } from './fixture.mjs';
import { eventually } from './sign_in_fixture.mjs';

async function start(t, more) {
  const web = createServer((_, response) => response.writeHead(404).end());
  const server = new Server(web);
  const seen = [];
  server.on('connection', (socket) => {
    seen.push(JSON.stringify([socket.handshake.url, socket.handshake.headers]));
    socket.on('whoami', (reply) => reply(socket.handshake.headers['x-user-id'], socket.conn.transport.name));
  });
  t.after(() => server.close());
  const yaml = `
listen: 127.0.0.1:0
admin: null
upstream: http://127.0.0.1:${await listening(web)}
providers: [{ preset: oidc, issuer: "\${ISSUER}", audience: "\${AUDIENCE}" }]
log: { format: json, level: info }
${more}`;
  const fixture = await startFixture(t, yaml);
  const connect = (options) => {
    const socket = io(fixture.url.replace('ws:', 'http:'), { reconnection: false, ...options });
    t.after(() => socket.close());
    return socket;
  };
  return { ...fixture, connect, seen };
}

const connected = (socket) =>
  within(
    'the socket to connect',
    new Promise((resolve, reject) => {
      socket.on('connect', resolve);
      socket.on('connect_error', reject);
    }),
  );

const IN_QUERY = 'websocket: { dialect: none }\ntoken_from: { query: { for: [websocket, http] } }';
for (const [what, more, options] of [
  ['the query', IN_QUERY, (token) => ({ query: { token } })],
  ['the query of a WebSocket alone', IN_QUERY, (token) => ({ query: { token }, transports: ['websocket'] })],
  ['a header, outside of browsers', '', (token) => ({ extraHeaders: { Authorization: `Bearer ${token}` } })],
]) {
  test(`a token in ${what} connects, and the socket becomes a WebSocket`, async (t) => {
    const { connect, token, seen, log } = await start(t, more);
    const socket = connect(options(token('alice')));
    await connected(socket);
    await eventually('the transport to be upgraded', () => socket.io.engine.transport.name === 'websocket');
    assert.deepEqual(await new Promise((resolve) => socket.emit('whoami', (...reply) => resolve(reply))), ['alice', 'websocket']);
    assert(!(seen.join() + log.join()).includes('eyJ'), 'no token reached the server or the log');
  });
}

test('a token in `auth` cannot connect, and the log says why', async (t) => {
  const { connect, token, seen, log } = await start(t, 'websocket: { auth_timeout: 500ms }');
  const socket = connect({ auth: { token: token('alice') }, transports: ['websocket'] });
  await assert.rejects(connected(socket));
  await eventually('the log to name the cause', () => log.some((line) => line.includes('a socket.io client')));
  assert.deepEqual(seen, []);
});

test('a header on polling alone, as in a browser, stays on polling, and the log says why', async (t) => {
  const { connect, token, log } = await start(t, 'websocket: { dialect: none }');
  const polling = { extraHeaders: { Authorization: `Bearer ${token('alice')}` } };
  const socket = connect({ transportOptions: { polling } });
  await connected(socket);
  await eventually('the log to name the cause', () => log.some((line) => line.includes('a socket.io client')));
  assert.deepEqual(await new Promise((resolve) => socket.emit('whoami', (...reply) => resolve(reply))), ['alice', 'polling']);
});
