//! The commands of iptables, for what has no other interface: tables that are not those of nf_tables, which are read and
//! replaced as a whole under a lock that belongs to the command; and matches that only the command understands. All
//! changes go in one execution of `iptables-restore`.

use std::io::{PipeReader, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, FromRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::libc;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::{Protocol, Rule, TableName, Variant, installed};
use crate::net::{Error, Result};

/// Where commands are looked for, whatever `PATH` says: a runtime's environment is not ours to trust.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// How long the commands wait for the lock that they share, in seconds.
const LOCK_SECONDS: u32 = 10;

/// Most bytes that a command may write. A chain of ten thousand rules is a tenth of it.
const MAX_OUTPUT: usize = 16 << 20;

/// How long a command may take in all.
const DEADLINE: Duration = Duration::from_secs(15);

/// The commands of a protocol and a variant.
#[derive(Clone, Debug)]
pub struct Commands {
    list: PathBuf,
    restore: PathBuf,
    names: [String; 2],
}

impl Commands {
    /// The commands, under the name that can be no other variant's, or else under their plain name.
    pub fn find(protocol: Protocol, variant: Variant) -> Result<Self> {
        let (command, suffix) = (protocol.command(), variant.suffix());
        let pair = |list: String, restore: String| {
            Some(Self { list: find(&list)?, restore: find(&restore)?, names: [list, restore] })
        };
        pair(format!("{command}-{suffix}"), format!("{command}-{suffix}-restore"))
            .or_else(|| {
                installed(protocol).filter(|found| *found == variant)?;
                pair(command.to_owned(), format!("{command}-restore"))
            })
            .ok_or_else(|| {
                Error::new(format!("find {command} of the {suffix} variant in {PATH}"), Errno::ENOENT)
            })
    }

    /// The rules of a chain of the `nat` table, a line each, as `iptables -S <chain>` prints them: the first declares
    /// the chain, the others begin with `-A <chain> `. `None` where there is no such chain.
    pub fn nat_rules(&self, chain: &str) -> Result<Option<Vec<String>>> {
        let wait = LOCK_SECONDS.to_string();
        let mut command = Command::new(&self.list);
        command.args(["--wait", &wait, "-t", "nat", "-S", chain]);
        let outcome = execute(&self.names[0], command, "", DEADLINE)?;
        if outcome.success {
            return Ok(Some(outcome.said.lines().map(str::to_owned).collect()));
        }
        // The only words for it that there are; translations do not exist.
        if outcome.said.contains("No chain/target/match by that name") {
            return Ok(None);
        }
        Err(refused(format!("list chain {chain} of nat with {}", self.names[0]), outcome))
    }

    /// The whole `nat` table, a line each, as `iptables -S` prints it. It has a line or more for each pod.
    pub fn nat_table(&self) -> Result<Vec<String>> {
        let wait = LOCK_SECONDS.to_string();
        let mut command = Command::new(&self.list);
        command.args(["--wait", &wait, "-t", "nat", "-S"]);
        let outcome = execute(&self.names[0], command, "", DEADLINE)?;
        if outcome.success {
            return Ok(outcome.said.lines().map(str::to_owned).collect());
        }
        Err(refused(format!("list nat with {}", self.names[0]), outcome))
    }

    /// Whether the `nat` table has a rule; its line is as `iptables-restore` reads one behind `-A`. The command compares
    /// what it says, not how it says it.
    pub fn nat_has_rule(&self, line: &str) -> Result<bool> {
        let wait = LOCK_SECONDS.to_string();
        let mut command = Command::new(&self.list);
        command.args(["--wait", &wait, "-t", "nat", "-C"]).args(words(line));
        let outcome = execute(&self.names[0], command, "", DEADLINE)?;
        // All that the command says of a rule, a chain or a target that is not there is that.
        if !outcome.success && outcome.said.contains("Try `") {
            return Err(refused(format!("look for `{line}` with {}", self.names[0]), outcome));
        }
        Ok(outcome.success)
    }

    /// All rules of the `filter` table, a line each, as `iptables -S` prints them: chains are declared by `-P` or `-N`
    /// first, the others begin with `-A`.
    pub fn filter_rules(&self) -> Result<Vec<String>> {
        let wait = LOCK_SECONDS.to_string();
        let mut command = Command::new(&self.list);
        command.args(["--wait", &wait, "-t", "filter", "-S"]);
        let outcome = execute(&self.names[0], command, "", DEADLINE)?;
        if outcome.success {
            return Ok(outcome.said.lines().map(str::to_owned).collect());
        }
        Err(refused(format!("list table filter with {}", self.names[0]), outcome))
    }

    /// Makes changes to the `nat` table, all or none.
    pub fn change_nat(&self, changes: &[Change]) -> Result<()> {
        self.change(TableName::Nat, changes)
    }

    /// Makes changes to the `filter` table, all or none.
    pub fn change_filter(&self, changes: &[Change]) -> Result<()> {
        self.change(TableName::Filter, changes)
    }

    fn change(&self, table: TableName, changes: &[Change]) -> Result<()> {
        let wait = LOCK_SECONDS.to_string();
        let mut command = Command::new(&self.restore);
        command.args(["--noflush", "--wait", &wait]);
        let input = script(table, changes);
        let outcome = execute(&self.names[1], command, &input, DEADLINE)?;
        if outcome.success {
            return Ok(());
        }
        // It names the line, so the line is shown.
        let deed = format!("change table {} with {}:\n{input}", table.name(), self.names[1]);
        Err(refused(deed, outcome))
    }
}

/// A line for `iptables-restore`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// `:<chain> - [0:0]`: makes a chain, or empties it.
    EmptyChain(String),
    /// `-A <chain> <rule>`
    Append(String, Rule),
    /// `-I <chain> <rule>`
    Insert(String, Rule),
    /// `-D`, and a rule's line without its `-A`, as [`Commands::nat_rules`] gave it.
    Delete(String),
    /// `-X <chain>`
    DeleteChain(String),
}

