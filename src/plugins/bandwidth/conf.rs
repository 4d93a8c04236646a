//! The configuration of `bandwidth`: its keys as they were written, and what they mean.

use std::fmt;

use serde::de::{self, Visitor};
use serde::{Deserialize, Deserializer};
use serde_json::Value;

use crate::resource::traffic_shape::Limit;
use crate::spec::{CniError, Code, Request, json};

/// The keys, as they were written; in the configuration itself, and in `runtimeConfig.bandwidth`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(super) struct Conf {
    ingress_rate: Option<Bits>,
    ingress_burst: Option<Bits>,
    egress_rate: Option<Bits>,
    egress_burst: Option<Bits>,
}

/// `runtimeConfig`, as far as it matters here.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct RuntimeConf {
    bandwidth: Option<Conf>,
}

/// A number of bits, or of bits per second.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Bits(u64);

impl<'de> Deserialize<'de> for Bits {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_u64(BitsVisitor)
    }
}

struct BitsVisitor;

impl Visitor<'_> for BitsVisitor {
    type Value = Bits;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a whole number of bits, 0 or more")
    }

    fn visit_u64<E: de::Error>(self, bits: u64) -> Result<Bits, E> {
        Ok(Bits(bits))
    }

    /// libcni reads a configuration into floats and writes it again: the largest number of 64 bits arrives as one more.
    fn visit_f64<E: de::Error>(self, bits: f64) -> Result<Bits, E> {
        if bits >= 0.0 && bits.fract() == 0.0 {
            // What is more than 64 bits have is as much as they have.
            return Ok(Bits(bits as u64));
        }
        Err(E::invalid_value(de::Unexpected::Float(bits), &self))
    }
}

/// The limits of both directions, as the container sees them; `None` where there is none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Limits {
    /// To what it receives.
    pub(super) ingress: Option<Limit>,
    /// To what it sends.
    pub(super) egress: Option<Limit>,
}

impl Limits {
    /// Those of the configuration itself if it has any of the keys, else those of the runtime: as in the reference, a
    /// limit of the network's cannot be lifted by a pod's annotation.
    pub(super) fn parse(request: &Request) -> Result<Self, CniError> {
        match Self::parse_configured(request)? {
            Some(limits) => Ok(limits),
            None => {
                let Some(value) = request.config.get("runtimeConfig") else { return Ok(Self::default()) };
                let RuntimeConf { bandwidth } = decode(value)?;
                bandwidth.map_or(Ok(Self::default()), |conf| conf.limits("runtimeConfig.bandwidth."))
            }
        }
    }

    /// Those of the configuration itself, if it has any of the keys.
    pub(super) fn parse_configured(request: &Request) -> Result<Option<Self>, CniError> {
        let conf: Conf = request.config.decode()?;
        if conf == Conf::default() { Ok(None) } else { conf.limits("").map(Some) }
    }

    /// Whether there is none.
    pub(super) fn are_none(self) -> bool {
        self == Self::default()
    }
}

fn decode(value: &Value) -> Result<RuntimeConf, CniError> {
    let failed =
        |e: json::Error| CniError::new(Code::Decoding, format!("network configuration: runtimeConfig.{e}"));
    json::decode(value).map_err(failed)
}

impl Conf {
    fn limits(self, prefix: &str) -> Result<Limits, CniError> {
        let limit = |direction: &str, rate: Option<Bits>, burst: Option<Bits>| {
            let (rate, burst) = (rate.unwrap_or_default().0, burst.unwrap_or_default().0);
            limit(&format!("{prefix}{direction}"), rate, burst)
        };
        Ok(Limits {
            ingress: limit("ingress", self.ingress_rate, self.ingress_burst)?,
            egress: limit("egress", self.egress_rate, self.egress_burst)?,
        })
    }
}

