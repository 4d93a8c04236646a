//! A request to a plugin: the `CNI_*` variables and the configuration (specification section 2).

use std::path::PathBuf;

use super::args::CONVENTIONAL;
use super::names::{check_identifier, check_ifname};
use super::{Args, Attachment, CniError, CniResult, Code, NetConf, Version};

/// The verbs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Command {
    /// Attach a container to a network.
    Add,
    /// Detach it.
    Del,
    /// Tell whether an attachment is as it should be.
    Check,
    /// Remove what belongs to no valid attachment.
    Gc,
    /// Tell whether an ADD could be served.
    Status,
    /// Tell which versions are spoken.
    Version,
}

impl Command {
    /// Its name in `CNI_COMMAND`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Add => "ADD",
            Self::Del => "DEL",
            Self::Check => "CHECK",
            Self::Gc => "GC",
            Self::Status => "STATUS",
            Self::Version => "VERSION",
        }
    }

    /// The verb of that name; case matters.
    pub fn parse(name: &str) -> Option<Self> {
        [Self::Add, Self::Del, Self::Check, Self::Gc, Self::Status, Self::Version]
            .into_iter()
            .find(|c| c.as_str() == name)
    }

    /// The first version of the specification that has the verb.
    pub const fn since(self) -> Version {
        match self {
            Self::Add | Self::Del | Self::Version => Version::V0_1_0,
            Self::Check => Version::V0_4_0,
            Self::Gc | Self::Status => Version::V1_1_0,
        }
    }

    /// Whether the verb is about one attachment.
    pub const fn has_attachment(self) -> bool {
        matches!(self, Self::Add | Self::Del | Self::Check)
    }
}

/// The `CNI_*` variables as text; an empty one is an absent one.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Environment {
    /// `CNI_COMMAND`.
    pub command: String,
    /// `CNI_CONTAINERID`.
    pub container_id: String,
    /// `CNI_NETNS`.
    pub netns: String,
    /// `CNI_IFNAME`.
    pub ifname: String,
    /// `CNI_ARGS`.
    pub args: String,
    /// `CNI_PATH`.
    pub path: String,
    /// `CNI_NETNS_OVERRIDE`: allows a namespace that is the plugin's own. Not in the specification, but in libcni.
    pub netns_override: String,
}

impl Environment {
    /// Reads the variables through `get`, e.g. [`std::env::var`].
    pub fn read(get: impl Fn(&str) -> Option<String>) -> Self {
        let text = |name| get(name).unwrap_or_default();
        Self {
            command: text("CNI_COMMAND"),
            container_id: text("CNI_CONTAINERID"),
            netns: text("CNI_NETNS"),
            ifname: text("CNI_IFNAME"),
            args: text("CNI_ARGS"),
            path: text("CNI_PATH"),
            netns_override: text("CNI_NETNS_OVERRIDE"),
        }
    }

    /// An error of code 4 for the first invalid variable, else one that names all missing ones together.
    pub fn check(&self) -> Result<(), CniError> {
        let command = Command::parse(&self.command);
        let is = |commands: &[Command]| command.is_some_and(|c| commands.contains(&c));
        let attachment = is(&[Command::Add, Command::Check, Command::Del]);
        let mut missing = Vec::new();
        if attachment {
            if self.container_id.is_empty() {
                missing.push("CNI_CONTAINERID");
            } else if let Err(why) = check_identifier(&self.container_id) {
                return Err(self.invalid("CNI_CONTAINERID", &self.container_id, why));
            }
        }
        if self.netns.is_empty() && is(&[Command::Add, Command::Check]) {
            missing.push("CNI_NETNS");
        }
        if attachment {
            if self.ifname.is_empty() {
                missing.push("CNI_IFNAME");
            } else if let Err(why) = check_ifname(&self.ifname) {
                return Err(self.invalid("CNI_IFNAME", &self.ifname, why));
            }
        }
        // The specification asks for CNI_PATH on GC only; libcni's skeleton on all verbs, and runtimes always set it.
        if self.path.is_empty() && command.is_some_and(|c| c != Command::Version) {
            missing.push("CNI_PATH");
        }
        if missing.is_empty() {
            return Ok(());
        }
        Err(CniError::new(
            Code::InvalidEnvironment,
            format!("required env variables [{}] missing", missing.join(",")),
        ))
    }

    fn invalid(&self, variable: &str, value: &str, why: super::names::BadName) -> CniError {
        CniError::new(Code::InvalidEnvironment, format!("{variable}: {value:?} {why}")).with_details(value)
    }

