"""Studies: many facts traced and averaged by token role (Meng et al. 2022, section 2.2)."""
