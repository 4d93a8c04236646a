//! What a runtime says about one attachment.

use serde_json::{Map, Value};

use crate::spec::{Args, Attachment, CniError, Code, names};

/// What a runtime says about one attachment, beside its network (specification section 2, "Parameters").
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Parameters {
    /// `CNI_CONTAINERID`.
    pub container_id: String,
    /// `CNI_IFNAME`.
    pub ifname: String,
    /// `CNI_NETNS`; empty where the namespace is gone or unknown, which only DEL allows.
    pub netns: String,
    /// `CNI_ARGS`, pair by pair.
    pub args: Vec<[String; 2]>,
    /// What plugins get as `runtimeConfig`, by the names of their capabilities.
    pub capability_args: Map<String, Value>,
}

impl Parameters {
    /// The attachment to a network.
    pub fn attachment(&self, network: &str) -> Attachment {
        Attachment {
            network: network.to_owned(),
            container_id: self.container_id.clone(),
            ifname: self.ifname.clone(),
        }
    }

    /// The text of `CNI_ARGS`.
    pub fn args_text(&self) -> String {
        self.args.iter().map(|pair| pair.join("=")).collect::<Vec<_>>().join(";")
    }

    /// Splits the text of `CNI_ARGS`; an error of code 4 if it is not made of pairs.
    pub fn parse_args(text: &str) -> Result<Vec<[String; 2]>, CniError> {
        Args::parse(text)?;
        Ok(text
            .split(';')
            .filter_map(|pair| pair.split_once('='))
            .map(|(key, value)| [key.to_owned(), value.to_owned()])
            .collect())
    }

    /// An error of code 4 if container or interface have names that no plugin takes.
    pub fn check(&self) -> Result<(), CniError> {
        let invalid = |what: &str, name: &str, why: names::BadName| {
            Err(CniError::new(Code::InvalidEnvironment, format!("the {what} {name:?} {why}")))
        };
        if let Err(why) = names::check_identifier(&self.container_id) {
            return invalid("container ID", &self.container_id, why);
        }
        if let Err(why) = names::check_ifname(&self.ifname) {
            return invalid("interface name", &self.ifname, why);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn args_survive() {
        let text = r#"IgnoreUnknown=1;IP=10.0.0.5;LABELS={"a":"b=c"}"#;
        let args = Parameters::parse_args(text).unwrap();
        assert_eq!(args.len(), 3);
        assert_eq!(Parameters { args, ..Parameters::default() }.args_text(), text);
        assert!(Parameters::parse_args("IP").is_err());
        assert!(Parameters::parse_args("").unwrap().is_empty());
    }

    #[test]
    fn names_are_checked() {
        let parameters = |id: &str, ifname: &str| Parameters {
            container_id: id.into(),
            ifname: ifname.into(),
            ..Parameters::default()
        };
        assert_eq!(parameters("c", "eth0").check(), Ok(()));
        assert_eq!(parameters("../c", "eth0").check().unwrap_err().code, 4);
        assert_eq!(parameters("c", "eth0/..").check().unwrap_err().code, 4);
    }
}
