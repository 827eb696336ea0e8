// Ask a running app from JavaScript (Node 18 or later): one endpoint, one JSON object.
//
//   python app.py                                                # in one terminal
//   node examples/call.mjs http://127.0.0.1:7860 trace '{"request": {"prompt": "The Space Needle is located in the city of"}}'
//   node examples/call.mjs http://127.0.0.1:7860 lens '{"request": {"prompt": "The Space Needle is located in the city of"}}'
//   node examples/call.mjs http://127.0.0.1:7860 patch \
//     '{"source": "Paris is the capital of", "base": "Rome is the capital of", "pairs": [[[1, 3], [1, 3]]]}'
//
// Partial results of /trace arrive in order; their progress goes to stderr, the last result to stdout.

async function* answers(address, endpoint, task) {
  const call = `${address.replace(/\/$/, "")}/gradio_api/call/${endpoint}`;
  const begun = await fetch(call, {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify({ data: [task] }),
  });
  if (!begun.ok) throw new Error(await begun.text());
  const { event_id } = await begun.json();
  const stream = await fetch(`${call}/${event_id}`);
  const decoder = new TextDecoder();
  let text = "";
  for await (const bytes of stream.body) {
    text += decoder.decode(bytes, { stream: true });
    const events = text.split("\n\n");
    text = events.pop();
    for (const each of events) {
      const [, kind, data] = each.match(/^event: (.*)\ndata: (.*)$/);
      if (kind === "error") throw new Error(JSON.parse(data)?.error ?? "The app gave no reason.");
      // The last event repeats the last answer.
      if (kind === "generating" || kind === "complete") yield JSON.parse(data)[0];
    }
  }
}

const [address, endpoint, task] = process.argv.slice(2);
let result = null;
try {
  for await (result of answers(address, endpoint, JSON.parse(task))) {
    const { waiting, done, total } = result.progress ?? {};
    if (total !== undefined) console.error(waiting || `${done} of ${total} restored runs`);
  }
  console.log(JSON.stringify(result));
} catch (error) {
  console.error(error.message);
  process.exitCode = 1;
}
