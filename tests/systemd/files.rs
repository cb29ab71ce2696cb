//! The daemons' configuration files, as an operator meets them.

use std::{path::Path, process::Command};

use bazooka_tests::program;

/// What a daemon says and ends with, told by a file.
fn told(dir: &Path, daemon: &str, words: &[&str], file: &str) -> (Option<i32>, String) {
    let path = dir.join("told.toml");
    std::fs::write(&path, file).expect("the file can be written");
    let output = Command::new(program(daemon))
        .args(words)
        .arg("--config")
        .arg(&path)
        .env_remove("BAZOOKA_COORDINATOR")
        .output()
        .expect("it runs");
    let said = String::from_utf8(output.stderr).expect("it speaks in text");
    (output.status.code(), said.replace(&path.display().to_string(), "FILE"))
}

#[test]
fn each_daemon_says_all_that_is_wrong_with_its_file_and_where() {
    let dir = tempfile::tempdir().expect("a folder");
    // Each: the daemon, its words, its file, what is said of it.
    let cases: [(&str, &[&str], &str, &[&str]); 4] = [
        (
            "bazooka-pm",
            &["--check"],
            "coordinator = ['https://10.0.0.1:2379', 'here']\nidentity = '/nowhere'\nzones = 'a'\nslots = 'many'\n\
             stack = '/proc'\nshim = '/nowhere/shim'\nisolation = 'jail'\nports = '9-1'\n\
             services = '10.0.0.7:8501'\n",
            &[
                "FILE:1: coordinator: \"here\" must be a URL",
                "FILE:2: identity: /nowhere/ca.pem can't be read",
                "FILE:3: zones: there is no such option; zone is one",
                "FILE:4: slots: it takes a number, not a string",
                "FILE:5: stack: /proc is no stack: it must be a root tree",
                "FILE:6: shim: there is no /nowhere/shim",
                "FILE:7: isolation: \"jail\" is none of sandbox, uid, none",
                "FILE:8: ports: \"9-1\": two numbers with a dash between",
                "FILE:9: services: \"10.0.0.7:8501\": the address or the name of a proxy, without a port",
            ],
        ),
        (
            "bazooka-pm",
            &["converge", "--check"],
            "coordinator = 'http://10.0.0.1:2379'\nprefix = 'bazooka/'\nlisten = 8080\nzone = 'a'\n",
            &[
                "FILE:2: prefix: \"bazooka/\" must begin with a slash",
                "FILE:3: listen: it takes a string in quotes, not a number",
                "FILE:4: zone: there is no such option; bazooka-pm converge --help lists them",
            ],
        ),
        (
            "bazooka-rm",
            &["--check"],
            "storage = 's3:/bucket'\nssh-keys = '/home/git/.ssh/authorized_keys'\nssh-user = 'no-such-user'\n\
             git-url = 'git.example.org'\nbuild-path = ['/usr', 'opt/tools', '/nowhere']\n",
            &[
                "FILE:1: storage: \"s3:/bucket\" must begin with s3:// or file://",
                "FILE:2: ssh-keys: it takes a cluster with identities",
                "FILE:3: ssh-user: there is no user \"no-such-user\"",
                "FILE:4: git-url: \"git.example.org\" must begin with http:// or https://",
                "FILE:5: build-path: /nowhere: ",
                "FILE:5: build-path: opt/tools must be a whole path",
            ],
        ),
        (
            "bazooka-proxy",
            &["--check"],
            "public = '0.0.0.0'\nrun-haproxy = true\nhaproxy-socket = '/run/haproxy.sock'\nhaproxy = '/nowhere/haproxy'\n\
             haproxy-user = 'no-such-user'\nstate = '/tmp/a b'\n",
            &[
                "FILE:1: public: \"0.0.0.0\": invalid socket address syntax",
                "FILE:3: haproxy-socket: it can't stand beside run-haproxy",
                "FILE:4: haproxy: there is no /nowhere/haproxy",
                "FILE:5: haproxy-user: there is no user \"no-such-user\"",
                "FILE:6: state: the state folder /tmp/a b must be named with letters",
            ],
        ),
    ];
    for (daemon, words, file, wanted) in cases {
        let (status, said) = told(dir.path(), daemon, words, file);
        let lines: Vec<&str> = said.lines().collect();
        assert_eq!((status, lines.len()), (Some(1), wanted.len()), "{daemon}: {said}");
        for (line, wanted) in lines.iter().zip(wanted) {
            assert!(line.starts_with(wanted), "{daemon}: {line:?} for {wanted:?}");
        }
        // Told the same without --check it doesn't start, either: it would have to wait for a coordinator.
        let words: Vec<&str> = words.iter().copied().filter(|word| *word != "--check").collect();
        let (status, again) = told(dir.path(), daemon, &words, file);
        assert_eq!(status, Some(2), "{again}");
        assert!(again.starts_with(&said) && again.contains("hint: nothing was started"), "{again}");
    }
}

#[test]
fn a_file_with_nothing_wrong_is_found_to_be_so_without_a_coordinator() {
    let dir = tempfile::tempdir().expect("a folder");
    // Nobody listens there.
    let file = "coordinator = ['http://127.0.0.1:9']\nlisten = '127.0.0.1:0'\n";
    for (daemon, words, more) in [
        (
            "bazooka-pm",
            &["--check"][..],
            "zone = 'a'\nmemory = 1_000_000_000\nclosed = ['10.0.0.5:8081']\nservices = 'proxy.a.example.org'\n",
        ),
        ("bazooka-pm", &["converge", "--check"], "name = 'c1'\n"),
        ("bazooka-rm", &["--check"], "name = 'r1'\nbuild-time = 60\n"),
        ("bazooka-proxy", &["--check"], "name = 'p1'\nrun-haproxy = true\n"),
    ] {
        let (status, said) = told(dir.path(), daemon, words, &format!("{file}{more}"));
        assert_eq!((status, said.as_str()), (Some(0), "FILE: nothing wrong\n"), "{daemon}");
    }
}

#[test]
fn the_packages_files_say_nothing_that_is_wrong() {
    let etc = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/etc");
    let dir = tempfile::tempdir().expect("a folder");
    for (daemon, words, file) in [
        ("bazooka-pm", &["--check"][..], "pm.toml"),
        ("bazooka-pm", &["converge", "--check"], "converge.toml"),
        ("bazooka-rm", &["--check"], "rm.toml"),
        ("bazooka-proxy", &["--check"], "proxy.toml"),
    ] {
        let text = std::fs::read_to_string(etc.join(file)).expect("it is there");
        let (status, said) = told(dir.path(), daemon, words, &text);
        assert_eq!(status, Some(0), "{file}: {said}");
        // Each line that is there to be uncommented names an option; its value may fit no machine but the operator's.
        let shown = text.lines().map(|line| match line.strip_prefix("#") {
            Some(line) if !line.starts_with(' ') => line,
            _ => line,
        });
        let (_, said) = told(dir.path(), daemon, words, &shown.collect::<Vec<_>>().join("\n"));
        assert!(!said.contains("no such option") && !said.contains("it takes a"), "{file}: {said}");
    }
}
