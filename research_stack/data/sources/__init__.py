"""Where documents come from: one module a source, read by `data.module` and `data.scored`. No torch."""
