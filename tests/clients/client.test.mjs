// client.js as the program serves it: `fetch` against a server that plays the protected one, sockets through the built
// program.
import assert from 'node:assert/strict';
import { once } from 'node:events';
import { createServer } from 'node:http';
import { test } from 'node:test';
import { buildSchema } from 'graphql';
import { createClient } from 'graphql-ws';
import { useServer } from 'graphql-ws/use/ws';
import ReconnectingWebSocket from 'reconnecting-websocket';
import { WebSocket as Ws } from 'ws';
import { now, queue, startFixture, within } from './fixture.mjs';

globalThis.WebSocket ??= Ws;
const platform = { fetch: globalThis.fetch, WebSocket: globalThis.WebSocket };
const { AuthenticatedWebSocket, installAuth } = await import('./client.js');

const CONFIGURATION = `
listen: \${LISTEN}
upstream: \${BACKEND_URL}
providers: [{ preset: oidc, issuer: "\${ISSUER}", audience: "\${AUDIENCE}" }]
websocket: { grace: 0s }
routes:
  - { path: /admin, require: { role: admin } }
  - { path: /graphql, websocket: { subprotocols: [graphql-transport-ws] } }
`;

/** A server that answers as told and remembers what it heard. */
async function served(t, answer = () => 200) {
  const heard = [];
  const server = createServer(async (request, response) => {
    let body = '';
    for await (const chunk of request) body += chunk;
    heard.push({ url: request.url, token: request.headers.authorization, headers: request.headers, body });
    const status = answer(heard.at(-1), heard.length);
    response.writeHead(status).end(`answer ${heard.length}`);
  });
  server.listen(0, '127.0.0.1');
  await once(server, 'listening');
  t.after(() => {
    server.close();
    server.closeAllConnections();
  });
  return { url: `http://127.0.0.1:${server.address().port}`, heard };
}

function installed(t, options) {
  const undo = installAuth(options);
  t.after(undo);
  return undo;
}

const jwt = (sub, n = 0) => `h.${Buffer.from(JSON.stringify({ sub, n })).toString('base64url')}.s`;

test('a token goes to the named origins and nowhere else, and nothing but Authorization is added', async (t) => {
  const [ours, other] = [await served(t), await served(t)];
  installed(t, { getToken: () => 'one', origins: [ours.url] });
  await fetch(`${ours.url}/a`);
  await fetch(new URL(`${ours.url}/b`), { method: 'POST', body: 'text', headers: { 'X-Mine': '1' } });
  await fetch(new Request(`${ours.url}/c`, { headers: { 'X-Mine': '2' } }));
  await fetch(`${ours.url}/d`, { headers: { Authorization: 'Basic x' } });
  await fetch(`${other.url}/e`);
  assert.deepEqual(ours.heard.map(({ token }) => token), ['Bearer one', 'Bearer one', 'Bearer one', 'Basic x']);
  assert.deepEqual(ours.heard.map(({ headers }) => headers['x-mine']), [undefined, '1', '2', undefined]);
  assert.equal(ours.heard[1].body, 'text');
  assert.equal(other.heard[0].token, undefined);
  const bare = await served(t);
  await platform.fetch(`${bare.url}/`);
  const names = ({ headers }) => Object.keys(headers).filter((name) => name !== 'authorization').sort();
  assert.deepEqual(names(ours.heard[0]), names(bare.heard[0]));
});

test('a refused token is asked for anew once, and text is sent again while a stream is not', async (t) => {
  for (const [body, expected] of [['text', 2], [JSON.stringify({ a: 1 }), 2], [undefined, 2], ['stream', 1]]) {
    const asked = [];
    const ours = await served(t, ({ token }) => (token === 'Bearer fresh' ? 200 : 401));
    const undo = installAuth({
      getToken: (request) => (asked.push(request), request.skipCache ? 'fresh' : 'stale'),
      origins: [ours.url],
    });
    const stream = new ReadableStream({ start: (it) => (it.enqueue(new TextEncoder().encode('x')), it.close()) });
    const init = body === 'stream' ? { body: stream, duplex: 'half' } : { body };
    const answer = await fetch(`${ours.url}/`, body ? { method: 'POST', ...init } : {});
    assert.equal(answer.status, expected === 2 ? 200 : 401, body);
    assert.equal(ours.heard.length, expected, body);
    if (expected === 2) assert.equal(ours.heard[1].body, body ?? '');
    assert.deepEqual(asked.slice(0, 2), [
      { skipCache: false, reason: 'request' },
      ...(expected === 2 ? [{ skipCache: true, reason: 'refused' }] : []),
    ]);
    undo();
  }
  const ours = await served(t, () => 401);
  installed(t, { getToken: () => 'the same', origins: [ours.url] });
  assert.equal((await fetch(new Request(`${ours.url}/`, { method: 'POST', body: '{}' }))).status, 401);
  assert.equal(ours.heard.length, 1, 'the same token is not shown twice');
});

