// A real OpenID provider (`oidc-provider`, certified), the built program that signs people in there, and a backend.
import { createServer } from 'node:http';
import Provider from 'oidc-provider';
import { WebSocketServer } from 'ws';
import { listening, program } from './house.mjs';

const CLIENT = { id: 'vestibule', secret: 'a-client-secret' };

/** A port that a program can be told. Below those that systems hand out by themselves. */
async function unusedPort() {
  for (;;) {
    const port = 15_000 + Math.floor(Math.random() * 17_000);
    const server = createServer();
    const free = await new Promise((resolve) => {
      server.once('error', () => resolve(false));
      server.listen(port, '127.0.0.1', () => server.close(() => resolve(true)));
    });
    if (free) return port;
  }
}

async function provider(ours, { tokenLife }) {
  const server = createServer();
  const issuer = `http://127.0.0.1:${await listening(server)}`;
  const events = [];
  const idp = new Provider(issuer, {
    clients: [
      {
        client_id: CLIENT.id,
        client_secret: CLIENT.secret,
        redirect_uris: [`${ours}/.vestibule/callback`],
        post_logout_redirect_uris: [`${ours}/.vestibule/signed-out`],
        backchannel_logout_uri: `${ours}/.vestibule/backchannel-logout`,
        backchannel_logout_session_required: true,
        grant_types: ['authorization_code', 'refresh_token'],
        response_types: ['code'],
      },
    ],
    cookies: { keys: ['a-key-of-the-provider'] },
    // It would not call loopback otherwise.
    fetch: (url, { dispatcher, ...options }) => fetch(url, options),
    findAccount: (_, id) => ({ accountId: id, claims: () => ({ sub: id }) }),
    features: {
      devInteractions: { enabled: true },
      pushedAuthorizationRequests: { enabled: true },
      backchannelLogout: { enabled: true },
      rpInitiatedLogout: { enabled: true },
      revocation: { enabled: true },
    },
    rotateRefreshToken: true,
    ttl: { AccessToken: tokenLife, IdToken: tokenLife, RefreshToken: 600, Grant: 600, Session: 600, Interaction: 600 },
  });
  for (const name of [
    'pushed_authorization_request.success',
    'authorization.success',
    'authorization.error',
    'grant.success',
    'grant.error',
    'grant.revoked',
    'end_session.success',
    'backchannel.success',
    'backchannel.error',
  ]) {
    idp.on(name, (ctx, error) => events.push({ name, type: ctx?.oidc?.params?.grant_type, error: error?.message }));
  }
  server.on('request', idp.callback());
  const count = (name, type) => events.filter((event) => event.name === name && (!type || event.type === type)).length;
  return { issuer, server, events, count };
}

/** One test's program, provider and backend. */
export async function loginHouse(test, { tokenLife = 600, more = '' } = {}) {
  const port = await unusedPort();
  const origin = `http://localhost:${port}`;
  const idp = await provider(origin, { tokenLife });
  const asked = [];
  const web = createServer((request, response) => {
    if (request.url === '/favicon.ico') return response.writeHead(404).end();
    asked.push({ url: request.url, user: request.headers['x-user-id'], headers: request.rawHeaders.join(' ') });
    response.setHeader('Content-Type', 'text/html');
    response.end(`<!doctype html><title>ours</title><p id="user">${request.headers['x-user-id'] ?? 'nobody'}</p>`);
  });
  const upstream = new WebSocketServer({ server: web });
  upstream.on('connection', (socket) => socket.on('message', (data) => socket.send(`${data}`)));
  const backend = `http://127.0.0.1:${await listening(web)}`;
  const yaml = `
listen: 127.0.0.1:${port}
admin: null
public_url: ${origin}
upstream: ${backend}
providers: [{ preset: oidc, issuer: "${idp.issuer}" }]
browser:
  session: { secret: 0123456789abcdef0123456789abcdefXYZ }
  login: { client_id: ${CLIENT.id}, client_secret: ${CLIENT.secret}, prompt: consent }
websocket: { dialect: none }
log: { format: json, level: debug }
${more}`;
  const { child, log } = await program(yaml, {});
  test.after(() => {
    child.removeAllListeners('exit');
    child.kill('SIGKILL');
    for (const socket of upstream.clients) socket.terminate();
    for (const server of [web, idp.server]) {
      server.close();
      server.closeAllConnections();
    }
  });
  return { origin, idp, asked, log, upstream };
}

/** At the provider's page: who it is, and yes. */
export async function consents(page, user = 'alice') {
  await page.waitForSelector('input[name="login"], form[action$="/confirm"], button');
  if (await page.$('input[name="login"]')) {
    await page.fill('input[name="login"]', user);
    await page.fill('input[name="password"]', 'any');
    await Promise.all([page.waitForNavigation(), page.click('button[type="submit"]')]);
  }
  await page.click('button[type="submit"]');
}
