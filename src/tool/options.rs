//! The command line as it was written: nothing of the environment, nothing decided.

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use lexopt::prelude::*;

use crate::spec::{Command, names};

/// What the command line asks for.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Asked {
    /// The help of a command, or of the whole.
    Help(Option<Deed>),
    /// The version of this program.
    OwnVersion,
    /// A verb over a network.
    Verb(Box<Options>),
    /// To remove what is left of attachments that are provably dead, whatever their network.
    Reap,
    /// To put back what was lost of a network's attachments, or of those to all.
    Restore(Option<String>),
}

/// What a command does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Deed {
    /// Calls the plugins of a network with a verb.
    Verb(Command),
    /// Reads the records of attachments, and puts back what they say and what is not there.
    Restore,
}

/// A verb over a network.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Options {
    pub(super) command: Command,
    pub(super) network: String,
    pub(super) netns: Option<String>,
    pub(super) net_dir: Option<PathBuf>,
    pub(super) plugin_dirs: Vec<PathBuf>,
    pub(super) cache_dir: Option<PathBuf>,
    pub(super) capability_args: Option<String>,
    pub(super) args: Option<String>,
    pub(super) ifname: Option<String>,
    pub(super) container_id: Option<String>,
    pub(super) timeout: Option<Duration>,
    pub(super) valid: Valid,
}

/// What `gc` was told about valid attachments.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) enum Valid {
    /// Nothing.
    #[default]
    NotSaid,
    /// `--valid CONTAINER[/IFNAME]`, once or more often.
    Listed(Vec<String>),
    /// `--all`: none is valid.
    None,
}

/// A command line that makes no sense, with the command whose help would tell more.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Misuse {
    pub(super) what: String,
    pub(super) deed: Option<Deed>,
}

/// The commands by the names that they have on the command line.
pub(super) const COMMANDS: [(&str, Deed); 7] = [
    ("add", Deed::Verb(Command::Add)),
    ("check", Deed::Verb(Command::Check)),
    ("del", Deed::Verb(Command::Del)),
    ("gc", Deed::Verb(Command::Gc)),
    ("restore", Deed::Restore),
    ("status", Deed::Verb(Command::Status)),
    ("version", Deed::Verb(Command::Version)),
];

/// The name of a command on the command line.
pub(super) fn name_of(deed: Deed) -> &'static str {
    COMMANDS.iter().find(|(_, known)| *known == deed).map_or("", |(name, _)| name)
}

impl Asked {
    /// Reads the arguments that follow the program's name.
    pub(super) fn parse(args: impl IntoIterator<Item = OsString>) -> Result<Self, Misuse> {
        let mut args = args.into_iter().peekable();
        // Who asks nothing wants to know what there is to ask. Nomad executes every file of a plugin directory so, and
        // takes a failure for a broken plugin.
        if args.peek().is_none() {
            return Ok(Self::Help(None));
        }
        let mut draft = Draft::default();
        let mut parser = lexopt::Parser::from_args(args);
        match draft.read(&mut parser) {
            Ok(Some(asked)) => Ok(asked),
            Ok(None) => draft.finish(),
            Err(error) => Err(Misuse { what: error.to_string(), deed: draft.deed }),
        }
    }
}

/// What has been read of the command line so far.
#[derive(Default)]
struct Draft {
    deed: Option<Deed>,
    words: Vec<String>,
    net_dir: Option<PathBuf>,
    plugin_dirs: Vec<PathBuf>,
    cache_dir: Option<PathBuf>,
    capability_args: Option<String>,
    args: Option<String>,
    ifname: Option<String>,
    container_id: Option<String>,
    timeout: Option<Duration>,
    valid: Valid,
}

