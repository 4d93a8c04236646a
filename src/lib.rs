//! bridgehead
