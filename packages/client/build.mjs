// Builds the two forms of the client from its one source, src/browser: the minified module that the program embeds
// (client.min.js beside the source, committed, so that a build with cargo needs no Node.js), and the files of this package.
//
//   npm install && npm run build     both
//   npm pack                         both, and the tarball
import { createHash } from 'node:crypto';
import { copyFileSync, mkdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { fileURLToPath } from 'node:url';
import { transformSync } from 'esbuild';

const at = (path) => fileURLToPath(new URL(path, import.meta.url));
const source = readFileSync(at('../../src/browser/client.js'), 'utf8');
const digest = createHash('sha256').update(source).digest('hex').slice(0, 16);
const { code } = transformSync(source, { format: 'esm', minify: true, target: 'es2022' });
// A unit test compares the digest with the source's.
writeFileSync(at('../../src/browser/client.min.js'), `/* Vestibule's client, built from client.js ${digest} */\n${code}`);

rmSync(at('dist'), { recursive: true, force: true });
mkdirSync(at('dist'));
for (const name of ['client.js', 'client.d.ts']) copyFileSync(at(`../../src/browser/${name}`), at(`dist/${name}`));
