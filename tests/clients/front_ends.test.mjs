// Front ends as people have them, in a real browser before the built program: React, built by Vite, with client.js from its
// tarball or without it. They stand in `front_ends`.
import assert from 'node:assert/strict';
import { readFileSync, readdirSync } from 'node:fs';
import { join } from 'node:path';
import { after, before, test } from 'node:test';
import { chromium } from 'playwright-core';
import { WebSocket as Ws } from 'ws';
import { now, queue, startFixture } from './fixture.mjs';
import { packed, project, tool } from './packed.mjs';

const FOLDER = 'front-ends-test';
const NAMES = ['notebook', 'chat', 'hook'];
const CONFIGURATION = `
listen: \${LISTEN}
upstream: \${BACKEND_URL}
providers: [{ preset: oidc, issuer: "\${ISSUER}", audience: "\${AUDIENCE}" }]
websocket: { grace: 0s }
routes:
  - { path: /pages/**, auth: none }
  - { path: /chat, websocket: { dialect: { name: token-field, field: /auth_token } } }
`;

const built = new Map();
let browser;
before(async () => {
  const { tarball } = packed(FOLDER);
  const source = (name) => readFileSync(join(process.env.ROOT, 'tests/clients/front_ends', name), 'utf8');
  const pages = NAMES.map((name) => [`${name}.html`, `<!doctype html><title>${name}</title><div id="root"></div><script type="module" src="/${name}.js"></script>`]);
  const inputs = JSON.stringify(pages.map(([name]) => name));
  const where = project(`${FOLDER}/site`, {
    ...Object.fromEntries(pages),
    ...Object.fromEntries(NAMES.map((name) => [`${name}.js`, source(`${name}.js`)])),
    'vite.config.js': `export default { base: '/pages/', build: { target: 'es2022', rollupOptions: { input: ${inputs} } } };`,
  }, tarball);
  // React's own development build, whose Strict Mode runs each effect twice.
  tool('vite/bin/vite.js', ['build', '--logLevel', 'error'], where, { NODE_ENV: 'development' });
  for (const name of readdirSync(join(where, 'dist'), { recursive: true })) {
    if (/\.(html|js)$/.test(name)) built.set(`/pages/${name}`, readFileSync(join(where, 'dist', name)));
  }
  browser = await chromium.launch({ executablePath: process.env.CHROMIUM, args: ['--no-sandbox'] });
});
after(() => browser?.close());

/** The program before a backend that serves the front ends, and a page for them. */
async function served(t, connected) {
  const page = (request, response) => {
    const file = built.get(request.url);
    if (!file) return response.writeHead(404).end();
    response.setHeader('Content-Type', request.url.endsWith('.js') ? 'text/javascript' : 'text/html').end(file);
  };
  const here = await startFixture(t, CONFIGURATION, connected, { page });
  const context = await browser.newContext();
  t.after(() => context.close());
  const window = await context.newPage();
  const sockets = [];
  window.on('websocket', (socket) => sockets.push(socket));
  const open = async (name, values = {}) => {
    await window.addInitScript((given) => Object.assign(globalThis, given), values);
    await window.goto(`${here.url.replace('ws', 'http')}/pages/${name}.html`);
  };
  return { ...here, context, window, sockets, open };
}

// How long anything may take on a busy machine, in milliseconds. It is never what is measured.
const PATIENCE = 120_000;

/** What the page shows in an element, once it is that. */
const shows = (window, id, text) => window.waitForFunction(([id, text]) => document.getElementById(id)?.textContent === text, [id, text], { timeout: PATIENCE });
const screenshot = async ({ window }, name) => {
  if (process.env.SCREENSHOTS) await window.screenshot({ path: join(process.env.SCREENSHOTS, `${name}.png`) });
};
const events = (window) => window.evaluate(() => globalThis.events);

/** Resolves when the program ends a socket whose token this is: by its clock, not by ours. */
function ended(here, token) {
  const closes = queue();
  const socket = new Ws(`${here.url}/elsewhere`);
  socket.on('open', () => socket.send(JSON.stringify({ type: 'authenticate', token })));
  socket.on('close', (code) => closes.push(code));
  return closes.next('its end');
}

const notebook = (socket) => socket.on('message', (data) => socket.send(`${data}`));

test('an old tab whose token has expired comes back once and stops, instead of once a second for ever', async (t) => {
  const here = await served(t, notebook);
  await here.window.clock.install();
  await here.open('notebook', { token: here.nearlyExpired('alice') });
  await shows(here.window, 'state', 'ready');
  await here.window.waitForFunction(() => globalThis.closes.length === 1, undefined, { timeout: PATIENCE });
  await here.window.clock.runFor(1_500);
  await shows(here.window, 'state', 'Please sign in again');
  assert.deepEqual(await here.window.evaluate(() => globalThis.closes), [4401, 1008]);
  await here.window.clock.runFor(60_000);
  assert.equal(here.sockets.length, 2, 'and none in the minute that follows');
  await screenshot(here, 'notebook');
  here.assertNoTokenLeaked();
});

