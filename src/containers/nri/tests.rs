//! What plugins want, in specs.
