(prompt, subject, answer) => {
  // Prompt or subject has changed: what belonged to an earlier prompt goes. An empty subject is guessed. Here and not on
  // the server, whose answer could overtake what is typed meanwhile.
  const page = window.causalTracer ??= {};
  const stay = { __type__: 'update' };
  if (subject !== (page.subject ?? '')) {
    // New, so it belongs to the prompt that it came with.
    page.subject = subject;
    page.subjectPrompt = prompt;
  }
  // A typed subject stays whatever the prompt (`subject_typed.js`), a clicked one while the prompt has it (`chips.js`);
  // one that a link or the page itself has set stays with its prompt only.
  const typed = subject === page.typed;
  const clicked = subject === page.clicked && prompt.includes(subject);
  const lost = subject && prompt !== page.subjectPrompt && !typed && !clicked;
  if (lost) page.subject = '';
  // A typed answer stays as well; a clicked one goes with its prompt.
  const stale = answer && answer === page.answer && prompt !== page.answerPrompt;
  return [lost ? '' : stay, stale ? '' : stay];
}
