"""Studies: tracing many facts and averaging their effects by token role (Meng et al. 2022, section 2.2)."""