    /// Whether the caller allows a network namespace that is the plugin's own.
    pub fn allows_own_netns(&self) -> bool {
        self.netns_override == "1" || self.netns_override.eq_ignore_ascii_case("true")
    }
}

/// A request that has been read and checked as far as all plugins have it in common.
#[derive(Clone, Debug)]
pub struct Request {
    /// The verb.
    pub command: Command,
    /// Whose interface on which network; container and interface are empty for verbs without an attachment.
    pub attachment: Attachment,
    /// `CNI_NETNS` as it was given; `None` where it was not.
    pub netns: Option<PathBuf>,
    /// `CNI_ARGS` as it was given; see [`Request::args`].
    args: String,
    /// The directories of `CNI_PATH`, for finding delegated plugins.
    pub path: Vec<PathBuf>,
    /// The configuration.
    pub config: NetConf,
    /// The configuration byte for byte: what a delegated plugin gets.
    pub stdin: Vec<u8>,
}

impl Request {
    /// Reads a request. `environment` must have been checked ([`Environment::check`]).
    pub fn parse(command: Command, environment: &Environment, stdin: Vec<u8>) -> Result<Self, CniError> {
        let config = NetConf::parse(&stdin)?;
        if config.version < command.since() {
            return Err(CniError::new(
                Code::IncompatibleVersion,
                format!("config version does not allow {}", command.as_str()),
            )
            .with_details(format!(
                "cniVersion is {}, the verb is there since {}",
                config.version,
                command.since()
            )));
        }
        Ok(Self {
            command,
            attachment: Attachment {
                network: config.name.clone(),
                container_id: environment.container_id.clone(),
                ifname: environment.ifname.clone(),
            },
            netns: Some(PathBuf::from(&environment.netns)).filter(|p| !p.as_os_str().is_empty()),
            args: environment.args.clone(),
            path: environment.path.split(':').filter(|d| !d.is_empty()).map(PathBuf::from).collect(),
            config,
            stdin,
        })
    }

    /// `CNI_ARGS` as it was given, for whoever it is handed on to.
    pub fn raw_args(&self) -> &str {
        &self.args
    }

    /// The request to one plugin of a chain, out of one that is served as a whole; see [`NetConf::part`].
    pub fn part(&self, keys: &[&str], prev_result: Option<&CniResult>) -> Result<Self, CniError> {
        Ok(Self { config: self.config.part(keys, prev_result)?, ..self.clone() })
    }

    /// The pairs of `CNI_ARGS`. Only who uses them may refuse them: `loopback` does not care, and DEL must not.
    pub fn args(&self) -> Result<Args, CniError> {
        let args = Args::parse(&self.args)?;
        args.check_known(&CONVENTIONAL)?;
        Ok(args)
    }

    /// What tells that which the runtime asks for beside the author's configuration from other wishes. Of `CNI_ARGS`,
    /// the keys that plugins look at.
    pub fn wishes_digest(&self) -> String {
        let args = Args::parse(&self.args).unwrap_or_default();
        let words: Vec<&str> = CONVENTIONAL.iter().map(|key| args.get(key).unwrap_or_default()).collect();
        self.config.wishes_digest(&words.join(";"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn environment(command: &str) -> Environment {
        Environment { command: command.into(), ..Environment::default() }
    }

    #[test]
    fn all_missing_variables_are_named_together() {
        let missing = |command| environment(command).check().map_err(|e| e.msg);
        assert_eq!(
            missing("ADD").unwrap_err(),
            "required env variables [CNI_CONTAINERID,CNI_NETNS,CNI_IFNAME,CNI_PATH] missing"
        );
        assert_eq!(
            missing("DEL").unwrap_err(),
            "required env variables [CNI_CONTAINERID,CNI_IFNAME,CNI_PATH] missing"
        );
        assert_eq!(missing("STATUS").unwrap_err(), "required env variables [CNI_PATH] missing");
        assert_eq!(missing("VERSION"), Ok(()));
    }

    #[test]
    fn an_invalid_variable_wins_over_missing_ones() {
        let environment = Environment { container_id: "a/b".into(), ..environment("ADD") };
        let error = environment.check().unwrap_err();
        assert_eq!((error.code, error.details.as_str()), (4, "a/b"));
    }

    #[test]
    fn verbs_need_their_version() {
        let environment = environment("CHECK");
        let error =
            Request::parse(Command::Check, &environment, br#"{"name":"n","cniVersion":"0.3.1"}"#.to_vec())
                .unwrap_err();
        assert_eq!(error.code, 1);
    }
}
