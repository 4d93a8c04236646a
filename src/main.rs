//! bridgehead
fn main() {}