test('503 is no sign-out', async (t) => {
  const ours = await served(t, () => 503);
  let [unavailable, signedOut] = [0, 0];
  installed(t, { getToken: () => 'one', origins: [ours.url], onUnavailable: () => unavailable++, onSignedOut: () => signedOut++ });
  assert.equal((await fetch(`${ours.url}/`)).status, 503);
  assert.deepEqual([unavailable, signedOut, ours.heard.length], [1, 0, 1]);
});

test('calls wait while the provider still loads, share one question, and go without when it never does', async (t) => {
  const ours = await served(t);
  let [loaded, asked] = [false, 0];
  setTimeout(() => (loaded = true), 400);
  const undo = installAuth({ getToken: () => (asked++, loaded ? 'one' : null), origins: [ours.url] });
  await Promise.all(Array.from({ length: 20 }, (_, n) => fetch(`${ours.url}/${n}`)));
  assert(ours.heard.every(({ token }) => token === 'Bearer one'), 'none went without');
  assert(asked < 10, `${asked} questions for twenty calls`);
  undo();
  const warnings = [];
  const { warn } = console;
  console.warn = (text) => warnings.push(text);
  t.after(() => (console.warn = warn));
  installed(t, { getToken: () => { throw new Error('not yet'); }, origins: [ours.url], wait: 100 });
  for (let n = 0; n < 2; n++) assert.equal((await fetch(`${ours.url}/without`)).status, 200);
  assert.equal(ours.heard.at(-1).token, undefined);
  assert.equal(warnings.length, 1, 'said once');
});

test('a second call takes over, each clean-up undoes its own, and the last restores the platform', async (t) => {
  const ours = await served(t);
  const first = installAuth({ getToken: () => 'first', origins: [ours.url] });
  const wrapped = globalThis.fetch;
  const second = installAuth({ getToken: () => 'second', origins: [ours.url] });
  assert.equal(globalThis.fetch, wrapped, 'wrapped once');
  await fetch(`${ours.url}/`);
  first();
  first();
  await fetch(`${ours.url}/`);
  assert.deepEqual(ours.heard.map(({ token }) => token), ['Bearer second', 'Bearer second']);
  second();
  assert.equal(globalThis.fetch, platform.fetch);
  assert.equal(globalThis.WebSocket, platform.WebSocket);
});

/** A socket with its events in order. */
function opened(socket) {
  const events = queue();
  socket.onopen = () => events.push('open');
  socket.onmessage = ({ data }) => events.push(data);
  socket.onclose = ({ code, reason }) => events.push(`${code} ${reason}`);
  return events;
}

const echo = (socket) => socket.on('message', (data) => socket.send(`${data}`));

test('a socket is open once it is known, and what was said before comes in order', async (t) => {
  const here = await startFixture(t, CONFIGURATION, echo);
  installed(t, { getToken: () => here.token('alice'), origins: [here.url.replace('ws', 'http')] });
  const socket = new WebSocket(`${here.url}/ws`);
  assert(socket instanceof WebSocket && socket instanceof AuthenticatedWebSocket);
  const events = opened(socket);
  socket.addEventListener('open', () => socket.send('at its opening'));
  for (let n = 0; n < 50; n++) socket.send(`early ${n}`);
  assert.equal(socket.readyState, WebSocket.CONNECTING);
  assert.equal(socket.bufferedAmount, 50 * 7 + 40);
  assert.equal(await events.next('open'), 'open');
  assert.deepEqual([socket.readyState, socket.url], [WebSocket.OPEN, `${here.url}/ws`]);
  socket.send('late');
  for (let n = 0; n < 50; n++) assert.equal(await events.next('an echo'), `early ${n}`);
  assert.equal(await events.next('what came next'), 'at its opening');
  assert.equal(await events.next('the last'), 'late');
  assert.equal(here.seen[0].user, 'alice');
  socket.close(1000, 'done');
  assert.equal(await events.next('its close'), '1000 done');
  assert.equal(socket.readyState, WebSocket.CLOSED);
  here.assertNoTokenLeaked();
});