/// The limit of a direction; `None` where both numbers are 0.
fn limit(direction: &str, rate: u64, burst: u64) -> Result<Option<Limit>, CniError> {
    let wrong = |msg: String| Err(CniError::config(msg));
    match (rate, burst) {
        (0, 0) => return Ok(None),
        (0, _) => {
            return wrong(format!(
                "{direction}Rate: missing or 0, and {direction}Burst is {burst}; wanted is a rate in bits per \
                 second, or neither"
            ));
        }
        (_, 0) => {
            return wrong(format!(
                "{direction}Burst: missing or 0, and {direction}Rate is {rate}; wanted is the number of bits that \
                 may pass at once, or neither"
            ));
        }
        _ => {}
    }
    for (key, bits) in [("Rate", rate), ("Burst", burst)] {
        if bits < 8 {
            return wrong(format!(
                "{direction}{key}: {bits} is less than a byte; wanted are 8 bits at least"
            ));
        }
    }
    let limit = Limit { rate, burst };
    if limit.largest_packet() == 0 {
        return wrong(format!(
            "{direction}Burst: {burst} is too small for the rate of {rate} bits per second: no packet would ever pass"
        ));
    }
    Ok(Some(limit))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::spec::Command;
    use crate::spec::request::Environment;

    fn parse(config: Value) -> Result<Limits, CniError> {
        let mut whole = json!({"cniVersion": "1.0.0", "name": "net", "type": "bandwidth"});
        whole.as_object_mut().unwrap().extend(config.as_object().unwrap().clone());
        let environment = Environment {
            command: "ADD".into(),
            container_id: "c".into(),
            netns: "/none".into(),
            ifname: "eth0".into(),
            ..Environment::default()
        };
        Limits::parse(&Request::parse(Command::Add, &environment, whole.to_string().into_bytes()).unwrap())
    }

    fn refused(config: Value) -> String {
        parse(config).unwrap_err().msg
    }

    const USUAL: Option<Limit> = Some(Limit { rate: 8_000_000, burst: 80_000 });

    #[test]
    fn keys_match_as_runtimes_write_them() {
        let limits = parse(json!({"runtimeConfig": {"bandWidth": {"IngressRate": 8_000_000,
            "IngressBurst": 80_000, "EgressRate": 0, "EgressBurst": 0}}}));
        assert_eq!(limits.unwrap(), Limits { ingress: USUAL, egress: None });
        let limits = parse(json!({"EGRESSRATE": 8_000_000, "egressburst": 80_000}));
        assert_eq!(limits.unwrap(), Limits { ingress: None, egress: USUAL });
    }

    #[test]
    fn the_configuration_beats_the_runtime() {
        let runtime = json!({"bandwidth": {"ingressRate": 1000, "ingressBurst": 1000}});
        let limits = parse(json!({"egressRate": 8_000_000, "egressBurst": 80_000, "runtimeConfig": runtime}));
        assert_eq!(limits.unwrap(), Limits { ingress: None, egress: USUAL });
        let none = parse(json!({"egressRate": 0, "runtimeConfig": runtime}));
        assert_eq!(none.unwrap(), Limits::default());
    }

    #[test]
    fn without_numbers_there_is_no_limit() {
        for config in [
            json!({}),
            json!({"ingressRate": 0, "ingressBurst": 0}),
            json!({"runtimeConfig": {}}),
            json!({"runtimeConfig": null}),
            json!({"runtimeConfig": {"bandwidth": null}}),
            json!({"runtimeConfig": {"bandwidth": {"ingressRate": null}}}),
        ] {
            assert!(parse(config.clone()).unwrap().are_none(), "{config}");
        }
    }

    #[test]
    fn the_largest_numbers_are_read() {
        for (written, read) in
            [("18446744073709551615", u64::MAX), ("18446744073709552000", u64::MAX), ("1e6", 1_000_000)]
        {
            let config = format!(r#"{{"ingressRate": 8000000, "ingressBurst": {written}}}"#);
            let limits = parse(serde_json::from_str(&config).unwrap()).unwrap();
            assert_eq!(limits.ingress, Some(Limit { rate: 8_000_000, burst: read }), "{written}");
        }
    }

    #[test]
    fn an_error_names_the_key_by_its_path() {
        let runtime = |conf: Value| json!({"runtimeConfig": {"bandwidth": conf}});
        for (config, text) in [
            (json!({"ingressRate": 8000}), "ingressBurst: missing or 0, and ingressRate is 8000"),
            (json!({"egressBurst": 8000}), "egressRate: missing or 0, and egressBurst is 8000"),
            (json!({"egressRate": 7, "egressBurst": 8}), "egressRate: 7 is less than a byte"),
            (json!({"egressRate": 8, "egressBurst": 7}), "egressBurst: 7 is less than a byte"),
            (json!({"ingressRate": 80_000_000_000u64, "ingressBurst": 8}), "ingressBurst: 8 is too small"),
            (runtime(json!({"ingressRate": 8000})), "runtimeConfig.bandwidth.ingressBurst: missing"),
            (
                runtime(json!({"ingressRate": -1})),
                "runtimeConfig.bandwidth.ingressRate: the value -1 is wrong",
            ),
            (
                json!({"ingressRate": "8M"}),
                r#"ingressRate: the value "8M" is wrong; wanted is a whole number"#,
            ),
            (json!({"ingressRate": 1.5}), "ingressRate: the value 1.5 is wrong; wanted is a whole number"),
        ] {
            let msg = refused(config.clone());
            assert!(msg.contains(text), "{config}: {msg}");
        }
    }
}
