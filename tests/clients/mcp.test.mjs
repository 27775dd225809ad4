// The client of MCP's own SDK, from the first 401 to a tool call: it finds the provider by what the program says of the
// protected resource, registers there, and comes back with a token for that resource.
import assert from 'node:assert/strict';
import { createServer } from 'node:http';
import test from 'node:test';
import { Client } from '@modelcontextprotocol/sdk/client/index.js';
import { UnauthorizedError } from '@modelcontextprotocol/sdk/client/auth.js';
import { StreamableHTTPClientTransport } from '@modelcontextprotocol/sdk/client/streamableHttp.js';
import { McpServer } from '@modelcontextprotocol/sdk/server/mcp.js';
import { StreamableHTTPServerTransport } from '@modelcontextprotocol/sdk/server/streamableHttp.js';
import Provider from 'oidc-provider';
import { listening, program } from './fixture.mjs';
import { unusedPort } from './sign_in_fixture.mjs';

const REDIRECT = 'http://127.0.0.1:1/callback';

function close(server) {
  server.close();
  server.closeAllConnections();
}

/** A provider with dynamic registration whose tokens are for the resource that the client names. */
async function startProvider(t) {
  const server = createServer();
  t.after(() => close(server));
  const issuer = `http://127.0.0.1:${await listening(server)}`;
  const resources = [];
  const idp = new Provider(issuer, {
    cookies: { keys: ['a-key-of-the-provider'] },
    findAccount: (_, id) => ({ accountId: id, claims: () => ({ sub: id }) }),
    scopes: ['openid', 'offline_access', 'mcp:tools'],
    features: {
      devInteractions: { enabled: true },
      registration: { enabled: true },
      resourceIndicators: {
        enabled: true,
        getResourceServerInfo(_, resource) {
          resources.push(resource);
          return { scope: 'mcp:tools', audience: resource, accessTokenFormat: 'jwt', accessTokenTTL: 600 };
        },
      },
    },
  });
  server.on('request', idp.callback());
  return { issuer, resources };
}

/** An MCP server that knows nothing of OAuth; its tool names the user whom the proxy verified. */
async function startServer(t) {
  const requests = [];
  const web = createServer(async (request, response) => {
    requests.push({ url: request.url, headers: request.rawHeaders.join(' ') });
    const server = new McpServer({ name: 'tools', version: '1' });
    server.registerTool('whoami', { description: 'the user' }, ({ requestInfo }) => ({
      content: [{ type: 'text', text: `${requestInfo.headers['x-user-id']}` }],
    }));
    const transport = new StreamableHTTPServerTransport({ sessionIdGenerator: undefined });
    response.on('close', () => transport.close());
    await server.connect(transport);
    await transport.handleRequest(request, response);
  });
  t.after(() => close(web));
  return { url: `http://127.0.0.1:${await listening(web)}`, requests };
}

/** Follows an authorization request through sign-in and consent, as a browser would, to the code. */
async function signIn(url) {
  const jar = new Map();
  const ask = async (target, options = {}) => {
    const cookie = [...jar].map(([name, value]) => `${name}=${value}`).join('; ');
    const answer = await fetch(target, { ...options, redirect: 'manual', headers: { cookie, ...options.headers } });
    for (const line of answer.headers.getSetCookie()) {
      const [name, value] = line.split(';')[0].split('=');
      jar.set(name, value);
    }
    return answer;
  };
  let target = `${url}`;
  for (let step = 0; step < 12; step++) {
    let answer = await ask(target);
    if (answer.status === 200) {
      const form = await answer.text();
      const prompt = /name="prompt" value="(\w+)"/.exec(form)[1];
      const action = /action="([^"]+)"/.exec(form)[1];
      answer = await ask(new URL(action, target), {
        method: 'POST',
        headers: { 'content-type': 'application/x-www-form-urlencoded' },
        body: new URLSearchParams({ prompt, login: 'alice', password: 'any' }),
      });
    }
    const location = answer.headers.get('location');
    assert(location, `${answer.status} ${await answer.text()}`);
    target = new URL(location, target).href;
    if (target.startsWith(REDIRECT)) return new URL(target).searchParams;
  }
  throw new Error('no code after 12 steps');
}

/** What the SDK asks an application to keep. */
function oauthClient() {
  const kept = {};
  return {
    kept,
    redirectUrl: REDIRECT,
    clientMetadata: {
      client_name: 'a client',
      redirect_uris: [REDIRECT],
      grant_types: ['authorization_code', 'refresh_token'],
      response_types: ['code'],
      token_endpoint_auth_method: 'none',
    },
    clientInformation: () => kept.client,
    saveClientInformation: (client) => void (kept.client = client),
    tokens: () => kept.tokens,
    saveTokens: (tokens) => void (kept.tokens = tokens),
    codeVerifier: () => kept.verifier,
    saveCodeVerifier: (verifier) => void (kept.verifier = verifier),
    redirectToAuthorization: (url) => void (kept.url = url),
  };
}

const claims = (token) => JSON.parse(Buffer.from(token.split('.')[1], 'base64url'));

test('a client finds the provider, registers, signs in, and calls a tool as its user', async (t) => {
  const { issuer, resources } = await startProvider(t);
  const upstream = await startServer(t);
  const port = await unusedPort();
  const origin = `http://127.0.0.1:${port}`;
  const { child, log } = await program(
    `
listen: 127.0.0.1:${port}
admin: null
public_url: ${origin}
upstream: ${upstream.url}
providers: [{ preset: oidc, issuer: "${issuer}" }]
routes:
  - { path: /mcp/**, protected_resource: { scopes: [mcp:tools] }, require: { scope: mcp:tools } }
  - { path: /other/**, protected_resource: {} }
log: { format: json, level: debug }
`,
    {},
  );
  t.after(() => {
    child.removeAllListeners('exit');
    child.kill('SIGKILL');
  });
  const authProvider = oauthClient();
  const { kept } = authProvider;
  const first = new StreamableHTTPClientTransport(new URL(`${origin}/mcp`), { authProvider });
  await assert.rejects(new Client({ name: 'test', version: '1' }).connect(first), UnauthorizedError);
  assert.equal(kept.url.origin, issuer, 'the provider that the document names');
  assert.equal(kept.url.searchParams.get('resource'), `${origin}/mcp`);
  assert.match(kept.url.searchParams.get('scope'), /\bmcp:tools\b/);
  assert(kept.client.client_id, 'it has registered');
  assert.equal(upstream.requests.length, 0, 'nothing has reached the server');

  const answer = await signIn(kept.url);
  await first.finishAuth(answer.get('code'));
  assert.deepEqual(new Set(resources), new Set([`${origin}/mcp`]));
  assert.equal(claims(kept.tokens.access_token).aud, `${origin}/mcp`);

  const client = new Client({ name: 'test', version: '1' });
  await client.connect(new StreamableHTTPClientTransport(new URL(`${origin}/mcp`), { authProvider }));
  t.after(() => client.close());
  const { content } = await client.callTool({ name: 'whoami', arguments: {} });
  assert.deepEqual(content, [{ type: 'text', text: claims(kept.tokens.access_token).sub }]);

  // The token is for this resource alone.
  const headers = { authorization: `Bearer ${kept.tokens.access_token}` };
  const elsewhere = await fetch(`${origin}/other`, { headers });
  assert.equal(elsewhere.status, 401);
  assert.match(elsewhere.headers.get('www-authenticate'), /error="invalid_token".*oauth-protected-resource\/other"/);
  const text = JSON.stringify(upstream.requests) + log.join('\n');
  assert(!text.includes('eyJ'), 'no token reached the server or a log line');
});
