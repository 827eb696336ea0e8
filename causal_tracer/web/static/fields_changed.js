(prompt, subject, answer) => {
  // Prompt or subject has changed: clear the subject and the answer of an earlier prompt. An empty subject is guessed.
  // This is done in the browser, since a late answer of the server could overwrite what was typed meanwhile.
  const page = window.causalTracer ??= {};
  const stay = { __type__: 'update' };
  if (subject !== (page.subject ?? '')) {
    // A new subject belongs to the prompt that came with it.
    page.subject = subject;
    page.subjectPrompt = prompt;
  }
  // A typed subject stays when the prompt changes (`subject_typed.js`), a clicked one stays if the new prompt contains
  // it (`chips.js`); a subject set by a link or by the page stays with its prompt only.
  const typed = subject === page.typed;
  const clicked = subject === page.clicked && prompt.includes(subject);
  const lost = subject && prompt !== page.subjectPrompt && !typed && !clicked;
  if (lost) page.subject = '';
  // A typed answer stays too; a clicked one stays with its prompt only.
  const stale = answer && answer === page.answer && prompt !== page.answerPrompt;
  return [lost ? '' : stay, stale ? '' : stay];
}
