// The sockets of client.js on a clock and a platform of the test's own: nothing waits, and every pause is exact.
import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import { afterEach, beforeEach, test } from 'node:test';

const real = { setTimeout, clearTimeout, now: performance.now.bind(performance), date: Date.now, random: Math.random };
const LONGEST = 2 ** 31 - 1;
let clock;
let server;

/** A clock that moves only when it is told to; `wall` is how far the machine's own is off. */
class Clock {
  time = 1_000;
  wall = 1_700_000_000_000;
  #timers = new Map();
  #next = 1;

  set(run, ms = 0, ...call) {
    // As the platform does: what does not fit 31 bits is 1.
    const pause = ms > LONGEST || !(ms >= 1) ? 1 : ms;
    this.#timers.set(this.#next, { at: this.time + pause, run: () => run(...call) });
    return this.#next++;
  }
  clear(id) { this.#timers.delete(id); }
  async settled() { for (let n = 0; n < 5; n++) await new Promise((resolve) => setImmediate(resolve)); }
  async advance(ms) {
    const until = this.time + ms;
    await this.settled();
    for (;;) {
      const [id, timer] = [...this.#timers].reduce((first, it) => (!first[1] || it[1].at < first[1].at ? it : first), []);
      if (!timer || timer.at > until) break;
      this.#timers.delete(id);
      this.time = Math.max(this.time, timer.at);
      timer.run();
      await this.settled();
    }
    this.time = until;
  }
}

/** The platform's WebSocket, whose server is the test. */
class FakeSocket extends EventTarget {
  static CONNECTING = 0;
  static OPEN = 1;
  CONNECTING = 0;
  OPEN = 1;
  readyState = 0;
  protocol = '';
  extensions = '';
  bufferedAmount = 0;
  sent = [];
  constructor(url) {
    super();
    this.url = url;
    this.at = clock.time;
    server.sockets.push(this);
    queueMicrotask(() => {
      if (server.isDown) return this.end(1006);
      this.readyState = 1;
      this.dispatchEvent(new Event('open'));
    });
  }
  send(data) {
    this.sent.push(data);
    const said = typeof data === 'string' && data.startsWith('{') ? JSON.parse(data) : {};
    queueMicrotask(() => server.hears(this, said, server.sockets.indexOf(this)));
  }
  say(message) {
    const data = typeof message === 'string' ? message : JSON.stringify(message);
    if (this.readyState === 1) this.dispatchEvent(Object.assign(new Event('message'), { data, origin: '' }));
  }
  close(code = 1005, reason = '') { queueMicrotask(() => this.end(code, reason)); }
  end(code, reason = '') {
    if (this.readyState === 3) return;
    this.readyState = 3;
    if (code === 1006) this.dispatchEvent(new Event('error'));
    this.dispatchEvent(Object.assign(new Event('close'), { code, reason, wasClean: code !== 1006 }));
  }
}

const ORIGIN = 'http://localhost:1';
const URL_OF_SOCKETS = 'ws://localhost:1/ws';
const jwt = (sub, claims = {}) => `h.${Buffer.from(JSON.stringify({ iss: 'i', sub, ...claims })).toString('base64url')}.s`;
const admitted = (user = 'alice', seconds = 3_600) => ({ type: 'authenticated', user_id: user, expires_at: 0, expires_in: seconds });
const wakes = [];
globalThis.addEventListener = (type, run) => wakes.push([type, run]);
const { AuthenticatedWebSocket, installAuth } = await import('./client.js');
delete globalThis.addEventListener;

beforeEach(() => {
  clock = new Clock();
  server = { sockets: [], hears: (socket, { type }) => type === 'authenticate' && socket.say(admitted()) };
  globalThis.setTimeout = (...call) => clock.set(...call);
  globalThis.clearTimeout = (id) => clock.clear(id);
  performance.now = () => clock.time;
  Date.now = () => clock.wall + clock.time;
  Math.random = () => 0.5;
  globalThis.WebSocket = FakeSocket;
});
let undo = () => {};
afterEach(() => {
  undo();
  Object.assign(globalThis, { setTimeout: real.setTimeout, clearTimeout: real.clearTimeout });
  performance.now = real.now;
  Date.now = real.date;
  Math.random = real.random;
});

function installed(options) {
  undo = installAuth({ origins: [ORIGIN], getToken: () => jwt('alice'), ...options });
}

/** A socket of the page's, and what the page sees of it. */
function opened(Kind = WebSocket) {
  const socket = new Kind(URL_OF_SOCKETS);
  const seen = [];
  socket.onopen = () => seen.push('open');
  socket.onmessage = ({ data }) => seen.push(data);
  socket.onerror = () => seen.push('error');
  socket.onclose = ({ code, reason }) => seen.push(`${code} ${reason}`.trim());
  return { socket, seen };
}

const gaps = () => server.sockets.slice(1).map(({ at }, n) => at - server.sockets[n].at);
const application = (socket) => socket.sent.filter((data) => !/"type":"(authenticate|refresh_auth)"/.test(data));
const refreshes = () => server.sockets.flatMap(({ sent }) => sent).filter((data) => data.includes('refresh_auth')).length;

test('a backend that closes 4401 right after opening is tried twice, and then the user is signed out', async () => {
  server.hears = (socket) => (socket.say(admitted()), socket.end(4401, 'Token expired'));
  const reasons = [];
  let signedOut = 0;
  installed({ reconnect: true, getToken: ({ reason }) => (reasons.push(reason), jwt('alice')), onSignedOut: () => signedOut++ });
  const { seen, socket } = opened();
  await clock.advance(60_000);
  assert.equal(server.sockets.length, 2);
  assert.deepEqual([reasons, signedOut], [['request', 'refused'], 1]);
  assert.deepEqual([seen, socket.readyState], [['open', 'open', '4401 Token expired'], 3]);
});

test('also where the page reconnects by itself, the second refusal signs out and is told once', async () => {
  server.hears = (socket) => (socket.say(admitted()), socket.end(4401, 'Token expired'));
  let signedOut = 0;
  installed({ onSignedOut: () => signedOut++ });
  for (let n = 0; n < 5; n++) {
    opened();
    await clock.advance(1_000);
  }
  assert.deepEqual([server.sockets.length, signedOut], [5, 1]);
});

test('a backend that closes 1011 right after opening is tried with growing pauses', async () => {
  server.hears = (socket) => (socket.say(admitted()), socket.end(1011));
  installed({ reconnect: true });
  opened();
  await clock.advance(600_000);
  const [first, ...rest] = gaps();
  assert(first >= 250, `${first}`);
  rest.forEach((gap, n) => assert(gap >= Math.min(30_000, gaps()[n] * 1.5), `${gaps()}`));
  assert.equal(Math.max(...gaps()), 30_000);
});

test('no two attempts in a row come without a pause, whatever ends them', async () => {
  const endings = [[1011, ''], [4401, ''], [4401, ''], [1006, ''], [1008, 'Invalid token'], [4401, ''], [1012, '']];
  for (let seed = 0; seed < 30; seed++) {
    server.sockets = [];
    server.hears = (socket, _, n) => {
      if ((n + seed) % 3) socket.say(admitted());
      socket.end(...endings[(n + seed) % endings.length]);
    };
    installed({ reconnect: true });
    const { socket } = opened();
    await clock.advance(120_000);
    gaps().forEach((gap, n) => assert(gap >= 250 || (gaps()[n + 1] ?? 250) >= 250, `${seed}: ${gaps()}`));
    socket.close();
    await clock.advance(1_000);
    undo();
  }
});

test('a connection that was stable for a while starts anew: short pauses, and a fresh token again', async () => {
  let signedOut = 0;
  installed({ reconnect: true, onSignedOut: () => signedOut++ });
  opened();
  for (const [code, reason] of [[1011, ''], [4401, 'Token expired'], [1011, ''], [4401, 'Token expired'], [1011, '']]) {
    await clock.advance(12_000);
    server.sockets.at(-1).end(code, reason);
  }
  await clock.advance(12_000);
  assert.deepEqual([gaps().map((gap) => gap - 12_000), signedOut], [[500, 1, 500, 1, 500].map((gap, n, all) => gap - (all[n - 1] ?? 0)), 0]);
});

test('what one user wrote while the socket was away is not sent as the next one', async () => {
  let user = 'alice';
  installed({ reconnect: true, getToken: () => jwt(user) });
  const { socket, seen } = opened();
  await clock.advance(1_000);
  server.sockets[0].end(1012, 'Service restart');
  socket.send('of alice');
  user = 'bob';
  await clock.advance(60_000);
  assert.equal(server.sockets.length, 1, 'nothing is opened as bob');
  assert.deepEqual([seen, socket.bufferedAmount], [['open', '4401 Another user'], 0]);
});

test('of opaque tokens the server says whose they are, before anything is sent', async () => {
  let user = 'alice';
  server.hears = (socket, { type }) => type === 'authenticate' && socket.say(admitted(user));
  installed({ reconnect: true, getToken: () => 'opaque' });
  const { socket, seen } = opened();
  await clock.advance(1_000);
  server.sockets[0].end(1012);
  socket.send('of alice');
  user = 'bob';
  await clock.advance(60_000);
  assert.deepEqual([seen, server.sockets.length], [['open', '4401 Another user'], 2]);
  assert.deepEqual(application(server.sockets[1]), []);
});

test('one user id of two issuers is two users', async () => {
  let iss = 'one';
  installed({ reconnect: true, getToken: () => jwt('alice', { iss }) });
  const { seen } = opened();
  await clock.advance(1_000);
  iss = 'two';
  server.sockets[0].end(1012);
  await clock.advance(60_000);
  assert.deepEqual(seen, ['open', '4401 Another user']);
});

/** A server whose tokens live a minute. */
const minutes = (socket, { type }) => {
  if (type === 'authenticate') socket.say(admitted('alice', 60));
  if (type === 'refresh_auth') socket.say({ type: 'auth_refreshed', expires_at: 0, expires_in: 60 });
};

for (const [what, failing] of [
  ['throws', () => { throw new Error('no network'); }],
  ['rejects', () => Promise.reject(new Error('no network'))],
  ['does not know yet', () => undefined],
]) {
  test(`a provider that ${what} at a renewal is asked again until the token's end`, async () => {
    server.hears = minutes;
    let isAway = false;
    installed({ getToken: () => (isAway ? failing() : jwt('alice')) });
    const { seen } = opened();
    await clock.advance(47_000);
    isAway = true;
    await clock.advance(9_000);
    assert.deepEqual([seen, refreshes()], [['open'], 0]);
    isAway = false;
    await clock.advance(5_000);
    assert.deepEqual([seen, refreshes()], [['open'], 1], 'renewed before the end at 60 s');
  });
}

test('a provider that never answers at a renewal is asked again', async () => {
  server.hears = (socket, { type }) => type === 'authenticate' && socket.say(admitted('alice', 600));
  let asked = 0;
  installed({ getToken: ({ reason }) => (reason === 'expiring' && asked++ === 0 ? new Promise(() => {}) : jwt('alice')) });
  const { seen } = opened();
  await clock.advance(606_000);
  assert.deepEqual([seen, asked, refreshes()], [['open'], 2, 1]);
});

test('null at a renewal, and nothing else, is a sign-out', async () => {
  server.hears = minutes;
  let token = jwt('alice');
  installed({ reconnect: true, getToken: () => token });
  const { seen } = opened();
  await clock.advance(47_000);
  token = null;
  await clock.advance(30_000);
  assert.deepEqual([seen, server.sockets.length], [['open', '4401 Signed out'], 1]);
});

test('a provider that throws while a socket comes back is waited for, with pauses', async () => {
  let isAway = false;
  installed({ reconnect: true, wait: 1_000, getToken: () => { if (isAway) throw new Error('no network'); return jwt('alice'); } });
  const { seen, socket } = opened();
  await clock.advance(1_000);
  isAway = true;
  server.sockets[0].end(1006);
  socket.send('written meanwhile');
  await clock.advance(300_000);
  assert.deepEqual([seen, server.sockets.length], [['open'], 1], 'nothing without a token, and no end');
  isAway = false;
  await clock.advance(60_000);
  assert.deepEqual([seen, application(server.sockets[1])], [['open', 'open'], ['written meanwhile']]);
});

test('refused refreshes are repeated with growing pauses, so that five in a row do not end it', async () => {
  server.hears = (socket, { type }) => {
    if (type === 'authenticate') socket.say(admitted('alice', 60));
    if (type === 'refresh_auth') socket.say({ type: 'error', message: 'Token refresh failed: Invalid authentication token' });
  };
  installed();
  const { seen } = opened();
  await clock.advance(90_000);
  assert.deepEqual(seen, ['open'], 'not the application\'s');
  assert(refreshes() >= 2 && refreshes() < 5, `${refreshes()}`);
});

test('on a socket that a cookie opened, messages of the backend that begin like ours arrive', async () => {
  const texts = [
    '{"type":"error","message":"kernel is busy"}', '{"type":"error"}', '{"type":"authors"}', '{"type":"auth_refreshed"}', '{"type":"authenticated"}',
    '{"type":"authenticated","user_id":"alice"}', '{"type":"error","message":"Token refresh failed"}', '{"type":"error',
    '{"type":"error","message":"Token refresh failed: x","id":1}',
  ];
  server.hears = (socket, { type }) => {
    if (type !== 'authenticate') return;
    texts.forEach((text) => socket.say(text));
    socket.say(admitted());
  };
  installed();
  const { seen } = opened();
  await clock.advance(1_000);
  assert.deepEqual(seen, ['open', ...texts]);
});

test('while a refresh is under way, what begins like its answer and is not arrives', async () => {
  const texts = ['{"type":"auth_refreshed"}', '{"type":"error","message":"kernel is busy"}', '{"type":"error","message":"Too many refreshes of the page"}'];
  server.hears = (socket, { type }) => {
    if (type === 'authenticate') socket.say(admitted('alice', 60));
    if (type !== 'refresh_auth') return;
    texts.forEach((text) => socket.say(text));
    socket.say({ type: 'auth_refreshed', expires_at: 0, expires_in: 3_600 });
  };
  installed();
  const { seen } = opened();
  await clock.advance(60_000);
  assert.deepEqual([seen, refreshes()], [['open', ...texts], 1]);
});

test('a class that extends WebSocket keeps its methods, on sockets of ours and on the platform\'s', async () => {
  for (const sockets of [true, false]) {
    installed({ sockets });
    class Mine extends WebSocket {
      isMine = true;
      static of(url) { return new this(url); }
      hello() { return `hello ${this.url}`; }
      send(data) { super.send(`mine: ${data}`); }
    }
    class Deeper extends Mine { hello() { return `deeper ${super.hello()}`; } }
    const plain = new WebSocket(URL_OF_SOCKETS);
    const { socket, seen } = opened(Deeper);
    assert.equal(socket.hello(), `deeper hello ${URL_OF_SOCKETS}`);
    assert(socket instanceof Deeper && socket instanceof Mine && socket instanceof WebSocket && socket.isMine);
    assert.equal(socket instanceof AuthenticatedWebSocket, sockets);
    assert(!(plain instanceof Mine) && plain instanceof WebSocket && Mine.of(URL_OF_SOCKETS) instanceof Mine);
    assert.deepEqual([socket.OPEN, Mine.OPEN, Object.getPrototypeOf(Mine) === WebSocket], [1, 1, true]);
    await clock.advance(1_000);
    socket.send('text');
    assert(server.sockets.some(({ sent }) => sent.includes('mine: text')));
    if (sockets) assert.deepEqual(seen, ['open']);
    socket.close(1000, 'done');
    await clock.advance(1_000);
    undo();
  }
});

test('a renewal comes when it is due, wherever the machine\'s clock is set', async () => {
  for (const step of [-3_600_000, 3_600_000]) {
    server.sockets = [];
    server.hears = minutes;
    installed();
    const { socket } = opened();
    await clock.advance(10_000);
    clock.wall += step;
    await clock.advance(37_000);
    assert.equal(refreshes(), 0, `${step}: not yet`);
    await clock.advance(2_000);
    assert.equal(refreshes(), 1, `${step}: due at 48 s`);
    socket.close();
    await clock.advance(1_000);
    undo();
  }
});

test('after a sleep in which the page\'s clock stood still, it is renewed as soon as the page wakes', async () => {
  assert.deepEqual(wakes.map(([type]) => type), ['online', 'pageshow', 'visibilitychange']);
  for (const [, wake] of wakes) {
    server.sockets = [];
    server.hears = minutes;
    installed();
    const { socket } = opened();
    await clock.advance(10_000);
    wake();
    await clock.advance(100);
    assert.equal(refreshes(), 0, 'awake all the time');
    clock.wall += 45_000;
    await clock.advance(100);
    assert.equal(refreshes(), 0, 'not awake yet');
    wake();
    await clock.advance(100);
    assert.equal(refreshes(), 1);
    socket.close();
    await clock.advance(1_000);
    wake();
    undo();
  }
});

test('a token that lives longer than a timer can is renewed once, at its time', async () => {
  const month = 30 * 86_400;
  server.hears = (socket, { type }) => {
    if (type === 'authenticate') socket.say(admitted('alice', month));
    if (type === 'refresh_auth') socket.say({ type: 'auth_refreshed', expires_at: 0, expires_in: month });
  };
  installed();
  opened();
  await clock.advance(60_000);
  assert.equal(refreshes(), 0);
  // Days of looking every few seconds are many steps; the clock may leap instead, as timers do that slept.
  clock.time += (month - 120) * 1_000;
  await clock.advance(20_000);
  assert.equal(refreshes(), 0);
  await clock.advance(60_000);
  assert.equal(refreshes(), 1);
});

test('the snippet for tokens of one minute renews once at its time, whatever the token\'s life', async () => {
  const page = readFileSync(`${process.env.EXAMPLES}/../one-minute-tokens.md`, 'utf8');
  const snippet = page.match(/```js\n([^]*?)```/)[1];
  for (const [seconds, due] of [[60, 48], [30 * 86_400, 30 * 86_400 - 30]]) {
    const socket = { sent: [], readyState: 1, send(data) { this.sent.push(JSON.parse(data)); } };
    let isAway = true;
    const getToken = async () => { if (isAway) throw new Error('no network'); return 'fresh'; };
    new Function('socket', 'getToken', snippet)(socket, getToken);
    socket.onmessage({ data: 'no JSON' });
    socket.onmessage({ data: new ArrayBuffer(1) });
    socket.onmessage({ data: JSON.stringify(admitted('alice', seconds)) });
    await clock.advance(10_000);
    assert.equal(socket.sent.length, 0, `${seconds}`);
    clock.time += (due - 40) * 1_000;
    clock.wall -= 86_400_000;
    await clock.advance(29_000);
    assert.equal(socket.sent.length, 0, `${seconds}: not yet`);
    await clock.advance(62_000);
    assert.equal(socket.sent.length, 0, `${seconds}: the provider is away`);
    isAway = false;
    await clock.advance(20_000);
    assert.deepEqual(socket.sent, [{ type: 'refresh_auth', token: 'fresh' }], `${seconds}`);
  }
});

for (const reason of ['Token expired', 'Invalid token']) {
  test(`1008 ${reason} on arrival brings one fresh token before the page hears of it, whoever reconnects`, async () => {
    for (const reconnect of [true, false]) {
      server.sockets = [];
      server.hears = (socket, { token }) => (token.includes('stale') ? socket.end(1008, reason) : socket.say(admitted()));
      const asked = [];
      installed({ reconnect, getToken: ({ skipCache }) => (asked.push(skipCache), skipCache ? jwt('alice') : `stale${jwt('alice')}`) });
      const { seen, socket } = opened();
      await clock.advance(30_000);
      assert.deepEqual([seen, asked], [['open'], [false, true]]);
      socket.close();
      await clock.advance(1_000);
      undo();
    }
  });
}

test('a fresh token that is refused on arrival is the last word: its own code, one sign-out, no third attempt', async () => {
  server.hears = (socket) => socket.end(1008, 'Token expired');
  let signedOut = 0;
  installed({ reconnect: true, onSignedOut: () => signedOut++ });
  const { seen } = opened();
  await clock.advance(60_000);
  assert.deepEqual([seen, server.sockets.length, signedOut], [['1008 Token expired'], 2, 1]);
});

test('1008 that names no token is final at once', async () => {
  server.hears = (socket) => socket.end(1008, 'Access denied');
  installed({ reconnect: true });
  const { seen } = opened();
  await clock.advance(60_000);
  assert.deepEqual([seen, server.sockets.length], [['1008 Access denied'], 1]);
});

test('a page that says its own authenticate once open hears the answer', async () => {
  installed();
  const { socket, seen } = opened();
  socket.addEventListener('open', () => socket.send(JSON.stringify({ type: 'authenticate', token: 'of the page load' })));
  await clock.advance(1_000);
  assert.deepEqual(seen.map((text) => (text === 'open' ? text : JSON.parse(text).type)), ['open', 'authenticated']);
});

test('a page whose own token ends sooner than ours has its socket renewed before that', async () => {
  let seconds = 3_600;
  server.hears = (socket, { type }) => {
    if (type === 'authenticate') socket.say(admitted('alice', seconds));
    if (type === 'refresh_auth') socket.say({ type: 'auth_refreshed', expires_at: 0, expires_in: 3_600 });
  };
  installed();
  const { socket, seen } = opened();
  await clock.advance(10_000);
  seconds = 10;
  socket.send(JSON.stringify({ type: 'authenticate', token: 'of the page load' }));
  await clock.advance(9_000);
  assert.deepEqual([seen.length, refreshes()], [2, 1], 'it hears authenticated, and the end is ours again');
  await clock.advance(60_000);
  assert.equal(refreshes(), 1);
});

test('signed out, nothing is opened, and open never comes', async () => {
  for (const reconnect of [true, false]) {
    installed({ reconnect, getToken: () => null });
    const { seen, socket } = opened();
    await clock.advance(9_000);
    assert.deepEqual([seen, socket.readyState], [[], 0]);
    await clock.advance(60_000);
    assert.deepEqual([seen, server.sockets.length], [['4401 Signed out'], 0]);
    undo();
  }
});

test('closed while its token is being judged, it never opens', async () => {
  let judged;
  server.hears = (socket) => (judged = () => socket.say(admitted()));
  installed();
  const { socket, seen } = opened();
  await clock.advance(10);
  socket.close(1000, 'done');
  judged();
  await clock.advance(1_000);
  assert.deepEqual([seen, socket.readyState], [['1000 done'], 3]);
});

test('a socket that was made before installAuth waits for it', async () => {
  const { seen } = opened(AuthenticatedWebSocket);
  await clock.advance(3_000);
  installed();
  await clock.advance(1_000);
  assert.deepEqual([seen, server.sockets.length], [['open'], 1]);
});

test('while it comes back the page sees neither error nor close, and a page that gives up sees the real end', async () => {
  installed({ reconnect: true });
  const { socket, seen } = opened();
  await clock.advance(1_000);
  server.isDown = true;
  server.sockets[0].end(1012, 'Service restart');
  await clock.advance(20_000);
  assert(server.sockets.length > 3, 'it tries');
  assert.deepEqual([seen, socket.readyState], [['open'], 0]);
  socket.close();
  await clock.advance(60_000);
  assert.deepEqual([seen, socket.readyState], [['open', '1012 Service restart'], 3]);
});

test('a buffer that waits to be sent is sent as it was given', async () => {
  installed();
  const { socket } = opened();
  const bytes = new Uint8Array([0, 1, 2, 3]);
  socket.send(bytes.subarray(1, 3));
  socket.send(bytes.buffer);
  socket.send(7);
  bytes.fill(9);
  assert.equal(socket.bufferedAmount, 7);
  await clock.advance(1_000);
  const [view, buffer, number] = server.sockets[0].sent.slice(1);
  assert.deepEqual([[...view], [...new Uint8Array(buffer)], number], [[1, 2], [0, 1, 2, 3], '7']);
});

test('no token goes to an origin that is not named, from the class neither', async (t) => {
  t.mock.method(console, 'error', () => {});
  let asked = 0;
  installed({ getToken: () => (asked++, jwt('alice')), origins: ['http://localhost:2'] });
  const { seen } = opened(AuthenticatedWebSocket);
  await clock.advance(1_000);
  assert.deepEqual([seen, asked, server.sockets.length], [['error', '1006'], 0, 0]);
});