fn script(table: TableName, changes: &[Change]) -> String {
    let mut text = format!("*{}\n", table.name());
    for change in changes {
        match change {
            Change::EmptyChain(chain) => text.push_str(&format!(":{chain} - [0:0]\n")),
            Change::Append(chain, rule) => text.push_str(&format!("-A {chain} {rule}\n")),
            Change::Insert(chain, rule) => text.push_str(&format!("-I {chain} {rule}\n")),
            Change::Delete(line) => text.push_str(&format!("-D {line}\n")),
            Change::DeleteChain(chain) => text.push_str(&format!("-X {chain}\n")),
        }
    }
    text.push_str("COMMIT\n");
    text
}

/// The words of a rule's line, without the quotes and backslashes around some.
pub fn words(line: &str) -> Vec<String> {
    let (mut words, mut word, mut is_quoted, mut is_begun) = (Vec::new(), String::new(), false, false);
    let mut letters = line.chars();
    while let Some(letter) = letters.next() {
        match letter {
            '"' => (is_quoted, is_begun) = (!is_quoted, true),
            '\\' => word.extend(letters.next()),
            ' ' if !is_quoted => {
                if is_begun || !word.is_empty() {
                    words.push(std::mem::take(&mut word));
                }
                is_begun = false;
            }
            letter => word.push(letter),
        }
    }
    if is_begun || !word.is_empty() {
        words.push(word);
    }
    words
}

/// How a command ended.
#[derive(Debug)]
pub(in crate::net) struct Outcome {
    pub(in crate::net) success: bool,
    /// What it wrote to both of its outputs.
    pub(in crate::net) said: String,
}

/// A refusal in the words of the command. It has no error number of its own.
fn refused(deed: String, outcome: Outcome) -> Error {
    Error { deed, errno: Errno::EIO, text: outcome.said.trim().to_owned() }
}

/// The path of a command.
pub(in crate::net) fn find(name: &str) -> Option<PathBuf> {
    PATH.split(':').map(|directory| Path::new(directory).join(name)).find(|path| path.is_file())
}

