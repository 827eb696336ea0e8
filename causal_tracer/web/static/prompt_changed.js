(prompt, subject, answer) => {
  // The prompt has changed: what belonged to the earlier one goes with it. Here and not on the server, whose answer could
  // overtake what is typed meanwhile. A subject goes if it stood in the earlier prompt and not in this one; an answer, if it
  // was chosen by a click for the earlier one.
  const page = window.causalTracer ??= {};
  const lost = subject && page.prompt?.includes(subject) && !prompt.includes(subject);
  const stale = answer && page.answer === answer && page.answerPrompt !== prompt;
  page.prompt = prompt;
  return [lost ? '' : subject, stale ? '' : answer];
}