test('beside client.js the same front end goes on with a stale token of its own, and what it queued arrives', async (t) => {
  const here = await served(t, notebook);
  await here.window.exposeFunction('mint', () => here.token('alice'));
  const stale = here.nearlyExpired('alice');
  await here.open('notebook', { token: stale });
  await shows(here.window, 'state', 'ready');
  await here.window.evaluate(() => globalThis.run('one'));
  await shows(here.window, 'cells', 'one');
  // 1008: on a busy machine it has expired before it arrives.
  assert.ok([4401, 1008].includes(await ended(here, stale)), 'its own token has expired');
  assert.deepEqual(await here.window.evaluate(() => globalThis.closes), [], 'the socket has not ended with it');
  for (const client of here.upstream.clients) client.close(1012);
  await shows(here.window, 'state', 'reconnecting');
  await here.window.evaluate(() => globalThis.run('two'));
  await shows(here.window, 'cells', 'onetwo');
  await shows(here.window, 'state', 'ready');
  assert.deepEqual(await here.window.evaluate(() => globalThis.closes), [1012]);
  here.assertNoTokenLeaked();
});

test('a chat that connects at page load and speaks later is not timed out, nor is the socket that Strict Mode left', async (t) => {
  const here = await served(t, (socket, request) => socket.on('message', (data) => {
    socket.send(JSON.stringify({ answer: `${request.headers['x-user-id']}: ${JSON.parse(data).prompt}` }));
  }));
  await here.open('chat', { token: here.token('alice') });
  await here.window.waitForSelector('h1');
  // A socket of another dialect that says nothing either tells when the limit is over.
  const silent = queue();
  new Ws(`${here.url}/elsewhere`).on('close', (code, reason) => silent.push(`${code} ${reason}`));
  assert.equal(await silent.next('its end'), '1008 Authentication timeout');
  assert.deepEqual(await here.window.evaluate(() => globalThis.closes), []);
  await here.window.evaluate(() => globalThis.ask('hello'));
  await shows(here.window, 'lines', 'alice: hello');
  await shows(here.window, 'problem', '');
  assert.equal(here.sockets.length, 2, 'with the one that Strict Mode left');
  await screenshot(here, 'chat');
});

const echo = (socket) => socket.on('message', (data) => socket.send(`${data}`));

test('react-use-websocket reconnects by itself: it sees the real close code, and one socket follows another', async (t) => {
  const here = await served(t, echo);
  await here.window.exposeFunction('mint', () => here.token('alice'));
  await here.open('hook', { options: { getToken: true } });
  await here.window.waitForFunction(() => globalThis.events.length === 1);
  for (const client of here.upstream.clients) client.close(1012);
  await here.window.waitForFunction(() => globalThis.events.length === 2);
  await here.window.evaluate(() => globalThis.say('meanwhile'));
  await shows(here.window, 'last', 'meanwhile');
  assert.deepEqual(await events(here.window), ['open', 1012, 'open']);
  assert.equal(here.seen.length, 2);
});

test('reconnect: true beside react-use-websocket: one of them reconnects, and there is one socket afterwards', async (t) => {
  const here = await served(t, echo);
  await here.window.exposeFunction('mint', () => here.token('alice'));
  await here.open('hook', { options: { getToken: true, reconnect: true } });
  await here.window.waitForFunction(() => globalThis.events.length === 1);
  await here.context.setOffline(true);
  for (const client of here.upstream.clients) client.close(1012);
  // It tries, and cannot: two sockets that failed.
  await threeSockets(here);
  assert.deepEqual(await events(here.window), ['open'], 'neither an error nor a close that the hook would act on');
  await here.context.setOffline(false);
  await here.window.waitForFunction(() => globalThis.events.length === 2, undefined, { timeout: PATIENCE });
  const before = here.sockets.length;
  // Six of the hook's intervals, counted by the page.
  await here.window.evaluate(() => new Promise((resolve) => setTimeout(resolve, 3_000)));
  assert.deepEqual([await events(here.window), here.sockets.length, here.seen.length], [['open', 'open'], before, 2]);
  await here.window.evaluate(() => globalThis.say('afterwards'));
  await shows(here.window, 'last', 'afterwards');
});

test('a hook that gives up while client.js reconnects sees 1012 and not 1006', async (t) => {
  const here = await served(t, echo);
  await here.window.exposeFunction('mint', () => here.token('alice'));
  await here.open('hook', { options: { getToken: true, reconnect: true } });
  await here.window.waitForFunction(() => globalThis.events.length === 1);
  await here.context.setOffline(true);
  for (const client of here.upstream.clients) client.close(1012);
  await threeSockets(here);
  await here.window.evaluate(() => globalThis.hide());
  await here.window.waitForFunction(() => globalThis.events.length === 2);
  assert.deepEqual(await events(here.window), ['open', 1012]);
});

/** Waits until the page has tried three sockets in all. */
async function threeSockets(here) {
  while (here.sockets.length < 3) await here.window.waitForEvent('websocket', { timeout: PATIENCE });
}

test('signed out, no socket is opened and open never comes', async (t) => {
  const here = await served(t, echo);
  await here.open('hook', { options: { getToken: false, reconnect: true, wait: 300 } });
  await here.window.waitForFunction(() => globalThis.events.length >= 2, undefined, { timeout: PATIENCE });
  assert.deepEqual((await events(here.window)).slice(0, 2), [4401, 4401], 'the hook comes back, and hears the same');
  assert.deepEqual([here.sockets.length, here.seen.length], [0, 0]);
});
