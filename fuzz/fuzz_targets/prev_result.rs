//! Results: those of plugins before in the chain, of IPAM plugins, and of an earlier ADD. JSON, and nothing else.
//!
//! Whatever it is, a result of any version is read or refused; one that is read says the same when it is printed.

#![no_main]

use bridgehead::spec::version::{ALL, Family};
use bridgehead::spec::{CniResult, NetConf};
use libfuzzer_sys::fuzz_target;
use serde_json::Value;

fuzz_target!(|data: &[u8]| {
    let Ok(value) = serde_json::from_slice::<Value>(data) else { return };
    for version in ALL {
        if let Ok(result) = CniResult::from_value(&value, version, "result") {
            print_and_read(&result);
        }
        let config = serde_json::json!({ "name": "n", "cniVersion": version.as_str(), "prevResult": value });
        if let Ok(conf) = NetConf::parse(config.to_string().as_bytes())
            && let Err(error) = conf.prev_result()
        {
            assert!(error.code == 6 && error.msg.contains("prevResult"), "{error}");
        }
    }
});

fn print_and_read(result: &CniResult) {
    for version in ALL {
        let Ok(printed) = result.to_value(version) else { continue };
        let read = CniResult::from_value(&printed, version, "result").expect("what was printed can be read");
        if version.family() == Family::V1 {
            assert_eq!(read, *result);
        }
        assert_eq!(read.to_value(version).ok(), Some(printed));
    }
}
