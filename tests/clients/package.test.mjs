// What front ends install or import: the package from its tarball in a Vite project, the types, and the minified module.
import assert from 'node:assert/strict';
import { readFileSync, readdirSync } from 'node:fs';
import { join } from 'node:path';
import { before, test } from 'node:test';
import { packed, project, tool } from './packed.mjs';

const FOLDER = 'package-test';
const read = (...path) => readFileSync(join(process.env.ROOT, ...path), 'utf8');
let built;
before(() => (built = packed(FOLDER)));

const TSCONFIG = {
  strict: true, noEmit: true, skipLibCheck: false, target: 'ES2022', module: 'ESNext', moduleResolution: 'bundler', lib: ['ES2022', 'DOM'], types: [],
};
const tsconfig = (options) => JSON.stringify({ compilerOptions: { ...TSCONFIG, ...options }, include: ['src'] });
const compiled = (where) => {
  try {
    return tool('typescript/bin/tsc', ['-p', '.'], where);
  } catch ({ stdout }) {
    return stdout;
  }
};

/** A program that uses everything, and errs twice where it says so. */
const program = (from) => `
import { AuthenticatedWebSocket, installAuth, type AuthOptions } from '${from}';
const options: AuthOptions = { getToken: ({ skipCache, reason }) => (skipCache || reason === 'refused' ? 'fresh' : null) };
const undo: () => void = installAuth({ ...options, sockets: (url) => url.pathname === '/ws', reconnect: false });
const socket = new AuthenticatedWebSocket('/ws', ['a']);
socket.addEventListener('message', ({ data }) => console.log(data));
socket.onclose = ({ code, reason }) => console.log(code.toFixed(), reason);
const Kind: typeof WebSocket = AuthenticatedWebSocket;
const plain: WebSocket = new Kind('/ws');
plain.close();
undo();
// @ts-expect-error getToken is missing
installAuth({});
// @ts-expect-error a token is text
installAuth({ getToken: () => 1 });
`;

test('the minified module that the program embeds is what the source builds to', () => {
  const now = readFileSync(join(built.repository, 'src/browser/client.min.js'), 'utf8');
  assert.equal(read('src/browser/client.min.js'), now, 'run `npm run build` in packages/client and commit src/browser/client.min.js');
  assert(now.length < read('src/browser/client.js').length / 2);
});

test('the package has the version of the program', () => {
  const { version } = JSON.parse(read('packages/client/package.json'));
  assert.equal(version, read('Cargo.toml').match(/^version = "(.*)"$/m)[1]);
});

test('a Vite project takes the package from its tarball, with its types', () => {
  const where = project(`${FOLDER}/vite`, {
    'index.html': '<!doctype html><script type="module" src="/src/main.ts"></script>',
    'src/main.ts': program('vestibule-client'),
    'tsconfig.json': tsconfig(),
  }, built.tarball);
  assert.equal(compiled(where), '');
  tool('vite/bin/vite.js', ['build', '--logLevel', 'error'], where);
  const assets = join(where, 'dist/assets');
  const bundle = readdirSync(assets).map((name) => readFileSync(join(assets, name), 'utf8')).join('');
  assert(bundle.includes('refresh_auth') && !bundle.includes('vestibule-client'), 'the client is in the bundle');
});

test('an import by URL has types with the lines of the documentation', () => {
  const page = read('docs/client.md');
  const declaration = page.match(/```ts\n\/\/ src\/vestibule\.d\.ts\n([^]*?)```/)[1];
  const { compilerOptions } = JSON.parse(page.match(/```json\n([^]*?)```/)[1]);
  for (const from of ['/.vestibule/client.js', 'https://api.example.com/.vestibule/client.js']) {
    const files = { 'src/main.ts': program(from), 'tsconfig.json': tsconfig() };
    assert.match(compiled(project(`${FOLDER}/none`, files)), /TS2307/, 'without them there are none');
    const served = { 'src/vestibule-client.d.ts': read('src/browser/client.d.ts'), 'src/vestibule.d.ts': declaration };
    const where = project(`${FOLDER}/by-url`, { ...files, ...served, 'tsconfig.json': tsconfig(compilerOptions) });
    assert.equal(compiled(where), '', from);
  }
  const files = { 'src/main.ts': program('/.vestibule/client.js'), 'src/vestibule.d.ts': declaration, 'tsconfig.json': tsconfig() };
  assert.equal(compiled(project(`${FOLDER}/beside-package`, files, built.tarball)), '', 'with the package the declaration is enough');
});

test('Vite leaves an import by URL alone with the line of the documentation', () => {
  const line = read('docs/client.md').match(/for Vite: `(.*?)`/)[1];
  const where = project(`${FOLDER}/vite-by-url`, {
    'index.html': '<!doctype html><script type="module" src="/src/main.js"></script>',
    'src/main.js': "import { installAuth } from '/.vestibule/client.js'; installAuth({ getToken: () => null });",
    'vite.config.js': `export default { ${line} };`,
  });
  tool('vite/bin/vite.js', ['build', '--logLevel', 'error'], where);
  const assets = join(where, 'dist/assets');
  assert.match(readFileSync(join(assets, readdirSync(assets)[0]), 'utf8'), /from\s*"\/\.vestibule\/client\.js"/);
});