/// Executes a command with something to read, and a limit of time. `name` is for messages.
pub(in crate::net) fn execute(
    name: &str,
    mut command: Command,
    input: &str,
    limit: Duration,
) -> Result<Outcome> {
    let deadline = Instant::now() + limit;
    let failed = |e: std::io::Error| Error::from_io(format!("execute {name}"), &e);
    let (mut reader, writer) = std::io::pipe().map_err(failed)?;
    command.env_clear().env("PATH", PATH).env("LC_ALL", "C").current_dir("/");
    command.stdin(Stdio::piped()).stdout(writer.try_clone().map_err(failed)?).stderr(writer);
    let mut child = command.spawn().map_err(failed)?;
    // It holds the pipe's other end, which would keep the pipe from ending.
    drop(command);
    if let Some(mut stdin) = child.stdin.take() {
        // A few hundred bytes fit into the pipe. A child that ended early says why on its standard error.
        let _ = stdin.write_all(input.as_bytes());
    }
    let said = read_to_end(&mut reader, deadline);
    // Its outputs may be closed long before it ends.
    let said = said.and_then(|said| wait_for_end(&child, deadline).map(|()| said));
    if said.is_err() {
        // It may have ended by itself meanwhile.
        let _ = child.kill();
    }
    let status = child.wait().map_err(failed)?;
    let said = said.map_err(|e| Error::new(format!("execute {name}"), e))?;
    Ok(Outcome { success: status.success(), said: String::from_utf8_lossy(&said).into_owned() })
}

/// Reads until nobody can write any more, or the deadline is over.
fn read_to_end(reader: &mut PipeReader, deadline: Instant) -> std::result::Result<Vec<u8>, Errno> {
    let mut bytes = Vec::new();
    let mut buffer = [0; 4096];
    loop {
        wait_for_input(reader.as_fd(), deadline)?;
        if bytes.len() > MAX_OUTPUT {
            return Err(Errno::EFBIG);
        }
        match reader.read(&mut buffer) {
            Ok(0) => return Ok(bytes),
            Ok(len) => bytes.extend_from_slice(&buffer[..len]),
            Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
            Err(e) => return Err(Error::from_io("", &e).errno),
        }
    }
}

fn wait_for_end(child: &Child, deadline: Instant) -> std::result::Result<(), Errno> {
    // SAFETY: pidfd_open(2) takes two integers and touches no memory of ours.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, child.id(), 0) };
    let fd = i32::try_from(Errno::result(fd)?).map_err(|_| Errno::EBADF)?;
    // SAFETY: the kernel has just opened this descriptor for us, and nobody else knows it.
    wait_for_input(unsafe { OwnedFd::from_raw_fd(fd) }.as_fd(), deadline)
}

fn wait_for_input(fd: BorrowedFd<'_>, deadline: Instant) -> std::result::Result<(), Errno> {
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let timeout = PollTimeout::try_from(left).map_err(|_| Errno::EINVAL)?;
        match poll(&mut [PollFd::new(fd, PollFlags::POLLIN)], timeout) {
            Ok(0) => return Err(Errno::ETIMEDOUT),
            Ok(_) => return Ok(()),
            Err(Errno::EINTR) => {}
            Err(e) => return Err(e),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str) -> Result<Outcome> {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        execute("sh", command, "input", Duration::from_millis(500))
    }

    #[test]
    fn words_are_those_between_quotes() {
        let line = r#"X -m comment --comment "name: \"n\" a" --dports 1,2 "" -j Y"#;
        let wanted = ["X", "-m", "comment", "--comment", r#"name: "n" a"#, "--dports", "1,2", "", "-j", "Y"];
        assert_eq!(words(line), wanted);
    }

    #[test]
    fn both_outputs_are_read() {
        let outcome = shell("cat; echo oops >&2; exit 3").unwrap();
        assert_eq!((outcome.success, outcome.said.as_str()), (false, "inputoops\n"));
    }

    #[test]
    fn a_command_is_bounded_in_time_and_output() {
        let begin = Instant::now();
        for script in ["exec sleep 100", "exec >&- 2>&-; exec sleep 100", "exec yes"] {
            assert!(matches!(shell(script), Err(e) if [Errno::ETIMEDOUT, Errno::EFBIG].contains(&e.errno)));
        }
        assert!(begin.elapsed() < Duration::from_secs(20));
    }
}
