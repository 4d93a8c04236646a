//! What podman and netavark say on stdin: networks, and what containers want of them.
//!
//! Whatever it is, it is read or refused, and a refusal names a key.

#![no_main]

use bridgehead::netavark::network::{Attaching, Network, decode, object};
use bridgehead::netavark::options::Options;
use bridgehead::spec::CniError;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let object = match object(data) {
        Ok(object) => object,
        Err(error) => return expect_a_reason(&error),
    };
    match decode::<Network>(&object) {
        Ok(network) => look_at(&network),
        Err(error) => expect_a_reason(&error),
    }
    match decode::<Attaching>(&object) {
        Ok(attaching) => {
            let _ = attaching.check_names().inspect_err(expect_a_reason);
            look_at(&attaching.network);
        }
        Err(error) => expect_a_reason(&error),
    }
});

fn look_at(network: &Network) {
    let _ = network.bridge();
    let checked = network.check().inspect_err(expect_a_reason);
    if checked.is_ok() {
        assert_eq!(network.prefixes().len(), network.subnets.len());
    }
    if let Ok(options) = Options::parse(&network.options).inspect_err(expect_a_reason)
        && let Ok(ipam) = network.ipam()
    {
        let _ = options.check_with(ipam).inspect_err(expect_a_reason);
    }
}

fn expect_a_reason(error: &CniError) {
    assert!([2, 6, 7].contains(&error.code) && error.msg.len() > 10, "{error}");
}