test('it renews before the end, and no message is lost meanwhile', async (t) => {
  const here = await startFixture(t, CONFIGURATION, echo);
  const asked = [];
  const getToken = ({ reason }) => (asked.push(reason), here.token('alice', { exp: now() + 8 }));
  installed(t, { getToken, origins: [here.url.replace('ws', 'http')] });
  const socket = new WebSocket(`${here.url}/ws`);
  const events = opened(socket);
  assert.equal(await events.next('open'), 'open');
  const began = Date.now();
  // Through two renewals, and beyond the first token's end with its clock skew.
  for (let n = 0; Date.now() - began < 16_000; n++) {
    socket.send(`${n}`);
    assert.equal(await events.next('an echo'), `${n}`);
    await new Promise((resolve) => setTimeout(resolve, 20));
  }
  assert(asked.filter((reason) => reason === 'expiring').length >= 2, asked.join());
  assert.equal(here.seen.length, 1, 'one socket all the while');
  socket.close();
});

test('signed out, or another user, at the time of a renewal closes it', async (t) => {
  const here = await startFixture(t, CONFIGURATION, echo);
  for (const [later, reason] of [[() => null, 'Signed out'], [() => here.token('bob'), 'Another user']]) {
    const getToken = ({ reason }) => (reason === 'expiring' ? later() : here.token('alice', { exp: now() + 6 }));
    const undo = installAuth({ getToken, origins: [here.url.replace('ws', 'http')] });
    const events = opened(new WebSocket(`${here.url}/ws`));
    assert.equal(await events.next('open'), 'open');
    assert.equal(await events.next('its close'), `4401 ${reason}`);
    undo();
  }
});

test('closed before it opened it opens nothing, and says so', async (t) => {
  const here = await startFixture(t, CONFIGURATION, echo);
  let give;
  installed(t, { getToken: () => new Promise((resolve) => (give = resolve)), origins: [here.url.replace('ws', 'http')] });
  const socket = new WebSocket(`${here.url}/ws`);
  const events = opened(socket);
  assert.throws(() => socket.close(1001), { name: 'InvalidAccessError' });
  socket.close();
  assert.equal(socket.readyState, WebSocket.CLOSING);
  assert.equal(await events.next('its close'), '1006 ');
  give(here.token('alice'));
  await new Promise((resolve) => setTimeout(resolve, 50));
  assert.equal(here.seen.length, 0);
});

test('no token goes over plain ws to another machine', async (t) => {
  let asked = 0;
  installed(t, { getToken: () => (asked++, 'one'), origins: ['http://example.com'] });
  const { error } = console;
  console.error = () => {};
  t.after(() => (console.error = error));
  const events = opened(new WebSocket('ws://example.com/ws'));
  assert.equal(await events.next('its close'), '1006 ');
  assert.equal(asked, 0);
});

test('sockets that are not ours are the platform\'s own', async (t) => {
  const here = await startFixture(t, CONFIGURATION, echo);
  const origins = [here.url.replace('ws', 'http')];
  for (const sockets of [false, (url) => url.pathname !== '/hot-reload']) {
    const undo = installAuth({ getToken: () => here.token('alice'), origins, sockets });
    const socket = new WebSocket(`${here.url}/hot-reload`);
    assert(socket instanceof platform.WebSocket && !(socket instanceof AuthenticatedWebSocket));
    socket.onerror = () => {};
    socket.close();
    undo();
  }
});

test('a refusal brings one fresh token, and a second in a row is final', async (t) => {
  const here = await startFixture(t, CONFIGURATION, echo);
  const asked = [];
  let signedOut = 0;
  const getToken = ({ skipCache }) => (asked.push(skipCache), skipCache ? here.token('alice') : here.expired('alice'));
  const origins = [here.url.replace('ws', 'http')];
  let undo = installAuth({ getToken, origins, onSignedOut: () => signedOut++, reconnect: true });
  let events = opened(new WebSocket(`${here.url}/ws`));
  assert.equal(await events.next('open'), 'open');
  assert.deepEqual([asked, signedOut], [[false, true], 0]);
  undo();
  undo = installAuth({ getToken: () => here.expired('alice'), origins, onSignedOut: () => signedOut++, reconnect: true });
  events = opened(new WebSocket(`${here.url}/ws`));
  assert.equal(await events.next('its close'), '1008 Token expired');
  assert.equal(signedOut, 1);
  undo();
  installed(t, { getToken: () => here.token('alice'), origins, reconnect: true });
  events = opened(new WebSocket(`${here.url}/admin`));
  assert.equal(await events.next('its close'), '1008 Access denied', 'final');
  assert.equal(signedOut, 1);
});

