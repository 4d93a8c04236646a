use super::*;
use crate::runtime::scratch::Scratch;

fn run(program: &Path, command: &str, stdin: &[u8]) -> Result<Option<Value>, CniError> {
    let environment =
        Environment { command: command.into(), container_id: "c1".into(), ..Environment::default() };
    Invocation { program, environment: &environment, stdin, deadline: Duration::from_secs(20) }.run()
}

#[test]
fn the_first_regular_file_is_the_plugin() {
    let scratch = Scratch::new();
    let (a, b) = (scratch.dir("a"), scratch.dir("b"));
    std::fs::create_dir(a.join("bridge")).unwrap();
    std::fs::write(b.join("bridge"), "").unwrap();
    let path = [scratch.path().join("none"), a, b.clone()];
    assert_eq!(find("bridge", &path).unwrap(), b.join("bridge"));
}

#[test]
fn a_plugin_that_is_not_there_is_named_with_the_directories() {
    let error = find("bridge", &["/nowhere/a".into(), "/nowhere/b".into()]).unwrap_err();
    assert_eq!(
        (error.code, error.msg.as_str()),
        (106, r#"cannot find plugin "bridge" in [/nowhere/a /nowhere/b]"#)
    );
    assert_eq!(find("bridge", &[]).unwrap_err().code, 106);
    assert_eq!(find("../bridge", &["/".into()]).unwrap_err().code, 7);
    assert_eq!(find("", &["/".into()]).unwrap_err().code, 7);
}

#[test]
fn environment_and_stdin_arrive() {
    let scratch = Scratch::new();
    let program = scratch.program(
        "p",
        r#"printf '{"command":"%s","id":"%s","in":%s}' $CNI_COMMAND $CNI_CONTAINERID "$(cat)""#,
    );
    let value = run(&program, "ADD", b"[1]").unwrap().unwrap();
    assert_eq!(value, serde_json::json!({"command": "ADD", "id": "c1", "in": [1]}));
}

#[test]
fn much_input_and_much_output_do_not_block_each_other() {
    let scratch = Scratch::new();
    let program = scratch.program(
        "p",
        r#"printf '{"a":"'; head -c 300000 /dev/zero | tr '\0' x; head -c 300000 /dev/zero | tr '\0' y >&2
           printf '","n":%s}' $(wc -c)"#,
    );
    // Its log would drown the test's output, so it is sent nowhere.
    let program = scratch.program("quiet", &format!("exec {} 2>/dev/null", program.display()));
    let value = run(&program, "ADD", &vec![b' '; 500_000]).unwrap().unwrap();
    assert_eq!(value["n"], 500_000);
    assert_eq!(value["a"].as_str().unwrap().len(), 300_000);
}

#[test]
fn nothing_and_null_are_told_apart() {
    let scratch = Scratch::new();
    assert_eq!(run(&scratch.program("p", "true"), "ADD", b"").unwrap(), None);
    let null = run(&scratch.program("p", "echo null"), "ADD", b"").unwrap();
    assert_eq!(null, Some(serde_json::json!({})));
    assert_eq!(run(&scratch.program("p", "echo nonsense"), "DEL", b"").unwrap(), None);
    let error = run(&scratch.program("p", "echo nonsense"), "ADD", b"").unwrap_err();
    assert_eq!(error.code, 106);
    assert!(error.msg.contains(r#""nonsense""#), "{error}");
}

#[test]
fn a_plugins_error_is_returned_unchanged() {
    let scratch = Scratch::new();
    let text = r#"{"cniVersion":"1.0.0","code":123,"msg":"no","details":"why"}"#;
    let error = run(&scratch.program("p", &format!("echo '{text}'; exit 1")), "ADD", b"").unwrap_err();
    assert_eq!(serde_json::to_string(&error).unwrap(), text);
    let error = run(&scratch.program("p", r#"echo '{"msg":"no"}'; exit 1"#), "ADD", b"").unwrap_err();
    assert_eq!((error.code, error.msg.as_str()), (106, "no"));
}

#[test]
fn a_failure_without_an_error_object_tells_what_there_is() {
    let scratch = Scratch::new();
    let msg = |text: &str| run(&scratch.program("p", text), "ADD", b"").unwrap_err().msg;
    assert!(msg("echo oops >&2; exit 3").ends_with(r#"exit status: 3: "oops""#));
    assert!(msg("exit 3").contains("exit status: 3 and said nothing"));
    assert!(
        msg(r#"echo '{"ips":[]}'; kill -9 $$"#).contains("signal: 9 (SIGKILL), and what it printed is no")
    );
    assert!(msg("kill -9 $$").contains("signal: 9"));
    assert!(msg("echo oops; exit 3").ends_with(r#"no error object: "oops""#));
    let error = run(Path::new("/nowhere/p"), "ADD", b"").unwrap_err();
    assert!(error.msg.contains("No such file or directory"), "{error}");
}

#[test]
fn the_deadline_ends_a_plugin() {
    let scratch = Scratch::new();
    let program = scratch.program("p", "echo waiting >&2; exec sleep 100");
    let environment = Environment { command: "ADD".into(), ..Environment::default() };
    let begin = Instant::now();
    let deadline = Duration::from_millis(300);
    let error =
        Invocation { program: &program, environment: &environment, stdin: b"", deadline }.run().unwrap_err();
    assert!(begin.elapsed() < Duration::from_secs(10));
    assert_eq!((error.code, error.details.as_str()), (106, r#""waiting""#));
}

#[test]
fn a_process_left_behind_does_not_hold_up_the_caller() {
    let scratch = Scratch::new();
    let program = scratch.program("p", "sleep 4 & echo '{}'");
    let begin = Instant::now();
    assert_eq!(run(&program, "ADD", b"").unwrap(), Some(serde_json::json!({})));
    assert!(begin.elapsed() < Duration::from_secs(3));
}

#[test]
fn endless_output_is_cut_off() {
    let scratch = Scratch::new();
    let error = run(&scratch.program("p", "exec yes"), "ADD", b"").unwrap_err();
    assert!(error.msg.contains("more than 4194304 bytes"), "{error}");
}

#[test]
fn a_file_that_is_being_written_is_tried_again() {
    let scratch = Scratch::new();
    let program = scratch.program("p", "echo '{}'");
    let writer = std::fs::OpenOptions::new().append(true).open(&program).unwrap();
    let late = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(100));
        drop(writer);
    });
    assert!(run(&program, "ADD", b"").is_ok());
    late.join().unwrap();
}

#[test]
fn a_delegate_gets_the_configuration_byte_for_byte() {
    let scratch = Scratch::new();
    scratch.program("ipam", r#"printf '{"command":"%s","sum":"%s"}' $CNI_COMMAND "$(cksum)""#);
    let environment = Environment { path: scratch.path().display().to_string(), ..Environment::default() };
    let stdin = b"{ \"name\":\"n\",\n\"cniVersion\":\"1.0.0\", \"x\":1.50 }\n".to_vec();
    let copy = scratch.path().join("stdin");
    std::fs::write(&copy, &stdin).unwrap();
    let request = Request::parse(Command::Check, &environment, stdin).unwrap();
    let value = delegate("ipam", Command::Add, &request.attachment, &request, DEADLINE).unwrap().unwrap();
    let sum = std::process::Command::new("cksum").stdin(std::fs::File::open(copy).unwrap()).output().unwrap();
    assert_eq!(value["command"], "ADD");
    assert_eq!(value["sum"].as_str().unwrap(), String::from_utf8(sum.stdout).unwrap().trim());
    assert_eq!(
        delegate("nonesuch", Command::Add, &request.attachment, &request, DEADLINE).unwrap_err().code,
        106
    );
}
