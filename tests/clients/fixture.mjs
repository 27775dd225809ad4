// The parts that all client tests share: an issuer with a real key, the built program, and an upstream that knows nothing
// of tokens.
import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { generateKeyPairSync, sign } from 'node:crypto';
import { once } from 'node:events';
import { readFileSync } from 'node:fs';
import { createServer } from 'node:http';
import { createInterface } from 'node:readline';
import { WebSocketServer } from 'ws';

const AUDIENCE = 'client-tests';
const SAFETY = 30_000;

export const now = () => Math.floor(Date.now() / 1000);

/** Awaits a promise, with a time limit as a safety net. */
export function within(what, promise, limit = SAFETY) {
  let timer;
  const late = new Promise((_, reject) => {
    timer = setTimeout(() => reject(new Error(`nothing within ${limit} ms: ${what}`)), limit);
  });
  return Promise.race([promise, late]).finally(() => clearTimeout(timer));
}

export async function listening(server) {
  server.listen(0, '127.0.0.1');
  await once(server, 'listening');
  return server.address().port;
}

async function issuer() {
  const { privateKey, publicKey } = generateKeyPairSync('ec', { namedCurve: 'P-256' });
  const jwk = { ...publicKey.export({ format: 'jwk' }), kid: 'k', alg: 'ES256', use: 'sig' };
  let url;
  const server = createServer((request, response) => {
    const body = request.url.startsWith('/.well-known') ? { issuer: url, jwks_uri: `${url}/jwks` } : { keys: [jwk] };
    response.end(JSON.stringify(body));
  });
  url = `http://127.0.0.1:${await listening(server)}`;
  const encode = (value) => Buffer.from(JSON.stringify(value)).toString('base64url');
  const token = (user, claims = {}) => {
    const payload = { iss: url, aud: AUDIENCE, sub: user, iat: now(), exp: now() + 600, ...claims };
    const signed = `${encode({ alg: 'ES256', kid: 'k', typ: 'JWT' })}.${encode(payload)}`;
    const signature = sign('sha256', Buffer.from(signed), { key: privateKey, dsaEncoding: 'ieee-p1363' });
    return `${signed}.${signature.toString('base64url')}`;
  };
  return { url, token, server };
}

export async function program(yaml, environment) {
  const child = spawn(process.env.VESTIBULE, ['run'], {
    env: { ...environment, VESTIBULE_CONFIG_YAML: yaml, LISTEN: '127.0.0.1:0' },
    stdio: ['ignore', 'pipe', 'pipe'],
  });
  const log = [];
  const address = new Promise((resolve, reject) => {
    for (const stream of [child.stdout, child.stderr]) {
      createInterface({ input: stream }).on('line', (line) => {
        log.push(line);
        const ready = line.startsWith('{') && JSON.parse(line);
        if (ready && ready.msg === 'listening') resolve(ready.listen.split(' ')[0].replace('http://', ''));
      });
    }
    child.on('exit', (code) => reject(new Error(`it ended with ${code}: ${log.join('\n')}`)));
  });
  return { child, log, address: await within('the program to be ready', address) };
}

/**
 * Starts an issuer, the program with this configuration and an upstream; all of them end with the test.
 * `connected(socket, request)` handles each connection of the upstream, an ordinary `ws` server.
 */
export async function startFixture(test, yaml, connected, { page, ...options } = {}) {
  const provider = await issuer();
  const web = createServer(page ?? ((_, response) => response.writeHead(404).end()));
  const upstream = new WebSocketServer({ server: web, ...options });
  const seen = [];
  upstream.on('connection', (socket, request) => {
    seen.push({ user: request.headers['x-user-id'], url: request.url, headers: request.rawHeaders.join(' ') });
    connected?.(socket, request);
  });
  const port = await listening(web);
  const environment = { ISSUER: provider.url, AUDIENCE, BACKEND_URL: `http://127.0.0.1:${port}` };
  const { child, log, address } = await program(yaml, environment);
  test.after(() => {
    child.removeAllListeners('exit');
    child.kill('SIGKILL');
    for (const socket of upstream.clients) socket.terminate();
    for (const server of [web, provider.server]) {
      server.close();
      server.closeAllConnections();
    }
  });
  return {
    url: `ws://${address}`,
    token: provider.token,
    /** Accepted when it arrives, also on a busy machine; its socket ends within six seconds (the clock skew is five). */
    nearlyExpired: (user) => provider.token(user, { exp: now() + 1 }),
    expired: (user) => provider.token(user, { exp: now() - 600 }),
    seen,
    upstream,
    log,
    /** Asserts that no token reached the upstream or a log line. */
    assertNoTokenLeaked() {
      const text = JSON.stringify(seen) + log.join('\n');
      assert(!text.includes('eyJ'), text);
    },
  };
}

/** Reads an example configuration of the documentation. */
export function example(name) {
  const text = readFileSync(`${process.env.EXAMPLES}/${name}.yaml`, 'utf8');
  return `${text}\nwebsocket: { grace: 0s }\n`;
}

/** A queue whose `next` waits for a value. */
export function queue() {
  const values = [];
  const waiting = [];
  return {
    push(value) {
      const first = waiting.shift();
      if (first) first(value);
      else values.push(value);
    },
    next(what) {
      if (values.length > 0) return Promise.resolve(values.shift());
      return within(what, new Promise((resolve) => waiting.push(resolve)));
    },
  };
}