test('many sockets refused the same token at once have nobody signed out', async (t) => {
  const here = await startFixture(t, CONFIGURATION, echo);
  let signedOut = 0;
  const getToken = ({ skipCache }) => (skipCache ? here.token('alice') : here.expired('alice'));
  installed(t, { getToken, origins: [here.url.replace('ws', 'http')], onSignedOut: () => signedOut++, reconnect: true });
  const all = [1, 2, 3].map(() => opened(new WebSocket(`${here.url}/ws`)));
  for (const events of all) assert.equal(await events.next('open'), 'open');
  assert.equal(signedOut, 0);
});

test('what looks like ours and is the application\'s arrives', async (t) => {
  const texts = ['{"type":"error', '{"type":"error","message":"Token refresh failed"}', '{"type":"authenticated"}'];
  const here = await startFixture(t, CONFIGURATION, (socket) => texts.forEach((text) => socket.send(text)));
  installed(t, { getToken: () => here.token('alice'), origins: [here.url.replace('ws', 'http')] });
  const events = opened(new WebSocket(`${here.url}/ws`));
  assert.equal(await events.next('open'), 'open');
  for (const text of texts) assert.equal(await events.next(text), text);
});

test('beside a session of ours it opens first, loses nothing, and another user\'s token ends it', async (t) => {
  const here = await startFixture(t, `${CONFIGURATION}browser: { session: {} }\n`, (socket) => {
    socket.send('welcome');
    echo(socket);
  });
  const http = here.url.replace('ws', 'http');
  const signedIn = await fetch(`${http}/.vestibule/session`, { method: 'POST', headers: { Origin: http, Authorization: `Bearer ${here.token('alice')}` } });
  assert.equal(signedIn.status, 200);
  const Cookie = signedIn.headers.get('set-cookie').split(';')[0];
  // As a browser does, which sends cookies unasked.
  globalThis.WebSocket = class extends Ws {
    constructor(url, protocols) {
      super(url, protocols, { headers: { Cookie, Origin: http } });
    }
  };
  t.after(() => (globalThis.WebSocket = platform.WebSocket));
  for (const [user, expected] of [['alice', ['open', 'welcome']], ['bob', ['4401 Invalid token']]]) {
    const undo = installAuth({ getToken: () => here.token(user), origins: [http] });
    const socket = new WebSocket(`${here.url}/ws`);
    const events = opened(socket);
    for (const text of expected) assert.equal(await events.next(text), text, user);
    socket.close();
    undo();
  }
});

test('it comes back after a restart when it is asked to', async (t) => {
  let first = true;
  const here = await startFixture(t, CONFIGURATION, (socket) => {
    echo(socket);
    if (first) socket.close(1012);
    first = false;
  });
  installed(t, { getToken: () => here.token('alice'), origins: [here.url.replace('ws', 'http')], reconnect: true });
  const socket = new WebSocket(`${here.url}/ws`);
  const events = opened(socket);
  assert.equal(await events.next('open'), 'open');
  assert.equal(await events.next('open again'), 'open');
  socket.send('after');
  assert.equal(await events.next('an echo'), 'after');
  socket.close();
});

test('reconnecting-websocket takes it as its constructor', async (t) => {
  const here = await startFixture(t, CONFIGURATION, echo);
  installed(t, { getToken: () => here.token('alice'), origins: [here.url.replace('ws', 'http')], sockets: false });
  const socket = new ReconnectingWebSocket(`${here.url}/ws`, [], { WebSocket: AuthenticatedWebSocket });
  const events = queue();
  socket.addEventListener('message', ({ data }) => events.push(data));
  socket.addEventListener('open', () => socket.send('hello'));
  assert.equal(await within('an echo', events.next('an echo')), 'hello');
  for (const client of here.upstream.clients) client.close(1012);
  assert.equal(await events.next('an echo of the next'), 'hello');
  socket.close();
  assert.equal(here.seen.length, 2);
});

test('graphql-ws takes it too, and its subprotocol with it', async (t) => {
  const here = await startFixture(t, CONFIGURATION, undefined, { handleProtocols: () => 'graphql-transport-ws' });
  const whoami = (_, context) => context.extra.request.headers['x-user-id'];
  useServer({ schema: buildSchema('type Query { whoami: String }'), roots: { query: { whoami } }, context: (it) => it }, here.upstream);
  installed(t, { getToken: () => here.token('alice'), origins: [here.url.replace('ws', 'http')], sockets: false });
  const client = createClient({ url: `${here.url}/graphql`, webSocketImpl: AuthenticatedWebSocket });
  const answer = await within('an answer', new Promise((resolve, reject) => {
    client.subscribe({ query: '{ whoami }' }, { next: resolve, error: reject, complete: () => {} });
  }));
  assert.deepEqual(answer, { data: { whoami: 'alice' } });
  await client.dispose();
});
