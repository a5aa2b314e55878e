// Follows a stream with a browser's own EventSource until it stops by itself, and prints what came: one JSON object a
// line. Arguments: the browser's program, the address of a page, the address of the stream.
import puppeteer from 'puppeteer-core';

const [executablePath, page, stream] = process.argv.slice(2);
const browser = await puppeteer.launch({
  executablePath,
  // Where tests run as root, the browser's sandbox can't.
  args: ['--no-sandbox', '--disable-gpu', '--no-proxy-server'],
  // However this program ends, the pipe and with it the browser end, too.
  pipe: true,
});
try {
  const tab = await browser.newPage();
  await tab.goto(page);
  await tab.exposeFunction('tell', (what) => process.stdout.write(`${JSON.stringify(what)}\n`));
  await tab.evaluate(
    (stream) =>
      new Promise((resolve) => {
        // In the order in which they came.
        let last = Promise.resolve();
        const print = (what) => (last = last.then(() => window.tell(what)));
        const source = new EventSource(stream);
        for (const kind of ['status', 'step', 'log', 'gap', 'end']) {
          source.addEventListener(kind, (event) => print({ id: Number(event.lastEventId), kind: event.type }));
        }
        source.onopen = () => print({ opened: true });
        source.onerror = () => {
          if (source.readyState === EventSource.CLOSED) print({ closed: true }).then(resolve);
        };
      }),
    stream,
  );
} finally {
  await browser.close();
}
