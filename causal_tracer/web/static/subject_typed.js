subject => {
  // Only what a person types comes here: examples, links and clicks do not.
  (window.causalTracer ??= {}).typed = subject;
}
