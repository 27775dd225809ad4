// centrifuge as it comes from its package, with the example of docs/dialects. Centrifugo itself is no package
// of any of our registries: the upstream answers its JSON protocol as its documentation says.
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { Centrifuge } from 'centrifuge';
import { WebSocket } from 'ws';
import { example, queue, startFixture } from './fixture.mjs';

async function served(t) {
  const commands = [];
  const here = await startFixture(t, example('centrifugo'), (socket, request) => {
    socket.on('message', (data) => {
      const replies = [];
      for (const line of String(data).split('\n').filter(Boolean)) {
        const command = JSON.parse(line);
        commands.push(command);
        if (command.connect) {
          replies.push({ id: command.id, connect: { client: 'c', version: '6', ping: 25, pong: true, user: request.headers['x-user-id'] } });
        } else if (command.subscribe) {
          replies.push({ id: command.id, subscribe: {} });
          replies.push({ push: { channel: command.subscribe.channel, pub: { data: request.headers['x-user-id'] } } });
        } else if (command.rpc) {
          replies.push({ id: command.id, rpc: { data: { user: request.headers['x-user-id'], echo: command.rpc.data } } });
        }
      }
      socket.send(replies.map((reply) => JSON.stringify(reply)).join('\n'));
    });
  });
  return { ...here, commands };
}

test('connect, subscribe and call as the verified user', async (t) => {
  const here = await served(t);
  const client = new Centrifuge(`${here.url}/connection/websocket`, {
    websocket: WebSocket,
    getToken: async () => here.token('alice'),
    headers: { 'X-User-Id': 'bob', 'X-Lang': 'de' },
  });
  const published = queue();
  const subscription = client.newSubscription('news');
  subscription.on('publication', ({ data }) => published.push(data));
  subscription.subscribe();
  client.connect();
  assert.equal(await published.next('a publication'), 'alice');
  const { data } = await client.rpc('method', { n: 1 });
  assert.deepEqual(data, { user: 'alice', echo: { n: 1 } });
  client.disconnect();
  assert.equal(here.commands[0].connect.token, undefined);
  assert.deepEqual(here.commands[0].connect.headers, { 'X-Lang': 'de' });
  assert(!JSON.stringify(here.commands).includes('eyJ'));
  here.assertNoTokenLeaked();
});

test('an expired token makes it fetch a fresh one and come back by itself', async (t) => {
  const here = await served(t);
  let asked = 0;
  const client = new Centrifuge(`${here.url}/connection/websocket`, {
    websocket: WebSocket,
    token: here.expired('alice'),
    getToken: async () => (asked++, here.token('alice')),
  });
  const connected = queue();
  client.on('connected', (context) => connected.push(context.client));
  client.connect();
  assert.equal(await connected.next('a connection'), 'c');
  assert.equal(asked, 1);
  client.disconnect();
});

test('when its token ends while it is connected it comes back with a fresh one', async (t) => {
  const here = await served(t);
  let asked = 0;
  const client = new Centrifuge(`${here.url}/connection/websocket`, {
    websocket: WebSocket,
    getToken: async () => (asked++ === 0 ? here.nearlyExpired('alice') : here.token('alice')),
    minReconnectDelay: 10,
  });
  const connected = queue();
  client.on('connected', () => connected.push());
  client.connect();
  await connected.next('the first connection');
  await connected.next('the second');
  assert.equal(asked, 2);
  assert.equal(here.seen.length, 2);
  client.disconnect();
});
