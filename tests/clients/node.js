// Follows a stream with the npm package `eventsource` until it stops by itself, and prints what came: one JSON object a
// line. Argument: the address.
import { EventSource } from 'eventsource';

// While it waits to come back, newer versions of the package don't keep the process.
const waiting = setInterval(() => {}, 1000);
const source = new EventSource(process.argv[2]);
const print = (what) => process.stdout.write(`${JSON.stringify(what)}\n`);
for (const kind of ['status', 'step', 'log', 'gap', 'end']) {
  source.addEventListener(kind, (event) => print({ id: Number(event.lastEventId), kind: event.type }));
}
source.addEventListener('open', () => print({ opened: true }));
source.addEventListener('error', (error) => {
  if (source.readyState !== EventSource.CLOSED) return;
  print({ closed: `${error.code} ${error.message}` });
  clearInterval(waiting);
});
