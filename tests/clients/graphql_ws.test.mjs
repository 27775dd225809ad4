// graphql-ws as it comes from its package, in front of its own server: the built-in dialect.
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { buildSchema } from 'graphql';
import { createClient } from 'graphql-ws';
import { useServer } from 'graphql-ws/use/ws';
import { WebSocket } from 'ws';
import { startFixture, within } from './fixture.mjs';

const CONFIGURATION = `
listen: \${LISTEN}
upstream: \${BACKEND_URL}
providers: [{ preset: oidc, issuer: "\${ISSUER}", audience: "\${AUDIENCE}" }]
websocket: { grace: 0s }
routes: [{ path: /graphql, websocket: { dialect: graphql-transport-ws } }]
`;

async function served(t) {
  const parameters = [];
  const here = await startFixture(t, CONFIGURATION, undefined, {
    handleProtocols: (offers) => (offers.has('graphql-transport-ws') ? 'graphql-transport-ws' : false),
  });
  useServer(
    {
      schema: buildSchema('type Query { whoami: String } type Subscription { ticks: Int }'),
      onConnect: (context) => void parameters.push(context.connectionParams),
      context: (context) => ({ user: context.extra.request.headers['x-user-id'] }),
      roots: {
        query: { whoami: (_, context) => context.user },
        subscription: {
          ticks: async function* () {
            for (let n = 0; ; n++) {
              yield { ticks: n };
              await new Promise((resolve) => setTimeout(resolve, 50));
            }
          },
        },
      },
    },
    here.upstream,
  );
  return { ...here, parameters };
}

function asks(client, query) {
  return within(query, new Promise((resolve, reject) => {
    let result;
    client.subscribe({ query }, { next: (value) => (result = value), error: reject, complete: () => resolve(result) });
  }));
}

test('a query comes back as the verified user, and the token stops at us', async (t) => {
  const here = await served(t);
  for (const payload of [
    { Authorization: `Bearer ${here.token('alice')}`, lang: 'de', 'X-User-Id': 'bob' },
    { headers: { Authorization: `Bearer ${here.token('alice')}` }, lang: 'de' },
    { authToken: here.token('alice'), lang: 'de' },
  ]) {
    const client = createClient({ url: `${here.url}/graphql`, webSocketImpl: WebSocket, connectionParams: payload });
    assert.deepEqual(await asks(client, '{ whoami }'), { data: { whoami: 'alice' } });
    await client.dispose();
  }
  assert(here.parameters.every((seen) => seen.lang === 'de'));
  assert(!JSON.stringify(here.parameters).match(/eyJ|bob/), JSON.stringify(here.parameters));
  here.assertNoTokenLeaked();
});

test('when its token ends it comes back by itself with a fresh one, and its subscription goes on', async (t) => {
  const here = await served(t);
  let asked = 0;
  const closes = [];
  const client = createClient({
    url: `${here.url}/graphql`,
    webSocketImpl: WebSocket,
    connectionParams: () => ({ authToken: ++asked === 1 ? here.nearlyExpired('alice') : here.token('alice') }),
    on: { closed: (event) => closes.push(event.code) },
  });
  let restarted;
  const again = new Promise((resolve) => (restarted = resolve));
  let ticks = 0;
  const stop = client.subscribe(
    { query: 'subscription { ticks }' },
    { next: ({ data }) => (data.ticks === 0 && ticks++ > 0 ? restarted() : undefined), error: assert.fail, complete() {} },
  );
  await within('the subscription on the second socket', again);
  assert.equal(closes[0], 4403);
  assert.equal(here.seen.length, 2);
  stop();
  await client.dispose();
});

test('a refused token is final, as the library understands 4401', async (t) => {
  const here = await served(t);
  const client = createClient({
    url: `${here.url}/graphql`,
    webSocketImpl: WebSocket,
    connectionParams: { authToken: 'garbage' },
  });
  const refused = await asks(client, '{ whoami }').then(assert.fail, (event) => event);
  assert.deepEqual([refused.code, refused.reason], [4401, 'Invalid token']);
  assert.equal(here.seen.length, 0, 'the upstream was not touched');
});
