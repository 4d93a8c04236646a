//! The caller's half of the protocol: conflists, chains, the result cache, executing plugins.
