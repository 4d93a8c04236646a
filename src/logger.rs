//! The log, on stderr: runtimes keep what a plugin writes there.

use log::{LevelFilter, Log, Metadata, Record};

struct Stderr;

impl Log for Stderr {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.level() <= log::max_level()
    }

    fn log(&self, record: &Record<'_>) {
        use std::io::Write;
        if self.enabled(record.metadata()) {
            let line = format!("bridgehead: {}: {}\n", record.level().as_str().to_lowercase(), record.args());
            // Nobody may be reading; that is no reason to fail. At once, since others write there too.
            let _ = std::io::stderr().write_all(line.as_bytes());
        }
    }

    fn flush(&self) {}
}

/// Starts the log. `BRIDGEHEAD_LOG` says from which level on (error, warn, info, debug, trace, off); warn without it.
pub fn start() {
    let level =
        std::env::var("BRIDGEHEAD_LOG").ok().and_then(|text| text.parse().ok()).unwrap_or(LevelFilter::Warn);
    // It fails only if it was started before.
    if log::set_logger(&Stderr).is_ok() {
        log::set_max_level(level);
    }
}