impl Draft {
    /// Reads all arguments; ends early where one of them asks for help or for the program's version.
    fn read(&mut self, parser: &mut lexopt::Parser) -> Result<Option<Asked>, lexopt::Error> {
        while let Some(arg) = parser.next()? {
            match arg {
                Short('h') | Long("help") => return Ok(Some(Asked::Help(self.deed))),
                Short('V') | Long("version") => return Ok(Some(Asked::OwnVersion)),
                Short('i') | Long("ifname") => self.ifname = Some(parser.value()?.string()?),
                Long("net-dir") => self.net_dir = Some(parser.value()?.into()),
                Long("plugin-dir") => self.plugin_dirs.extend(std::env::split_paths(&parser.value()?)),
                Long("cache-dir") => self.cache_dir = Some(parser.value()?.into()),
                Long("capability-args") => self.capability_args = Some(parser.value()?.string()?),
                Long("args") => self.args = Some(parser.value()?.string()?),
                Long("container-id") => self.container_id = Some(parser.value()?.string()?),
                Long("timeout") => {
                    let word = parser.value()?.string()?;
                    let seconds =
                        word.parse::<u32>().ok().filter(|seconds| *seconds > 0).ok_or_else(|| {
                            format!("--timeout: {word:?} is wrong; wanted is a number of seconds, 1 or more")
                        })?;
                    self.timeout = Some(Duration::from_secs(seconds.into()));
                }
                Long("valid") => {
                    let one = parser.value()?.string()?;
                    check_valid(&one)?;
                    match &mut self.valid {
                        Valid::NotSaid => self.valid = Valid::Listed(vec![one]),
                        Valid::Listed(list) => list.push(one),
                        Valid::None => return Err("--all and --valid exclude each other".into()),
                    }
                }
                Long("all") => {
                    if let Valid::Listed(_) = self.valid {
                        return Err("--all and --valid exclude each other".into());
                    }
                    self.valid = Valid::None;
                }
                Value(word) if self.deed.is_none() => {
                    let word = word.string()?;
                    if word == "help" {
                        return help(parser).map(Some);
                    }
                    self.deed = Some(deed(&word)?);
                }
                Value(word) => self.words.push(word.string()?),
                other => return Err(other.unexpected()),
            }
        }
        Ok(None)
    }

    fn finish(self) -> Result<Asked, Misuse> {
        let Some(deed) = self.deed else {
            return Err(Misuse { what: "no command is given".to_owned(), deed: None });
        };
        let misuse = |what: String| Err(Misuse { what, deed: Some(deed) });
        let name = name_of(deed);
        if self.valid != Valid::NotSaid && deed != Deed::Verb(Command::Gc) {
            return misuse(format!("--valid and --all belong to gc, not to {name}"));
        }
        let mut words = self.words.into_iter();
        let Deed::Verb(command) = deed else {
            let network = words.next();
            return match words.next() {
                Some(word) => misuse(format!("{word:?} is one word too many")),
                None => Ok(Asked::Restore(network)),
            };
        };
        let Some(network) = words.next() else {
            return match command {
                // What is valid is so on one network.
                Command::Gc if self.valid == Valid::NotSaid => Ok(Asked::Reap),
                _ => misuse("the name of a network is missing".to_owned()),
            };
        };
        let netns = words.next();
        if let Some(word) = words.next() {
            return misuse(format!("{word:?} is one word too many"));
        }
        let needs_netns = match command {
            Command::Add => true,
            Command::Check | Command::Del => self.container_id.is_none(),
            Command::Gc | Command::Status | Command::Version => false,
        };
        if needs_netns && netns.is_none() {
            return misuse("the network namespace is missing".to_owned());
        }
        Ok(Asked::Verb(Box::new(Options {
            command,
            network,
            netns,
            net_dir: self.net_dir,
            plugin_dirs: self.plugin_dirs,
            cache_dir: self.cache_dir,
            capability_args: self.capability_args,
            args: self.args,
            ifname: self.ifname,
            container_id: self.container_id,
            timeout: self.timeout,
            valid: self.valid,
        })))
    }
}

/// Whether this is `CONTAINER[/IFNAME]`. What it is not, is nobody's name, and whatever is in no list is detached: a
/// script whose variable is empty would lose every container.
fn check_valid(text: &str) -> Result<(), String> {
    let (container_id, ifname) = match text.split_once('/') {
        Some((container_id, ifname)) => (container_id, Some(ifname)),
        None => (text, None),
    };
    names::check_identifier(container_id)
        .map_err(|why| format!("--valid {text:?}: the container ID {why}"))?;
    ifname
        .map_or(Ok(()), names::check_ifname)
        .map_err(|why| format!("--valid {text:?}: the interface name {why}"))
}

/// `help [COMMAND]`.
fn help(parser: &mut lexopt::Parser) -> Result<Asked, lexopt::Error> {
    match parser.next()? {
        // Of itself, what it explains is the whole.
        Some(Value(word)) if word == "help" => Ok(Asked::Help(None)),
        Some(Value(word)) => Ok(Asked::Help(Some(deed(&word.string()?)?))),
        _ => Ok(Asked::Help(None)),
    }
}

