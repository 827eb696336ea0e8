subject => {
  // Called only when a person types: examples, links and clicks do not call it.
  (window.causalTracer ??= {}).typed = subject;
}