fn deed(word: &str) -> Result<Deed, String> {
    COMMANDS.iter().find(|(name, _)| *name == word).map(|(_, deed)| *deed).ok_or_else(|| {
        let names: Vec<&str> = COMMANDS.iter().map(|(name, _)| *name).collect();
        format!("there is no command {word:?}; there are {} and help", names.join(", "))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Result<Asked, Misuse> {
        Asked::parse(line.split_whitespace().map(OsString::from))
    }

    fn options(line: &str) -> Options {
        match parse(line).unwrap() {
            Asked::Verb(options) => *options,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn options_and_words_may_mix() {
        let options =
            options("add --net-dir /a net -i eth1 web --plugin-dir /b:/c --plugin-dir=/d --timeout 5");
        assert_eq!((options.command, options.network.as_str()), (Command::Add, "net"));
        assert_eq!((options.netns.as_deref(), options.ifname.as_deref()), (Some("web"), Some("eth1")));
        assert_eq!(options.plugin_dirs, ["/b", "/c", "/d"].map(PathBuf::from));
        assert_eq!(options.timeout, Some(Duration::from_secs(5)));
    }

    #[test]
    fn help_is_there_for_the_whole_and_for_each_command() {
        for (line, asked) in [
            ("--help", Asked::Help(None)),
            ("help", Asked::Help(None)),
            ("", Asked::Help(None)),
            ("-h", Asked::Help(None)),
            ("gc --help", Asked::Help(Some(Deed::Verb(Command::Gc)))),
            ("help del", Asked::Help(Some(Deed::Verb(Command::Del)))),
            ("help help", Asked::Help(None)),
            ("restore -h", Asked::Help(Some(Deed::Restore))),
            ("--version", Asked::OwnVersion),
        ] {
            assert_eq!(parse(line), Ok(asked), "{line}");
        }
    }

    #[test]
    fn valid_attachments_are_for_gc() {
        assert_eq!(options("gc net").valid, Valid::NotSaid);
        assert_eq!(options("gc net --all").valid, Valid::None);
        assert_eq!(
            options("gc net --valid a --valid b/eth1").valid,
            Valid::Listed(vec!["a".into(), "b/eth1".into()])
        );
    }

    #[test]
    fn what_names_nobody_is_no_valid_attachment() {
        for (word, text) in [
            ("", "the container ID is empty"),
            ("/eth0", "the container ID is empty"),
            ("a b", "the container ID has the character ' '"),
            ("a/", "the interface name is empty"),
            ("a/b/c", "the interface name has the character '/'"),
        ] {
            let misuse = Asked::parse(["gc", "net", "--valid", word].map(OsString::from)).unwrap_err();
            assert!(misuse.what.contains(text), "{word:?}: {misuse:?}");
        }
    }

    #[test]
    fn gc_of_the_dead_needs_no_network() {
        assert_eq!(parse("gc"), Ok(Asked::Reap));
        for line in ["gc --all", "gc --valid a"] {
            assert!(parse(line).unwrap_err().what.contains("name of a network is missing"), "{line}");
        }
    }

    #[test]
    fn restore_needs_no_network() {
        assert_eq!(parse("restore"), Ok(Asked::Restore(None)));
        assert_eq!(parse("restore net"), Ok(Asked::Restore(Some("net".into()))));
    }

    #[test]
    fn misuse_is_told() {
        for (line, text) in [
            ("--timeout 5", "no command is given"),
            ("ad net web", r#"there is no command "ad"; there are add, check"#),
            ("add", "the name of a network is missing"),
            ("add net", "the network namespace is missing"),
            ("del net", "the network namespace is missing"),
            ("add net web eth0", r#""eth0" is one word too many"#),
            ("add net web --valid a", "--valid and --all belong to gc"),
            ("gc net --all --valid a", "exclude each other"),
            ("gc net --valid a --all", "exclude each other"),
            ("add --nonsense", "--nonsense"),
            ("add net web --timeout soon", r#"--timeout: "soon" is wrong; wanted is a number of seconds"#),
            ("add net web --timeout 0", r#"--timeout: "0" is wrong"#),
            ("help ad", "there is no command"),
            ("restore net web", r#""web" is one word too many"#),
            ("restore --all", "--valid and --all belong to gc"),
        ] {
            let misuse = parse(line).unwrap_err();
            assert!(misuse.what.contains(text), "{line}: {misuse:?}");
        }
        assert!(parse("del net --container-id c").is_ok());
        assert!(parse("status net").is_ok());
    }
}
